use std::time::{Duration, Instant};

use super::epochs::{Course, Keeper, Taken};
use super::objective::NextTokens;
use super::watch::{Figures, Watching};
use super::{EndToEndEvent, EndToEndReport};
use crate::ops::TrainOps;
use crate::runs::tuning_journal::{Checkpoint, Journal};
use crate::runs::{MetricEvent, RunFolder};
use aqlm_formats::Result;

/// Keeps nothing, on ranks other than 0, which only take part in measuring.
pub(super) struct Unkept<'w, M: TrainOps> {
    pub(super) watching: Option<Watching<'w, M>>,
}

impl<M: TrainOps> Unkept<'_, M> {
    fn measured(&self, step: usize, objective: &mut NextTokens<'_, M>) -> Result<()> {
        if let Some(watching) = &self.watching {
            watching.after(step, objective)?;
        }
        Ok(())
    }
}

impl<M: TrainOps> Keeper<NextTokens<'_, M>> for Unkept<'_, M> {
    fn begun(&mut self, _course: &Course, objective: &mut NextTokens<'_, M>) -> Result<()> {
        self.measured(0, objective)
    }

    fn stepped(
        &mut self,
        _course: &Course,
        objective: &mut NextTokens<'_, M>,
        step: &Taken<'_>,
    ) -> Result<()> {
        self.measured(step.number(), objective)
    }

    fn epoch_done(
        &mut self,
        _course: &Course,
        _objective: &mut NextTokens<'_, M>,
        _train_loss: f64,
        _judged: f64,
        _better: bool,
    ) -> Result<()> {
        Ok(())
    }
}

/// The part of a checkpoint about the course of training.
pub(super) fn course_of(checkpoint: &Checkpoint) -> Course {
    let report = &checkpoint.report;
    Course {
        epoch: checkpoint.epoch,
        step: checkpoint.step,
        epoch_total: checkpoint.epoch_total,
        loss_before: report.loss_before,
        loss_after: report.loss_after,
        train_losses: report.train_losses.clone(),
        validation_losses: report.validation_losses.clone(),
        best_epoch: report.best_epoch,
    }
}

/// Saves the states of training in a run folder.
pub(super) struct InFolder<'a, M: TrainOps> {
    pub(super) folder: &'a RunFolder,
    pub(super) journal: Journal,
    /// the last checkpoint, with everything since except the state; `None` before the first
    pub(super) now: Option<Checkpoint>,
    pub(super) teacher_rest: Option<f64>,
    /// tokens per sequence
    pub(super) seqlen: usize,
    pub(super) epochs: usize,
    /// whether codes are tuned
    pub(super) codes: bool,
    pub(super) save_every: Duration,
    pub(super) saved: Instant,
    pub(super) clock: Clock,
    pub(super) watching: Option<Watching<'a, M>>,
    pub(super) observe: &'a mut dyn FnMut(EndToEndEvent),
}

impl<M: TrainOps> InFolder<'_, M> {
    /// The checkpoint about to be written, updated from `course`.
    fn now(&mut self, course: &Course) -> &mut Checkpoint {
        let now = self.now.as_mut().expect("written before the first step, or read");
        now.epoch = course.epoch;
        now.step = course.step;
        now.epoch_total = course.epoch_total;
        now.report.loss_after = course.loss_after;
        now.report.train_losses.clone_from(&course.train_losses);
        now.report.validation_losses.clone_from(&course.validation_losses);
        now.report.best_epoch = course.best_epoch;
        now.report.seconds = self.clock.seconds();
        now
    }

    /// Measures the state before the first step (0) or after a step, where that is due. This must precede
    /// the saving of that state: a run that goes on from it does not measure it again.
    fn measured(&mut self, step: usize, objective: &mut NextTokens<'_, M>) -> Result<()> {
        let watching = self.watching.as_ref();
        let figures = watching.map(|watching| watching.after(step, objective));
        self.report(step, figures.transpose()?.flatten())
    }

    /// Measures the last state, unless that has been done.
    pub(super) fn ended(&mut self, step: usize, objective: &mut NextTokens<'_, M>) -> Result<()> {
        let watching = self.watching.as_ref();
        let figures = watching.map(|watching| watching.at_end(step, objective));
        self.report(step, figures.transpose()?.flatten())
    }

    fn report(&mut self, step: usize, figures: Option<Figures>) -> Result<()> {
        let Some(figures) = figures else {
            return Ok(());
        };
        self.clock.skip(figures.seconds);
        self.folder.metric(figures.metric(step))?;
        (self.observe)(figures.event(step));
        Ok(())
    }
}

impl<M: TrainOps> Keeper<NextTokens<'_, M>> for InFolder<'_, M> {
    fn begun(&mut self, course: &Course, objective: &mut NextTokens<'_, M>) -> Result<()> {
        (self.observe)(EndToEndEvent::Judged {
            epoch: 0,
            train_loss: None,
            loss: course.loss_before,
        });
        self.measured(0, objective)?;
        self.now = Some(Checkpoint {
            epoch: 0,
            step: 0,
            epoch_total: 0.0,
            state: self.journal.write("state_0_0", &objective.tuner)?,
            best: None,
            report: EndToEndReport {
                loss_before: course.loss_before,
                loss_after: course.loss_after,
                train_losses: Vec::new(),
                validation_losses: Vec::new(),
                best_epoch: 0,
                teacher_rest: self.teacher_rest,
                steps: 0,
                groups_changed: self.codes.then_some(0),
                tokens: 0,
                seconds: 0.0,
            },
        });
        self.clock = Clock::new(0.0);
        Ok(())
    }

    fn stepped(
        &mut self,
        course: &Course,
        objective: &mut NextTokens<'_, M>,
        step: &Taken<'_>,
    ) -> Result<()> {
        let tokens = step.batch.len() * self.seqlen;
        let groups_changed = self.codes.then_some(step.codes.changed);
        let now = self.now(course);
        now.report.groups_changed = now
            .report
            .groups_changed
            .map(|before| before + step.codes.changed as u64);
        now.report.steps += 1;
        now.report.tokens += tokens as u64;
        self.folder.metric(MetricEvent::Step {
            epoch: step.epoch,
            step: step.step,
            steps: Some(step.steps),
            epochs: Some(self.epochs),
            loss: step.loss,
            lr: step.rates.lr,
            groups_changed,
        })?;
        (self.observe)(EndToEndEvent::Step {
            epoch: step.epoch,
            step: step.step,
            steps: step.steps,
            tokens,
            loss: step.loss,
            groups_changed,
        });
        self.measured(step.number(), objective)?;
        if step.step < step.steps && self.saved.elapsed() >= self.save_every {
            // A parameter that is not finite makes the next loss not finite. The divergence is reported
            // there.
            let name = format!("state_{}_{}", course.epoch, course.step);
            if let Some(file) = self.journal.write_finite(&name, &objective.tuner)? {
                let now = self.now(course);
                now.state = file;
                let now = now.clone();
                self.journal.append(now)?;
            }
            self.saved = Instant::now();
        }
        Ok(())
    }

    fn epoch_done(
        &mut self,
        course: &Course,
        objective: &mut NextTokens<'_, M>,
        train_loss: f64,
        judged: f64,
        better: bool,
    ) -> Result<()> {
        let epoch = course.epoch;
        let file = self
            .journal
            .write(&format!("state_{epoch}_0"), &objective.tuner)?;
        let now = self.now(course);
        if better {
            now.best = Some(file.clone());
        }
        now.state = file;
        let now = now.clone();
        self.journal.append(now)?;
        self.saved = Instant::now();
        self.folder.metric(MetricEvent::Epoch {
            epoch,
            train_loss,
            loss: judged,
        })?;
        (self.observe)(EndToEndEvent::Judged {
            epoch,
            train_loss: Some(train_loss),
            loss: judged,
        });
        Ok(())
    }
}

/// Seconds since a start, including earlier attempts.
pub(super) struct Clock {
    before: f64,
    started: Instant,
}

impl Clock {
    pub(super) fn new(before: f64) -> Self {
        Self {
            before,
            started: Instant::now(),
        }
    }

    fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// Leaves out seconds that have just passed.
    fn skip(&mut self, seconds: f64) {
        self.before -= seconds;
    }
}
