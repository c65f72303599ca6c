use crate::runs::{Metric, MetricEvent};

/// How far a run has come, from its events.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// finished share of the work, from 0 to 1; `None` before the first unit
    pub done: Option<f64>,
    /// seconds left at the speed since the last start; `None` before an estimate is possible
    pub seconds_left: Option<f64>,
    /// seconds since 1970 of the last event
    pub last: Option<f64>,
    /// bytes of main memory at the last event
    pub resident_bytes: Option<u64>,
    /// bytes of main memory at most
    pub peak_resident_bytes: Option<u64>,
}

/// The progress of a run.
///
/// Quantizing counts weights: each once for its layer and, with fine-tuning, once for its block, as the
/// program's own progress does. End-to-end fine-tuning counts steps; patience may end it sooner.
pub fn progress(metrics: &[Metric]) -> Progress {
    let last = metrics.last();
    let counted = Counted::of(metrics);
    let done = counted
        .total
        .filter(|&total| total > 0.0)
        .map(|total| counted.done / total);
    let rate = counted
        .clock
        .map(|(from, to)| (counted.done - counted.before) / (to - from))
        .filter(|rate| *rate > 0.0 && rate.is_finite());
    let left = counted.total.zip(rate);
    Progress {
        done: done.map(|done| done.clamp(0.0, 1.0)),
        seconds_left: left.map(|(total, rate)| ((total - counted.done) / rate).max(0.0)),
        last: last.and_then(|metric| metric.unix_seconds),
        resident_bytes: last.and_then(|metric| metric.resident_bytes),
        peak_resident_bytes: metrics
            .iter()
            .filter_map(|metric| metric.peak_resident_bytes)
            .max(),
    }
}

/// Units of work.
#[derive(Default)]
struct Counted {
    done: f64,
    /// of these, before this attempt
    before: f64,
    total: Option<f64>,
    /// start of this attempt and its last event
    clock: Option<(f64, f64)>,
}

impl Counted {
    fn of(metrics: &[Metric]) -> Self {
        let mut counted = Self::default();
        let mut blocks: Vec<u64> = Vec::new();
        let mut tuned = false;
        for metric in metrics {
            let mut begins = false;
            match &metric.event {
                MetricEvent::Start { parameters, finetune } => {
                    blocks.clone_from(parameters);
                    tuned = *finetune;
                    let passes = if tuned { 2.0 } else { 1.0 };
                    counted = Self {
                        total: Some(passes * parameters.iter().sum::<u64>() as f64),
                        ..Self::default()
                    };
                    begins = true;
                }
                MetricEvent::Resumed { block } => {
                    let passes = if tuned { 2.0 } else { 1.0 };
                    counted.done += passes * blocks.get(*block).copied().unwrap_or(0) as f64;
                    counted.before = counted.done;
                    begins = true;
                }
                MetricEvent::Layer { summary } => counted.done += summary.parameters as f64,
                MetricEvent::Block { report, .. } => {
                    if tuned {
                        counted.done += blocks.get(report.block).copied().unwrap_or(0) as f64;
                    }
                }
                MetricEvent::Step {
                    epoch,
                    step,
                    steps: Some(steps),
                    epochs: Some(epochs),
                    ..
                } => {
                    let done = ((epoch - 1) * steps + step) as f64;
                    // A jump is the start of an attempt, or of training after quantizing.
                    if counted.total != Some((steps * epochs) as f64) || done != counted.done + 1.0 {
                        counted = Self {
                            before: done,
                            ..Self::default()
                        };
                        begins = true;
                    }
                    counted.total = Some((steps * epochs) as f64);
                    counted.done = done;
                }
                MetricEvent::Step { .. } | MetricEvent::Epoch { .. } | MetricEvent::Evaluation { .. } => {}
            }
            if let Some(now) = metric.unix_seconds {
                let from = if begins {
                    now
                } else {
                    counted.clock.map_or(now, |(from, _)| from)
                };
                counted.clock = Some((from, now));
            }
        }
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64, event: MetricEvent) -> Metric {
        Metric {
            event,
            unix_seconds: Some(seconds),
            resident_bytes: Some(seconds as u64),
            peak_resident_bytes: Some(2 * seconds as u64),
        }
    }

    fn step(epoch: usize, step: usize) -> MetricEvent {
        MetricEvent::Step {
            epoch,
            step,
            steps: Some(10),
            epochs: Some(2),
            loss: 1.0,
            lr: 0.1,
            groups_changed: None,
        }
    }

    #[test]
    fn steps_tell_the_time_left_and_an_attempt_starts_a_new_clock() {
        let first = [
            at(100.0, step(1, 1)),
            at(102.0, step(1, 2)),
            at(104.0, step(1, 3)),
        ];
        let found = progress(&first);
        assert_eq!(found.done, Some(0.15));
        assert_eq!(found.seconds_left, Some(34.0));
        assert_eq!(
            (found.resident_bytes, found.peak_resident_bytes),
            (Some(104), Some(208))
        );
        // Continued a day later, from the state after step 2, at half the speed.
        let resumed = [&first[..], &[at(90000.0, step(1, 3)), at(90004.0, step(1, 4))]].concat();
        assert_eq!(progress(&resumed).seconds_left, Some(64.0));
    }

    #[test]
    fn quantizing_counts_blocks_that_were_taken_over_as_done_but_not_as_speed() {
        let start = MetricEvent::Start {
            parameters: vec![100, 100],
            finetune: true,
        };
        let metrics = [at(10.0, start), at(11.0, MetricEvent::Resumed { block: 0 })];
        let found = progress(&metrics);
        assert_eq!((found.done, found.seconds_left), (Some(0.5), None));
        assert_eq!(progress(&[]).done, None);
    }
}
