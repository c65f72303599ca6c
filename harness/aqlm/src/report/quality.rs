use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::chart::{Chart, Series};
use super::table::{Cell, figure, folded};
use super::words::number;
use aqlm_engine::report::{PaperPoint, ReportedRun, RunKind, front, paper_points};
use aqlm_formats::Result;

/// Perplexity and divergence against bits, with the Pareto front and the paper's figures.
pub(super) fn quality(runs: &[ReportedRun]) -> Result<Markup> {
    let paper = paper_points()?;
    let model = runs.iter().find_map(|run| run.model.name.clone());
    let columns: BTreeSet<&String> = runs.iter().flat_map(|run| run.evaluations.keys()).collect();
    let texts: BTreeSet<&String> = runs
        .iter()
        .flat_map(|run| run.divergences.iter().map(|one| &one.name))
        .collect();
    let mut charts = Vec::new();
    for column in columns {
        let title = format!("Perplexity ({column}) against bits per weight");
        charts.push((perplexity(runs, &paper, model.as_deref(), column).svg()?, title));
    }
    for text in texts {
        let title = format!("Divergence from the dense model ({text}) against bits per weight");
        charts.push((divergence(runs, text).svg()?, title));
    }
    let title = "Loss above the dense model's against bits per weight, with the paper's models";
    charts.push((relative(runs, &paper).svg()?, title.into()));
    Ok(html! {
        section id="quality" {
            h2 { "Quality and size" }
            @if charts.len() == 1 {
                p.missing {
                    "Perplexity and divergence: not recorded. Put " code { "eval-COLUMN.json" } " and "
                    code { "divergence-NAME.json" } " into the run folders (docs/report.md)."
                }
            }
            @for (svg, title) in charts {
                (figure(svg, &title, "No run has both figures."))
            }
            p.note {
                "The line joins the runs that no other run beats in both coordinates. In the last chart models and \
                 texts differ, so only the shapes of the curves compare."
            }
            (paper_table(&paper))
        }
    })
}

/// Quantized runs with bits and a figure: index, bits, figure, standard error.
fn measured(
    runs: &[ReportedRun],
    figure: impl Fn(&ReportedRun) -> Option<(f64, f64)>,
) -> Vec<(usize, f64, f64, f64)> {
    let quantized = runs
        .iter()
        .enumerate()
        .filter(|(_, run)| run.kind != RunKind::Dense);
    quantized
        .filter_map(|(index, run)| {
            let (value, error) = figure(run)?;
            Some((index, run.bits?, value, error))
        })
        .collect()
}

/// A chart of the runs with their front.
fn of_runs(y: &str, runs: &[ReportedRun], measured: &[(usize, f64, f64, f64)]) -> Chart {
    let series = measured.iter().map(|&(index, bits, value, error)| Series {
        errors: vec![error],
        ..Series::points(&runs[index].name, index, vec![(bits, value)])
    });
    let mut chart = Chart::new(["bits per weight", y], series.collect());
    let points: Vec<(f64, f64)> = measured
        .iter()
        .map(|&(_, bits, value, _)| (bits, value))
        .collect();
    let best = front(&points).into_iter().map(|at| points[at]).collect();
    chart.front = Some(("Pareto front".into(), best));
    chart
}

/// Adds points of others, one series for each model and method, with markers behind those of `runs` runs.
fn add(chart: &mut Chart, runs: usize, points: &[&PaperPoint], y: impl Fn(&PaperPoint) -> f64) {
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for point in points {
        let name = match point.method.as_str() {
            "official code" => format!("official, {}", point.model),
            method => format!("paper, {}, {method}", point.model),
        };
        series.entry(name).or_default().push((point.bits, y(point)));
    }
    for (at, (name, mut points)) in series.into_iter().enumerate() {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart.series.push(Series::line(&name, runs + at, points));
    }
}

fn perplexity(runs: &[ReportedRun], paper: &[PaperPoint], model: Option<&str>, column: &str) -> Chart {
    let figure = |run: &ReportedRun| Some((run.evaluations.get(column)?.perplexity, 0.0));
    let mut chart = of_runs("perplexity", runs, &measured(runs, figure));
    let same: Vec<&PaperPoint> = paper
        .iter()
        .filter(|point| Some(point.model.as_str()) == model && point.column == column)
        .collect();
    add(&mut chart, runs.len(), &same, |point| point.perplexity);
    chart.level = dense(runs, column).map(|perplexity| ("dense model".into(), perplexity));
    chart.log_y = true;
    chart
}

fn divergence(runs: &[ReportedRun], text: &str) -> Chart {
    let figure = |run: &ReportedRun| {
        let found = run.divergences.iter().find(|one| one.name == text)?;
        let kl = found.record.divergence.kl;
        Some((kl.value, kl.error))
    };
    let mut chart = of_runs("KL divergence in nats", runs, &measured(runs, figure));
    let floor = runs
        .iter()
        .flat_map(|run| &run.divergences)
        .filter(|one| one.name == text)
        .find_map(|one| one.record.noise_floor.as_ref())
        .map(|floor| floor.kl.value);
    chart.level = floor.map(|floor| ("noise floor (bf16)".into(), floor));
    chart.log_y = true;
    chart
}

/// Loss above the dense model's, where the dense model was measured on the same text.
fn relative(runs: &[ReportedRun], paper: &[PaperPoint]) -> Chart {
    let figure = |run: &ReportedRun| {
        let measured = run.divergences.first().map(|one| one.record.divergence.ln_ratio);
        measured.map(|ratio| (ratio.value, ratio.error)).or_else(|| {
            let (column, record) = run.evaluations.first_key_value()?;
            Some(((record.perplexity / dense(runs, column)?).ln(), 0.0))
        })
    };
    let y = "ln(perplexity / dense perplexity)";
    let mut chart = of_runs(y, runs, &measured(runs, figure));
    let known: Vec<&PaperPoint> = paper
        .iter()
        .filter(|point| {
            let tuned_alike = ["AQLM", "AQLM*", "official code"].contains(&point.method.as_str());
            tuned_alike && point.column != "c4" && !point.bits.is_nan()
        })
        .collect();
    add(&mut chart, runs.len(), &known, |point| point.ln_ratio);
    chart.log_y = true;
    chart
}

/// Perplexity of the dense model: of its own folder, or as a divergence measured it on the same text.
fn dense(runs: &[ReportedRun], column: &str) -> Option<f64> {
    let mut own = runs.iter().filter(|run| run.kind == RunKind::Dense);
    let own = own.find_map(|run| run.evaluations.get(column));
    own.map(|record| record.perplexity).or_else(|| {
        runs.iter().find_map(|run| {
            let record = run.evaluations.get(column)?;
            let same = run.divergences.iter().find(|one| {
                let other = &one.record;
                (&other.data, other.ctx, other.protocol, other.windows)
                    == (&record.data, record.ctx, record.protocol, record.windows)
            })?;
            Some(same.record.divergence.dense_perplexity.value)
        })
    })
}

fn paper_table(paper: &[PaperPoint]) -> Markup {
    let headings = [
        "model",
        "method",
        "text",
        "bits",
        "perplexity",
        "ln ratio to dense",
        "source",
    ];
    let rows: Vec<Vec<Cell>> = paper
        .iter()
        .map(|point| {
            vec![
                Cell::text(&point.model),
                Cell::text(&point.method),
                Cell::text(&point.column),
                Cell::number(point.bits, number(point.bits)),
                Cell::number(point.perplexity, number(point.perplexity)),
                Cell::number(point.ln_ratio, number(point.ln_ratio)),
                Cell::text(&point.source),
            ]
        })
        .collect();
    folded(
        "paper-table",
        "The paper's figures and those of the official code",
        &headings.map(str::to_owned),
        &rows,
    )
}
