use aqlm_vocabulary::{CodeChange, Purpose, Rates, StreamKey, shuffle};

use super::objective::Objective;
use aqlm_formats::Result;

/// Parameters of the training loop.
pub(super) struct Plan<'a> {
    /// maximum number of passes over the training sequences
    pub(super) epochs: usize,
    /// sequences in a step
    pub(super) batch: usize,
    /// consecutive epochs without a better loss before training stops; 0 counts as 1
    pub(super) patience: usize,
    /// all sequences, including those for validation
    pub(super) sequences: usize,
    /// the last this many are not trained on; without any, the training sequences judge
    pub(super) validation: usize,
    /// learning rates, as a function of the step (from 0, over all epochs) and the total number of steps
    pub(super) rates: &'a dyn Fn(usize, usize) -> Rates,
    /// key of the stream that decides the order of the sequences
    pub(super) key: StreamKey,
}

impl Plan<'_> {
    /// The sequences that judge a state.
    pub(super) fn judges(&self) -> Vec<usize> {
        let training = self.sequences - self.validation;
        if self.validation > 0 {
            (training..self.sequences).collect()
        } else {
            (0..training).collect()
        }
    }

    /// Steps in each epoch.
    pub(super) fn steps(&self) -> usize {
        (self.sequences - self.validation).div_ceil(self.batch)
    }
}

/// State of training so far. Losses are means over the units that the objective counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Course {
    /// epochs finished
    pub(super) epoch: usize,
    /// steps taken in the current epoch
    pub(super) step: usize,
    /// losses of these steps, summed
    pub(super) epoch_total: f64,
    /// loss on the judging sequences before the first step
    pub(super) loss_before: f64,
    /// the same loss for the best state
    pub(super) loss_after: f64,
    /// training loss of each epoch
    pub(super) train_losses: Vec<f64>,
    /// validation loss after each epoch
    pub(super) validation_losses: Vec<f64>,
    /// epoch whose end state was best; 0 is the state before the first step
    pub(super) best_epoch: usize,
}

/// A step that was taken.
pub(super) struct Taken<'a> {
    /// epoch, from 1
    pub(super) epoch: usize,
    /// step within the epoch, from 1
    pub(super) step: usize,
    /// steps in each epoch
    pub(super) steps: usize,
    /// its sequences
    pub(super) batch: &'a [usize],
    /// mean loss on these sequences before the step
    pub(super) loss: f64,
    /// the learning rates
    pub(super) rates: Rates,
    /// what happened to codes
    pub(super) codes: CodeChange,
}

impl Taken<'_> {
    /// Number of steps taken in all epochs, this one included.
    pub(super) fn number(&self) -> usize {
        (self.epoch - 1) * self.steps + self.step
    }
}

/// A loss that is not finite and therefore ends training.
pub(super) struct Broken {
    /// epoch, from 1; 0 before the first
    pub(super) epoch: usize,
    /// step within the epoch, from 1
    pub(super) step: usize,
    /// whether this is the loss of the judging sequences, after the step
    pub(super) judged: bool,
    pub(super) loss: f64,
    /// the sequences of this loss
    pub(super) sequences: Vec<usize>,
}

/// Observes training and keeps its states.
pub(super) trait Keeper<O> {
    /// Called when the state before the first step has been judged.
    fn begun(&mut self, course: &Course, objective: &mut O) -> Result<()>;

    /// Called after a step.
    fn stepped(&mut self, course: &Course, objective: &mut O, step: &Taken<'_>) -> Result<()>;

    /// Called at the end of an epoch. `judged` is the loss of its end state; `better` says whether it is the
    /// new best.
    fn epoch_done(
        &mut self,
        course: &Course,
        objective: &mut O,
        train_loss: f64,
        judged: f64,
        better: bool,
    ) -> Result<()>;
}

/// Trains in epochs of minibatches, in a new order from the key each epoch, and judges the state after each.
/// Training ends after the plan's epochs, after `patience` consecutive epochs without a new best, or at a
/// loss that is not finite. With `resumed`, training continues as if never interrupted.
///
/// # Errors
/// Those of the objective and the keeper.
pub(super) fn train<O: Objective, K: Keeper<O>>(
    objective: &mut O,
    plan: &Plan<'_>,
    resumed: Option<Course>,
    keeper: &mut K,
) -> Result<(Course, Option<Broken>)> {
    let training = plan.sequences - plan.validation;
    let judges = plan.judges();
    let mut course = if let Some(course) = resumed {
        course
    } else {
        let loss = objective.losses(&judges)? / objective.count(&judges);
        let course = Course {
            epoch: 0,
            step: 0,
            epoch_total: 0.0,
            loss_before: loss,
            loss_after: loss,
            train_losses: Vec::new(),
            validation_losses: Vec::new(),
            best_epoch: 0,
        };
        keeper.begun(&course, objective)?;
        course
    };
    let broken = |epoch, step, judged, loss, sequences: &[usize]| {
        Some(Broken {
            epoch,
            step,
            judged,
            loss,
            sequences: sequences.to_vec(),
        })
    };
    if !course.loss_before.is_finite() {
        let broken = broken(0, 0, true, course.loss_before, &judges);
        return Ok((course, broken));
    }

    let steps = plan.steps();
    let mut rng = plan.key.stream(Purpose::Minibatches);
    let mut order = Vec::new();
    let mut shuffled = 0;
    while course.epoch < plan.epochs && course.epoch - course.best_epoch < plan.patience.max(1) {
        let epoch = course.epoch + 1;
        // A resumed run draws the orders of earlier epochs again, to advance the stream.
        while shuffled < epoch {
            order = (0..training).collect::<Vec<usize>>();
            shuffle(&mut rng, &mut order);
            shuffled += 1;
        }
        for (step, batch) in order.chunks(plan.batch).enumerate().skip(course.step) {
            let total = objective.accumulate(batch)?;
            let loss = total / objective.count(batch);
            if !loss.is_finite() {
                return Ok((course, broken(epoch, step + 1, false, loss, batch)));
            }
            let rates = (plan.rates)((epoch - 1) * steps + step, plan.epochs.saturating_mul(steps));
            let codes = objective.step(rates)?;
            course.step = step + 1;
            course.epoch_total += total;
            let step = Taken {
                epoch,
                step: step + 1,
                steps,
                batch,
                loss,
                rates,
                codes,
            };
            keeper.stepped(&course, objective, &step)?;
        }
        let judged = objective.losses(&judges)? / objective.count(&judges);
        if !judged.is_finite() {
            return Ok((course, broken(epoch, steps, true, judged, &judges)));
        }
        let train_loss = course.epoch_total / objective.count(&order);
        course.train_losses.push(train_loss);
        if plan.validation > 0 {
            course.validation_losses.push(judged);
        }
        course.epoch = epoch;
        course.step = 0;
        course.epoch_total = 0.0;
        let better = judged < course.loss_after;
        if better {
            course.loss_after = judged;
            course.best_epoch = epoch;
        }
        keeper.epoch_done(&course, objective, train_loss, judged, better)?;
    }
    Ok((course, None))
}
