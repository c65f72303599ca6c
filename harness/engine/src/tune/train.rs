use std::path::Path;
use std::time::{Duration, Instant};

use aqlm_vocabulary::{ModelTraining as _, ModelWeights, Rates, StreamKey};
use serde::{Deserialize, Serialize};

use super::epochs::{Broken, Plan, train};
use super::keepers::{Clock, InFolder, Unkept, course_of};
use super::objective::NextTokens;
use super::teacher::Teacher;
use super::watch::{Watch, Watching};
use super::{EndToEndEvent, EndToEndReport, EndToEndSettings};
use crate::ops::TrainOps;
use crate::ranks::{Ranks, share, wait_for_all};
use crate::runs::RunFolder;
use crate::runs::tuning_journal::{self, Checkpoint, Journal};
use aqlm_formats::model::{Model, OuterWeights, WriteOptions, Written, write_whole};
use aqlm_formats::{Error, Result};

/// The fields of `run.json` for end-to-end fine-tuning besides models, data and backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndToEndRun {
    /// SHA-256 of the teacher's weights, if there is a teacher
    pub teacher_sha256: Option<String>,
    /// everything else that decides the result
    pub settings: EndToEndSettings,
}

/// The step at which training stopped because a number was no longer finite.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// epoch, from 1
    pub epoch: usize,
    /// step within the epoch, from 1
    pub step: usize,
    /// the loss, as text because JSON has no NaN
    pub loss: String,
    /// the first parameter or layer output that is not finite
    pub layer: String,
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuning {
    /// the report
    pub report: EndToEndReport,
    /// the best model, at the backend's precision
    pub weights: ModelWeights,
    /// `None` when training ran to its end
    pub divergence: Option<Divergence>,
}

/// Trains the parameters selected by the settings of a quantized model, on the teacher's next-token
/// distributions or on the text itself (paper appendix A), and its codes if the settings say so (PV-Tuning).
///
/// The optimizer minimises the mean loss over the positions of `settings.batch` sequences. The seed decides a
/// new order of sequences in each epoch. The last `settings.validation` of `sequences` judge the state after
/// every epoch; without any, the training sequences judge. The best state is kept. Training stops after
/// `settings.patience` epochs without a better one. A state is saved after every epoch and whenever
/// `save_every` has passed. A restarted run continues from the last intact state and ends with the same bytes
/// as an uninterrupted run.
///
/// With `watch`, the model is also measured on another text while it is trained. This changes no result and
/// decides nothing.
///
/// Every rank calls this with the same arguments. The sequences of a step and those that judge are spread
/// over the ranks. Only rank 0 writes to the folder, has the best model's weights, and observes.
///
/// A loss that is not finite ends the training with the best state so far. It is reported in the outcome and
/// is not an error.
///
/// # Errors
/// Errors of the backend, unreadable weights, a run folder that can't be read or written.
#[expect(
    clippy::too_many_arguments,
    clippy::missing_panics_doc,
    reason = "each is a different thing, and a struct would only rename them; nothing makes it panic"
)]
pub fn end_to_end<M: TrainOps>(
    machine: &M,
    student: &Model,
    teacher: Option<&Model>,
    sequences: &[&[u32]],
    settings: &EndToEndSettings,
    folder: &RunFolder,
    save_every: Duration,
    watch: Option<Watch<'_>>,
    ranks: &dyn Ranks,
    observe: &mut dyn FnMut(EndToEndEvent),
) -> Result<Tuning> {
    let dense = teacher;
    let resident = settings.resident_teacher(watch.is_some() && dense.is_some());
    let memory = machine.tuning_memory(
        &|| student.weights(),
        &settings.tuning(),
        resident,
        settings.batch,
    )?;
    if let Some(memory) = memory {
        observe(EndToEndEvent::Memory(memory));
    }
    let run = folder.path();
    let teacher = Teacher::prepare(machine, teacher, sequences, settings, run, ranks, observe)?;
    let watching = match watch {
        Some(watch) => Some(Watching::prepare(watch, machine, dense, &teacher, run, ranks)?),
        None => None,
    };
    let tuner = machine.model_tuner(&student.weights()?, &settings.tuning())?;
    let mut objective = NextTokens {
        machine,
        tuner,
        teacher: &teacher,
        sequences,
        batch: settings.batch,
        ranks,
    };
    let plan = Plan {
        epochs: settings.epochs,
        batch: settings.batch,
        patience: settings.patience,
        sequences: sequences.len(),
        validation: settings.validation,
        rates: &|step, steps| {
            let factor = settings.schedule.factor(step, steps);
            Rates {
                lr: settings.lr * factor,
                code_lr: settings.codes.map_or(0.0, |codes| codes.lr * factor),
            }
        },
        key: StreamKey {
            seed: settings.seed,
            // one past the last block: no block draws from this stream
            block: student.config().blocks.len(),
            layer: None,
        },
    };

    if !ranks.is_first() {
        return follow(&mut objective, &plan, run, watching, ranks);
    }
    let mut journal = Journal::open(run)?;
    let now = journal.restore_last(&mut objective.tuner, observe)?;
    share(ranks, 0, || Ok(now.clone()))?;
    if let Some(checkpoint) = &now {
        observe(EndToEndEvent::Resumed {
            epoch: checkpoint.epoch,
            step: checkpoint.step,
        });
    }
    let course = now.as_ref().map(course_of);
    let seconds = now.as_ref().map_or(0.0, |now| now.report.seconds);
    // Every rank has its state, so old ones may be deleted.
    wait_for_all(ranks)?;
    let mut keeper = InFolder {
        folder,
        journal,
        now,
        teacher_rest: teacher.rest(),
        seqlen: settings.seqlen,
        epochs: settings.epochs,
        codes: settings.codes.is_some(),
        save_every,
        saved: Instant::now(),
        clock: Clock::new(seconds),
        watching,
        observe,
    };
    let (course, broken) = train(&mut objective, &plan, course, &mut keeper)?;
    if broken.is_none() {
        keeper.ended(course.epoch * plan.steps() + course.step, &mut objective)?;
    }
    let divergence = broken
        .map(|broken| diverged(&mut objective, &broken))
        .transpose()?;

    let now = keeper.now.expect("written before the first step, or read");
    share(ranks, 0, || Ok(now.report.clone()))?;
    let weights = if let Some(best) = &now.best {
        tuning_journal::restore(run, best, &mut objective.tuner)?;
        objective.tuner.weights()?
    } else {
        // A machine has room for one tuner, and none of the last state's numbers is needed any more.
        drop(objective);
        let untouched = machine.model_tuner(&student.weights()?, &settings.tuning())?;
        untouched.weights()?
    };
    Ok(Tuning {
        report: now.report,
        weights,
        divergence,
    })
}

/// [`end_to_end`] on a rank other than 0: the same training, without files. The weights are those of its end,
/// which nobody uses.
fn follow<M: TrainOps>(
    objective: &mut NextTokens<'_, M>,
    plan: &Plan<'_>,
    run: &Path,
    watching: Option<Watching<'_, M>>,
    ranks: &dyn Ranks,
) -> Result<Tuning> {
    let now: Option<Checkpoint> = share(ranks, 0, || Ok(None))?;
    if let Some(checkpoint) = &now {
        tuning_journal::restore(run, &checkpoint.state, &mut objective.tuner)?;
    }
    wait_for_all(ranks)?;
    let mut unkept = Unkept { watching };
    let (course, broken) = train(objective, plan, now.as_ref().map(course_of), &mut unkept)?;
    if let (None, Some(watching)) = (&broken, &unkept.watching) {
        watching.at_end(course.epoch * plan.steps() + course.step, objective)?;
    }
    let divergence = broken.map(|broken| diverged(objective, &broken)).transpose()?;
    Ok(Tuning {
        report: share(ranks, 0, || {
            Err(Error::Internal("a rank other than 0 has no report".into()))
        })?,
        weights: objective.tuner.weights()?,
        divergence,
    })
}

/// Writes a tuned model, rounded to checkpoint precision, in the layout of the model that it was tuned from.
///
/// # Errors
/// A value beyond the range of its type, a checkpoint that can't be written.
pub fn publish_tuned(student: &Model, weights: ModelWeights, out: &Path) -> Result<Written> {
    let outer = OuterWeights {
        embedding: weights.embedding,
        norm: weights.norm,
        lm_head: weights.lm_head,
    };
    let mut blocks = weights.blocks.into_iter();
    let block = |index: usize| {
        let block = blocks.next().ok_or_else(|| Error::Block {
            path: student.source().into(),
            blocks: student.config().blocks.len(),
            block: index,
        })?;
        student.rounded_for_storage(index, block)
    };
    write_whole(
        out,
        student,
        block,
        outer,
        &WriteOptions {
            replace: true,
            ..WriteOptions::default()
        },
    )
}

fn diverged<M: TrainOps>(objective: &mut NextTokens<'_, M>, broken: &Broken) -> Result<Divergence> {
    let sequences = objective.tokens(&broken.sequences);
    let layer = objective.tuner.first_not_finite(&sequences)?;
    Ok(Divergence {
        epoch: broken.epoch,
        step: broken.step,
        loss: broken.loss.to_string(),
        layer: layer.unwrap_or_else(|| "the loss itself".into()),
    })
}
