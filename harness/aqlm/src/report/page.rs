use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::codebooks::codebooks;
use super::configuration::configuration;
use super::end_to_end::end_to_end;
use super::losses::losses;
use super::overview::overview;
use super::phases::phases;
use super::quality::quality;
use super::samples::samples;
use super::tasks::tasks;
use super::words::{bytes, duration};
use aqlm_engine::report::{ReportedRun, RunState, progress};
use aqlm_formats::Result;

const LOOK: &str = include_str!("look.css");
const SORT: &str = include_str!("sort.js");
const REFRESH: &str = include_str!("refresh.js");

/// Sections of the page: id and title.
const SECTIONS: [(&str, &str); 10] = [
    ("overview", "Runs"),
    ("quality", "Quality and size"),
    ("losses", "Errors"),
    ("heat", "Blocks"),
    ("phases", "Time"),
    ("codebooks", "Codebooks"),
    ("scatter", "Codewords"),
    ("configuration", "Configuration"),
    ("tasks", "Tasks"),
    ("samples", "Texts"),
];

/// Whether the page is a file, or asks a server for news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// a file
    File,
    /// served at this moment, in seconds since 1970
    Served(u64),
}

/// The page of some runs.
///
/// # Errors
/// `Internal` when a chart cannot be drawn.
pub(crate) fn page(runs: &[ReportedRun], liveness: Liveness) -> Result<String> {
    let model = runs.iter().find_map(|run| run.model.name.clone());
    let model = model.or_else(|| runs.first().map(|run| run.model.path.clone()));
    let title = format!("aqlm report: {}", model.unwrap_or_default());
    let is_served = liveness != Liveness::File;
    let body = html! {
        (running(runs, liveness))
        (overview(runs))
        (quality(runs)?)
        (losses(runs)?)
        (end_to_end(runs)?)
        (phases(runs)?)
        (codebooks(runs)?)
        (configuration(runs))
        (tasks(runs))
        (samples(runs))
    }
    .into_string();
    let shown = SECTIONS
        .iter()
        .filter(|(id, _)| body.contains(&format!("<section id=\"{id}\"")));
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Without an icon of its own, a browser asks the server for one.
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(LOOK)) }
            }
            body {
                header {
                    h1 { (title) }
                    nav { @for (id, name) in shown { a href={ "#" (id) } { (name) } } }
                }
                main { (PreEscaped(&body)) }
                footer {
                    p.note { "aqlm " (env!("CARGO_PKG_VERSION")) ", " (runs.len()) " runs. This page needs no network." }
                }
                script { (PreEscaped(SORT)) }
                @if is_served { script { (PreEscaped(REFRESH)) } }
            }
        }
    };
    Ok(document.into_string())
}

/// How far unfinished runs have come.
fn running(runs: &[ReportedRun], liveness: Liveness) -> Markup {
    let unfinished = || runs.iter().filter(|run| run.state == RunState::Unfinished);
    html! {
        @if unfinished().next().is_some() {
            section id="running" {
                h2 { "Unfinished runs" }
                @for run in unfinished() {
                    @let now = progress(&run.metrics);
                    p {
                        strong { (run.name) } ": "
                        @if let Some(done) = now.done {
                            progress max="1" value=(format!("{done:.3}")) {} " " (format!("{:.0} %", 100.0 * done))
                        } @else {
                            span.missing { "progress not recorded" }
                        }
                        ", time left: "
                        @if let Some(left) = now.seconds_left { (duration(left)) } @else {
                            span.missing { "not known yet" }
                        }
                        ", memory: "
                        @if let Some(memory) = now.resident_bytes { (bytes(memory)) } @else {
                            span.missing { "not recorded" }
                        }
                        @if let Some(peak) = now.peak_resident_bytes { " (at most " (bytes(peak)) ")" }
                        @if let (Liveness::Served(at), Some(last)) = (liveness, now.last) {
                            ", last event " (duration((at as f64 - last).max(0.0))) " ago"
                        }
                    }
                }
                p.note { "The time left assumes the speed since the run started or continued. Memory is the process's \
                          main memory at its last event." }
            }
        }
    }
}
