use std::collections::BTreeMap;

use maud::{Markup, html};

use super::chart::{Chart, Series};
use super::table::figure;
use aqlm_engine::report::ReportedRun;
use aqlm_engine::runs::MetricEvent;
use aqlm_formats::Result;

/// A figure of an event, with the number of steps taken.
type Measured = fn(&MetricEvent) -> Option<(usize, f64)>;

const KL: Measured = |event| match *event {
    MetricEvent::Evaluation { step, kl, .. } => Some((step, kl?)),
    _ => None,
};

const PERPLEXITY: Measured = |event| match *event {
    MetricEvent::Evaluation { step, perplexity, .. } => Some((step, perplexity?)),
    _ => None,
};

/// Losses of end-to-end fine-tuning by step and epoch, and what was measured on an evaluation text.
pub(super) fn end_to_end(runs: &[ReportedRun]) -> Result<Markup> {
    let steps: Vec<Series> = series(runs, |run| {
        // A resumed run repeats steps; the later one counts.
        let mut by_step: BTreeMap<(usize, usize), f64> = BTreeMap::new();
        for metric in &run.metrics {
            if let MetricEvent::Step {
                epoch, step, loss, ..
            } = metric.event
            {
                by_step.insert((epoch, step), loss);
            }
        }
        (1..).map(f64::from).zip(by_step.into_values()).collect()
    });
    let epochs = series(runs, |run| {
        let losses = run.end_to_end.iter();
        let all = losses.flat_map(|losses| std::iter::once(losses.before).chain(losses.validation.clone()));
        (0..).map(f64::from).zip(all).collect()
    });
    let measured = |figure: Measured| {
        series(runs, |run| {
            let found = run.metrics.iter().filter_map(|metric| figure(&metric.event));
            let by_step: BTreeMap<usize, f64> = found.collect();
            by_step
                .into_iter()
                .map(|(step, value)| (step as f64, value))
                .collect()
        })
    };
    let (kl, perplexity) = (measured(KL), measured(PERPLEXITY));
    if [&steps, &epochs, &kl, &perplexity]
        .iter()
        .all(|series| series.is_empty())
    {
        return Ok(html! {});
    }
    let chart = |[x, y]: [&str; 2], series: Vec<Series>, title: &str, absent: &str| -> Result<Markup> {
        Ok(figure(Chart::new([x, y], series).svg()?, title, absent))
    };
    let nats = "nats per token";
    Ok(html! {
        section id="end-to-end" {
            h2 { "End-to-end fine-tuning" }
            (chart(
                ["step", nats],
                steps,
                "Loss of each step of end-to-end fine-tuning",
                "metrics.jsonl is absent.",
            )?)
            (chart(
                ["epoch", nats],
                epochs,
                "Validation loss after each epoch of end-to-end fine-tuning",
                "No run has finished.",
            )?)
            @if !kl.is_empty() {
                (chart(["steps taken", nats], kl, "Divergence from the dense model on the evaluation text", "")?)
            }
            @if !perplexity.is_empty() {
                (chart(["steps taken", "perplexity"], perplexity, "Perplexity of the evaluation text", "")?)
            }
        }
    })
}

/// A line for each run that has points. Points are marked where there are few.
fn series(runs: &[ReportedRun], points: impl Fn(&ReportedRun) -> Vec<(f64, f64)>) -> Vec<Series> {
    let lines = runs.iter().enumerate().map(|(index, run)| {
        let line = Series::line(&run.name, index, points(run));
        Series {
            marked: line.points.len() <= 60,
            ..line
        }
    });
    lines.filter(|line| !line.points.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_evaluations_have_figures_and_what_is_not_known_has_none() {
        let event = MetricEvent::Evaluation {
            step: 7,
            perplexity: Some(9.5),
            kl: None,
            seconds: 1.0,
        };
        assert_eq!((PERPLEXITY(&event), KL(&event)), (Some((7, 9.5)), None));
        let epoch = MetricEvent::Epoch {
            epoch: 1,
            train_loss: 0.5,
            loss: 0.5,
        };
        assert_eq!((PERPLEXITY(&epoch), KL(&epoch)), (None, None));
    }
}
