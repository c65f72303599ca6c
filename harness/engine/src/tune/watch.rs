use std::path::Path;
use std::time::Instant;

use super::EndToEndEvent;
use super::objective::NextTokens;
use super::teacher::Teacher;
use crate::ops::TrainOps;
use crate::ranks::Ranks;
use crate::runs::MetricEvent;
use aqlm_formats::Result;
use aqlm_formats::model::Model;

/// A text on which a model is measured while it is trained. The figures are reported and decide nothing.
#[derive(Debug, Clone, Copy)]
pub struct Watch<'a> {
    /// token ids, of as many tokens as the training sequences at most
    pub windows: &'a [&'a [u32]],
    /// steps between two measurements, at least 1; the state before the first step and the last one are
    /// measured too
    pub every: usize,
}

/// The figures of a model on a text, means over positions; `None` for what is not finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures {
    perplexity: Option<f64>,
    kl: Option<f64>,
    /// how long measuring took
    pub(super) seconds: f64,
}

impl Figures {
    /// What `metrics.jsonl` says of them.
    pub(super) fn metric(&self, step: usize) -> MetricEvent {
        MetricEvent::Evaluation {
            step,
            perplexity: self.perplexity,
            kl: self.kl,
            seconds: self.seconds,
        }
    }

    pub(super) fn event(&self, step: usize) -> EndToEndEvent {
        EndToEndEvent::Evaluated {
            step,
            perplexity: self.perplexity,
            kl: self.kl,
            seconds: self.seconds,
        }
    }
}

/// A [`Watch`] with what the teacher says of its text.
pub(super) struct Watching<'a, M: TrainOps> {
    watch: Watch<'a>,
    /// the text itself, for its likelihood
    text: Teacher<M>,
    /// `None` where there is no teacher or where it is the training's own
    stored: Option<Teacher<M>>,
}

impl<'a, M: TrainOps> Watching<'a, M> {
    /// Stores what the dense model says of the windows, unless `teacher` is resident and can be asked.
    ///
    /// # Errors
    /// As [`Teacher::prepare`].
    pub(super) fn prepare(
        watch: Watch<'a>,
        machine: &M,
        dense: Option<&Model>,
        teacher: &Teacher<M>,
        run: &Path,
        ranks: &dyn Ranks,
    ) -> Result<Self> {
        let stored = match dense {
            Some(dense) if !teacher.is_resident() => {
                Some(Teacher::of_evaluation(machine, dense, watch.windows, run, ranks)?)
            }
            _ => None,
        };
        Ok(Self {
            watch,
            text: Teacher::Text,
            stored,
        })
    }

    /// Measures the state before the first step (0), and that after every step that is due.
    pub(super) fn after(&self, step: usize, objective: &mut NextTokens<'_, M>) -> Result<Option<Figures>> {
        if !step.is_multiple_of(self.watch.every.max(1)) {
            return Ok(None);
        }
        self.measure(objective).map(Some)
    }

    /// Measures the last state, unless [`Watching::after`] has.
    pub(super) fn at_end(&self, step: usize, objective: &mut NextTokens<'_, M>) -> Result<Option<Figures>> {
        if step.is_multiple_of(self.watch.every.max(1)) {
            return Ok(None);
        }
        self.measure(objective).map(Some)
    }

    fn measure(&self, objective: &mut NextTokens<'_, M>) -> Result<Figures> {
        let began = Instant::now();
        let windows = self.watch.windows;
        let own = objective.teacher;
        let teacher = self.stored.as_ref().or_else(|| own.is_resident().then_some(own));
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        let nll = objective.mean_loss(&self.text, windows)?;
        let kl = match teacher {
            Some(teacher) => Some(objective.mean_loss(teacher, windows)?),
            None => None,
        };
        Ok(Figures {
            perplexity: finite(nll.exp()),
            kl: kl.and_then(finite),
            seconds: began.elapsed().as_secs_f64(),
        })
    }
}
