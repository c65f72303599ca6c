use std::path::Path;
use std::time::{Duration, Instant};

use aqlm_vocabulary::{ModelWeights, Purpose, StreamKey, Target, shuffle};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::EndToEndSettings;
use super::teacher::{Said, Teacher};
use crate::RunFolder;
use crate::backends::ModelTuning;
use crate::runs::tuning_journal::{Checkpoint, Journal, StateFile};
use aqlm_formats::model::{Model, OuterWeights, WriteOptions, Written, write_whole};
use aqlm_formats::{Error, Result};

/// What `run.json` says of a run of end-to-end fine-tuning besides models, data and backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndToEndRun {
    /// SHA-256 of the teacher's weights, where there is one
    pub teacher_sha256: Option<String>,
    /// everything else that decides the result
    pub settings: EndToEndSettings,
}

/// What happens, as it happens. Losses are means over positions, in nats.
#[derive(Debug, Clone, PartialEq)]
pub enum EndToEndEvent {
    /// what the teacher says of another sequence is stored
    TeacherStored {
        /// sequences stored
        done: usize,
        /// of how many
        sequences: usize,
    },
    /// an earlier attempt is continued
    Resumed {
        /// epochs finished
        epoch: usize,
        /// steps taken in the epoch after them
        step: usize,
    },
    /// a state file in the run folder is not as it was written; the one before it is tried
    StateDamaged(String),
    /// a step was taken
    Step {
        /// epoch, from 1
        epoch: usize,
        /// step within the epoch, from 1
        step: usize,
        /// steps in each epoch
        steps: usize,
        /// tokens in the step
        tokens: usize,
        /// mean loss on its sequences before it
        loss: f64,
    },
    /// the model was judged, before the first epoch (0) or after one
    Judged {
        /// epoch, from 1
        epoch: usize,
        /// mean of the training losses before each step; `None` before the first
        train_loss: Option<f64>,
        /// mean loss on the validation sequences (the training ones where there are none)
        loss: f64,
    },
}

/// How a run went. Losses are means over positions, in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndToEndReport {
    /// loss on the validation sequences before the first step (the training ones where there are none)
    pub loss_before: f64,
    /// the same for the state that was kept
    pub loss_after: f64,
    /// training loss of each epoch
    pub train_losses: Vec<f64>,
    /// validation loss after each epoch
    pub validation_losses: Vec<f64>,
    /// epoch whose end state was kept; 0 is the state before the first step
    pub best_epoch: usize,
    /// mean probability of the teacher's tokens that were not stored, where only the likeliest were
    pub teacher_rest: Option<f64>,
    /// steps taken
    pub steps: usize,
    /// tokens trained on, every epoch counted
    pub tokens: u64,
    /// seconds of training and judging, those of earlier attempts included; not of storing the teacher's
    /// states
    pub seconds: f64,
}

/// Where training stopped because numbers were not finite any more.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// epoch, from 1
    pub epoch: usize,
    /// step within the epoch, from 1
    pub step: usize,
    /// the loss, as text because JSON has no NaN
    pub loss: String,
    /// the first parameter or layer that is not finite
    pub layer: String,
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuning {
    /// how it went
    pub report: EndToEndReport,
    /// the best model, at the backend's precision
    pub weights: ModelWeights,
    /// `None` when it ran to its end
    pub divergence: Option<Divergence>,
}

/// Trains what the settings select of a quantized model on the teacher's next-token distributions, or on the
/// text itself, codes fixed (paper appendix A).
///
/// Adam on the mean loss over the positions of `settings.batch` sequences, in an order that the seed decides
/// anew each epoch. The last `settings.validation` of `sequences` judge after every epoch (without any, the
/// training ones do); the best state is kept and training stops after `settings.patience` epochs without a
/// better one. A state is saved after every epoch and whenever `save_every` has passed, and a run that is
/// started again goes on from the last whole one to the same bytes.
///
/// A loss that is not finite ends the training with the best state so far, and is reported, not an error.
///
/// # Errors
/// What the backend refuses, unreadable weights, a run folder that can't be read or written.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a different thing, and a struct would only rename them"
)]
pub fn end_to_end<B: ModelTuning>(
    backend: &B,
    student: &Model,
    teacher: Option<&Model>,
    sequences: &[&[u32]],
    settings: &EndToEndSettings,
    folder: &RunFolder,
    save_every: Duration,
    observe: &mut dyn FnMut(EndToEndEvent),
) -> Result<Tuning> {
    let teacher = Teacher::prepare(backend, teacher, sequences, settings, folder.path(), observe)?;
    let mut tuner = backend.tuner(&student.weights()?, settings.tuned, settings.adam)?;
    let untouched = backend.state(&tuner);
    let training = sequences.len() - settings.validation;
    let judges: Vec<usize> = if settings.validation > 0 {
        (training..sequences.len()).collect()
    } else {
        (0..training).collect()
    };
    let pass = Pass {
        backend,
        teacher: &teacher,
        sequences,
        batch: settings.batch,
    };

    let mut journal = Journal::open(folder.path())?;
    let mut now = if let Some((checkpoint, state)) = journal.last(&untouched, observe)? {
        backend.restore(&mut tuner, &state)?;
        observe(EndToEndEvent::Resumed {
            epoch: checkpoint.epoch,
            step: checkpoint.step,
        });
        checkpoint
    } else {
        let loss = pass.judge(&mut tuner, &judges)?;
        observe(EndToEndEvent::Judged {
            epoch: 0,
            train_loss: None,
            loss,
        });
        Checkpoint {
            epoch: 0,
            step: 0,
            epoch_total: 0.0,
            state: journal.write("state_0_0", &untouched)?,
            best: None,
            report: EndToEndReport {
                loss_before: loss,
                loss_after: loss,
                train_losses: Vec::new(),
                validation_losses: Vec::new(),
                best_epoch: 0,
                teacher_rest: teacher.rest(),
                steps: 0,
                tokens: 0,
                seconds: 0.0,
            },
        }
    };
    let mut divergence = None;
    if !now.report.loss_before.is_finite() {
        let all: Vec<&[u32]> = judges.iter().map(|&index| sequences[index]).collect();
        divergence = Some(diverged(backend, &mut tuner, &all, 0, 0, now.report.loss_before)?);
    }

    let steps = training.div_ceil(settings.batch);
    let mut rng = StreamKey {
        seed: settings.seed,
        // one past the last block: a stream that no block draws from
        block: student.config().blocks.len(),
        layer: None,
    }
    .stream(Purpose::Minibatches);
    let mut clock = Clock::new(now.report.seconds);
    let mut saved = Instant::now();
    let mut order = Vec::new();
    let mut shuffled = 0;
    while divergence.is_none()
        && now.epoch < settings.epochs
        && (now.epoch == now.report.best_epoch
            || now.epoch - now.report.best_epoch < settings.patience.max(1))
    {
        let epoch = now.epoch + 1;
        // a resumed run draws the orders of the epochs before again
        while shuffled < epoch {
            order = (0..training).collect::<Vec<usize>>();
            shuffle(&mut rng, &mut order);
            shuffled += 1;
        }
        for (step, batch) in order.chunks(settings.batch).enumerate().skip(now.step) {
            let (total, positions) = pass.accumulate(&mut tuner, batch)?;
            let loss = total / positions as f64;
            if !loss.is_finite() {
                let batch: Vec<&[u32]> = batch.iter().map(|&index| sequences[index]).collect();
                divergence = Some(diverged(backend, &mut tuner, &batch, epoch, step + 1, loss)?);
                break;
            }
            let factor = settings
                .schedule
                .factor((epoch - 1) * steps + step, settings.epochs * steps);
            backend.step(&mut tuner, settings.lr * factor);
            let tokens = batch.len() * settings.seqlen;
            now.step = step + 1;
            now.epoch_total += total;
            now.report.steps += 1;
            now.report.tokens += tokens as u64;
            now.report.seconds = clock.seconds();
            folder.metric(&json!({
                "event": "step", "epoch": epoch, "step": step + 1, "loss": loss, "lr": settings.lr * factor,
            }))?;
            observe(EndToEndEvent::Step {
                epoch,
                step: step + 1,
                steps,
                tokens,
                loss,
            });
            if now.step < steps && saved.elapsed() >= save_every {
                let state = backend.state(&tuner);
                // A parameter that is not finite makes the next loss so: that is where it is reported.
                if is_finite(&state) {
                    now.state = journal.write(&format!("state_{}_{}", now.epoch, now.step), &state)?;
                    journal.append(now.clone())?;
                }
                saved = Instant::now();
            }
        }
        if divergence.is_some() {
            break;
        }
        let judged = pass.judge(&mut tuner, &judges)?;
        if !judged.is_finite() {
            let all: Vec<&[u32]> = judges.iter().map(|&index| sequences[index]).collect();
            divergence = Some(diverged(backend, &mut tuner, &all, epoch, steps, judged)?);
            break;
        }
        let train_loss = now.epoch_total / pass.positions(&order) as f64;
        now.report.train_losses.push(train_loss);
        if settings.validation > 0 {
            now.report.validation_losses.push(judged);
        }
        now.epoch = epoch;
        now.step = 0;
        now.epoch_total = 0.0;
        now.state = journal.write(&format!("state_{epoch}_0"), &backend.state(&tuner))?;
        if judged < now.report.loss_after {
            now.report.loss_after = judged;
            now.report.best_epoch = epoch;
            now.best = Some(now.state.clone());
        }
        now.report.seconds = clock.seconds();
        journal.append(now.clone())?;
        saved = Instant::now();
        folder.metric(&json!({
            "event": "epoch", "epoch": epoch, "train_loss": train_loss, "loss": judged,
        }))?;
        observe(EndToEndEvent::Judged {
            epoch,
            train_loss: Some(train_loss),
            loss: judged,
        });
    }

    let best = now
        .best
        .as_ref()
        .map(|best: &StateFile| journal.read(best, &untouched));
    backend.restore(&mut tuner, &best.transpose()?.unwrap_or(untouched))?;
    Ok(Tuning {
        report: now.report,
        weights: backend.weights(&tuner),
        divergence,
    })
}

/// Writes a tuned model, rounded as a checkpoint stores it, in the layout of the model that it comes from.
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

/// Seconds since some moment, earlier attempts included.
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

    fn seconds(&mut self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }
}

/// What a pass over some of the sequences needs.
struct Pass<'a, B: ModelTuning> {
    backend: &'a B,
    teacher: &'a Teacher<B>,
    sequences: &'a [&'a [u32]],
    batch: usize,
}

impl<B: ModelTuning> Pass<'_, B> {
    /// Positions with a loss in these sequences.
    fn positions(&self, indices: &[usize]) -> usize {
        let of_sequence = |&index: &usize| {
            let tokens = self.sequences[index].len();
            match self.teacher {
                Teacher::Text => Target::NextTokens.positions(tokens),
                Teacher::Stored { .. } | Teacher::Resident { .. } => tokens,
            }
        };
        indices.iter().map(of_sequence).sum()
    }

    fn with_targets<R>(
        &self,
        indices: &[usize],
        f: impl FnOnce(&[&[u32]], &[Target<'_>]) -> Result<R>,
    ) -> Result<R> {
        let sequences: Vec<&[u32]> = indices.iter().map(|&index| self.sequences[index]).collect();
        let said = self.teacher.says(self.backend, indices, &sequences)?;
        let targets: Vec<Target<'_>> = said.iter().map(|said: &Said| self.teacher.target(said)).collect();
        f(&sequences, &targets)
    }

    /// Adds the gradients of the mean loss over these sequences; returns the sum of their losses and their
    /// positions.
    fn accumulate(&self, tuner: &mut B::Tuner, indices: &[usize]) -> Result<(f64, usize)> {
        let positions = self.positions(indices);
        let losses = self.with_targets(indices, |sequences, targets| {
            let scale = 1.0 / positions as f64;
            self.backend
                .accumulate(tuner, sequences, targets, scale, &mut |_, _, _| ())
        })?;
        Ok((losses.iter().sum(), positions))
    }

    /// Mean loss over these sequences.
    fn judge(&self, tuner: &mut B::Tuner, indices: &[usize]) -> Result<f64> {
        let mut total = 0.0;
        for batch in indices.chunks(self.batch) {
            let losses = self.with_targets(batch, |sequences, targets| {
                self.backend.losses(tuner, sequences, targets)
            })?;
            total += losses.iter().sum::<f64>();
        }
        Ok(total / self.positions(indices) as f64)
    }
}

fn is_finite(state: &aqlm_vocabulary::TuningState) -> bool {
    state
        .parameters
        .iter()
        .all(|part| part.values.iter().all(|value| value.is_finite()))
}

fn diverged<B: ModelTuning>(
    backend: &B,
    tuner: &mut B::Tuner,
    sequences: &[&[u32]],
    epoch: usize,
    step: usize,
    loss: f64,
) -> Result<Divergence> {
    let layer = backend.first_not_finite(tuner, sequences)?;
    Ok(Divergence {
        epoch,
        step,
        loss: loss.to_string(),
        layer: layer.unwrap_or_else(|| "the loss itself".into()),
    })
}
