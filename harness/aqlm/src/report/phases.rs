use maud::{Markup, html};

use super::bars::stacked;
use super::table::{Cell, figure, folded};
use super::words::duration;
use aqlm_engine::report::ReportedRun;
use aqlm_engine::runs::PhaseSeconds;
use aqlm_formats::Result;

/// Time by phase.
pub(super) fn phases(runs: &[ReportedRun]) -> Result<Markup> {
    let known: Vec<(&ReportedRun, Option<PhaseSeconds>)> =
        runs.iter().map(|run| (run, run.phase_seconds())).collect();
    let end_to_end = |run: &ReportedRun| run.end_to_end.as_ref().map_or(0.0, |tuning| tuning.seconds);
    let names: Vec<&str> = PhaseSeconds::default()
        .named()
        .map(|(name, _)| name)
        .into_iter()
        .chain(["end to end"])
        .collect();
    let bars: Vec<(String, Vec<f64>)> = known
        .iter()
        .filter(|(run, phases)| phases.is_some() || end_to_end(run) > 0.0)
        .map(|(run, phases)| {
            let seconds = phases.unwrap_or_default().named().map(|(_, seconds)| seconds);
            (
                run.name.clone(),
                seconds.into_iter().chain([end_to_end(run)]).collect(),
            )
        })
        .collect();
    let mut headings = vec!["run".to_owned()];
    headings.extend(names.iter().map(|&name| name.to_owned()));
    let rows: Vec<Vec<Cell>> = known
        .iter()
        .map(|(run, phases)| {
            let mut row = vec![Cell::text(&run.name)];
            for at in 0..names.len() - 1 {
                row.push(Cell::maybe(phases.map(|phases| phases.named()[at].1), duration));
            }
            row.push(Cell::maybe(
                run.end_to_end.as_ref().map(|tuning| tuning.seconds),
                duration,
            ));
            row
        })
        .collect();
    let title = "Time of each run by phase";
    let why = "Runs of earlier versions do not have it.";
    let missing: Vec<&str> = known
        .iter()
        .filter(|(run, phases)| phases.is_none() && !run.blocks.is_empty())
        .map(|(run, _)| run.name.as_str())
        .collect();
    Ok(html! {
        section id="phases" {
            h2 { "Time" }
            (figure(stacked(&names, &bars)?, title, why))
            @if !missing.is_empty() && !bars.is_empty() {
                p.missing { "Time by phase: not recorded by " (missing.join(", ")) "." }
            }
            (folded("phase-table", "Time by phase", &headings, &rows))
        }
    })
}
