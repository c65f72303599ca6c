use std::path::Path;
use std::time::{Duration, Instant};

use aqlm_vocabulary::{ModelTraining as _, ModelWeights, Rates, StreamKey};
use serde::{Deserialize, Serialize};

use super::epochs::{Broken, Course, Keeper, Plan, Taken, train};
use super::objective::NextTokens;
use super::teacher::Teacher;
use super::watch::{Figures, Watch, Watching};
use super::{EndToEndEvent, EndToEndReport, EndToEndSettings};
use crate::ops::TrainOps;
use crate::ranks::{Ranks, share, wait_for_all};
use crate::runs::tuning_journal::{self, Checkpoint, Journal};
use crate::runs::{MetricEvent, RunFolder};
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

/// Keeps nothing, on ranks other than 0, which only take part in measuring.
struct Unkept<'w, M: TrainOps> {
    watching: Option<Watching<'w, M>>,
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
fn course_of(checkpoint: &Checkpoint) -> Course {
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
struct InFolder<'a, M: TrainOps> {
    folder: &'a RunFolder,
    journal: Journal,
    /// the last checkpoint, with everything since except the state; `None` before the first
    now: Option<Checkpoint>,
    teacher_rest: Option<f64>,
    /// tokens per sequence
    seqlen: usize,
    epochs: usize,
    /// whether codes are tuned
    codes: bool,
    save_every: Duration,
    saved: Instant,
    clock: Clock,
    watching: Option<Watching<'a, M>>,
    observe: &'a mut dyn FnMut(EndToEndEvent),
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
    fn ended(&mut self, step: usize, objective: &mut NextTokens<'_, M>) -> Result<()> {
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

/// Seconds since a start, including earlier attempts.
struct Clock {
    before: f64,
    started: Instant,
}

impl Clock {
    fn new(before: f64) -> Self {
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
