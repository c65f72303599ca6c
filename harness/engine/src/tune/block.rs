use aqlm_vocabulary::{AqlmError, FinetuneEvent, FinetuneReport, FinetuneSettings, Rates, StreamKey};

use super::epochs::{Course, Keeper, Plan, Taken, train};
use super::objective::SquaredError;
use crate::ops::{BlockTraining as _, TrainOps};
use crate::ranks::Ranks;
use aqlm_formats::Result;

/// Tunes the codebooks, scales and norms of a block on target outputs (paper section 3.4, algorithm 1 lines
/// 15 to 22). Codes, biases and dense layers stay fixed.
///
/// Adam minimises the mean squared error per output element, over minibatches of `settings.batch` sequences.
/// `key` decides a new order in each epoch. The last `validation` sequences are not trained on; they judge
/// the state after each epoch. Without any, the training sequences judge. Tuning stops after
/// `settings.patience` consecutive epochs without a new best state (0 counts as 1). The block ends in the
/// best state, possibly its initial one.
///
/// # Errors
/// `Argument` when no sequence is left to train on or the batch size is 0. `NotFinite` when a loss is NaN or
/// infinite. Errors of the machine. After an error, too, the block is in the best state so far.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a different thing, and a struct would only rename them"
)]
pub fn tune_block<M: TrainOps>(
    machine: &M,
    block: &mut M::Block,
    inputs: &M::Hidden,
    targets: &M::Hidden,
    validation: usize,
    settings: &FinetuneSettings,
    key: StreamKey,
    ranks: &dyn Ranks,
    observe: &mut dyn FnMut(FinetuneEvent),
) -> Result<FinetuneReport> {
    let sequences = machine.lengths(inputs).len();
    let goals = machine.lengths(targets).len();
    if goals != sequences {
        return Err(AqlmError::Shape {
            what: "fine-tuning targets".into(),
            expected: vec![sequences],
            found: vec![goals],
        }
        .into());
    }
    if validation >= sequences {
        return Err(AqlmError::argument(
            "sequences for validation",
            format!("fewer than the {sequences} there are"),
            validation,
        )
        .into());
    }
    if settings.batch == 0 {
        return Err(AqlmError::argument("batch", "at least 1 sequence", 0).into());
    }
    let tuner = machine.block_tuner(block, settings.into(), settings.decay());
    let idle = tuner.is_idle();
    let mut objective = SquaredError {
        machine,
        tuner,
        inputs,
        targets,
        ranks,
    };
    let plan = Plan {
        epochs: if idle { 0 } else { settings.epochs },
        batch: settings.batch,
        patience: settings.patience,
        sequences,
        validation,
        rates: &|_, _| Rates::of_parameters(settings.lr),
        key,
    };
    let mut keeper = InMemory { block, observe };
    let (course, broken) = train(&mut objective, &plan, None, &mut keeper)?;
    if let Some(broken) = broken {
        let what = match (broken.epoch, broken.judged) {
            (0, _) => "loss before fine-tuning",
            (_, false) => "loss of a fine-tuning step",
            (_, true) => "loss after a fine-tuning epoch",
        };
        return Err(AqlmError::NotFinite {
            what: what.into(),
            index: vec![broken.epoch],
            value: broken.loss,
        }
        .into());
    }
    Ok(FinetuneReport {
        loss_before: course.loss_before,
        loss_after: course.loss_after,
        train_losses: course.train_losses,
        validation_losses: course.validation_losses,
        best_epoch: course.best_epoch,
    })
}

/// Keeps the best block in memory.
struct InMemory<'a, B> {
    block: &'a mut B,
    observe: &'a mut dyn FnMut(FinetuneEvent),
}

impl<M: TrainOps> Keeper<SquaredError<'_, M>> for InMemory<'_, M::Block> {
    fn begun(&mut self, _course: &Course, _objective: &mut SquaredError<'_, M>) -> Result<()> {
        Ok(())
    }

    fn stepped(
        &mut self,
        _course: &Course,
        _objective: &mut SquaredError<'_, M>,
        step: &Taken<'_>,
    ) -> Result<()> {
        (self.observe)(FinetuneEvent::Step {
            epoch: step.epoch,
            step: step.step,
            steps: step.steps,
            loss: step.loss,
        });
        Ok(())
    }

    fn epoch_done(
        &mut self,
        course: &Course,
        objective: &mut SquaredError<'_, M>,
        train_loss: f64,
        _judged: f64,
        better: bool,
    ) -> Result<()> {
        (self.observe)(FinetuneEvent::Epoch {
            epoch: course.epoch,
            train_loss,
            validation_loss: course.validation_losses.last().copied(),
        });
        if better {
            *self.block = objective.tuner.block().clone();
        }
        Ok(())
    }
}
