use std::collections::BTreeSet;

use maud::{Markup, html};

use super::table::{Cell, table};
use super::words::{bytes, duration, number};
use aqlm_engine::report::{ReportedRun, RunKind, RunState, progress};

/// One row for each run.
pub(super) fn overview(runs: &[ReportedRun]) -> Markup {
    let columns: BTreeSet<&String> = runs.iter().flat_map(|run| run.evaluations.keys()).collect();
    let texts: BTreeSet<&String> = runs
        .iter()
        .flat_map(|run| run.divergences.iter().map(|one| &one.name))
        .collect();
    let mut headings: Vec<String> = [
        "run",
        "state",
        "made by",
        "scheme",
        "bits per weight",
        "dB above limit",
    ]
    .map(str::to_owned)
    .into();
    headings.extend(columns.iter().map(|column| format!("perplexity, {column}")));
    for text in &texts {
        headings.push(format!("KL, {text}"));
        headings.push(format!("same top token, {text}"));
    }
    headings.extend(["model size", "time", "peak memory", "backend", "device"].map(str::to_owned));
    let rows: Vec<Vec<Cell>> = runs.iter().map(|run| row(run, &columns, &texts)).collect();
    html! {
        section id="overview" {
            h2 { "Runs" }
            (table("overview-table", &headings, &rows))
            p.note {
                "Bits count codes, codebooks and scales of quantized weights. KL is the mean divergence from the dense \
                 model in nats, with its standard error. A click on a heading sorts a table."
            }
        }
    }
}

fn row(run: &ReportedRun, columns: &BTreeSet<&String>, texts: &BTreeSet<&String>) -> Vec<Cell> {
    let dense = run.kind == RunKind::Dense;
    let or_dense = |cell: Cell| if dense { Cell::text("dense") } else { cell };
    let described = |field: &str| {
        let value = run
            .description
            .as_ref()
            .and_then(|description| description.get(field)?.as_str());
        value.map_or_else(Cell::missing, Cell::text)
    };
    let state = match run.state {
        RunState::Finished => Cell::text("finished"),
        RunState::Unfinished => Cell::text(match progress(&run.metrics).done {
            Some(done) => format!("unfinished, {:.0} %", 100.0 * done),
            None => "unfinished".into(),
        })
        .marked(true),
    };
    let mut cells = vec![
        Cell::text(&run.name),
        state,
        Cell::text(match run.kind {
            RunKind::Quantize if run.end_to_end.is_some() => "quantize, end to end",
            RunKind::Quantize => "quantize",
            RunKind::Finetune => "finetune",
            RunKind::Dense => "the dense model",
        }),
        or_dense(
            run.scheme
                .map_or_else(Cell::missing, |scheme| Cell::text(scheme.to_string())),
        ),
        or_dense(Cell::maybe(run.bits, |bits| format!("{bits:.3}"))),
        or_dense(Cell::maybe(run.limit_db, |limit| format!("{limit:.2}"))),
    ];
    for column in columns {
        let perplexity = run.evaluations.get(*column).map(|record| record.perplexity);
        cells.push(Cell::maybe(perplexity, number));
    }
    for text in texts {
        let found = run.divergences.iter().find(|one| &one.name == *text);
        let found = found.map(|one| &one.record.divergence);
        let (kl, same) = found.map_or_else(
            || (Cell::missing(), Cell::missing()),
            |found| {
                let (kl, same) = (found.kl, found.same_top.value);
                (
                    Cell::number(kl.value, format!("{} ± {}", number(kl.value), number(kl.error))),
                    Cell::number(same, format!("{:.1} %", 100.0 * same)),
                )
            },
        );
        cells.extend([or_dense(kl), or_dense(same)]);
    }
    let size = run.bytes.map(|[_, after]| after as f64);
    let peak = progress(&run.metrics)
        .peak_resident_bytes
        .map(|bytes| bytes as f64);
    let in_bytes = |value: f64| bytes(value as u64);
    cells.extend([
        Cell::maybe(size, in_bytes),
        Cell::maybe(run.seconds, duration),
        Cell::maybe(peak, in_bytes),
        described("backend"),
        described("device"),
    ]);
    cells
}
