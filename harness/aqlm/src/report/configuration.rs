use maud::{Markup, html};

use super::table::{Cell, folded, not_recorded, table};
use aqlm_engine::report::{ReportedRun, Setting, settings};

/// What runs were asked to do, and where: the settings that differ first, then all.
pub(super) fn configuration(runs: &[ReportedRun]) -> Markup {
    let described: Vec<ReportedRun> = runs
        .iter()
        .filter(|run| run.description.is_some())
        .cloned()
        .collect();
    if described.is_empty() {
        return html! {
            section id="configuration" {
                h2 { "Configuration and environment" }
                (not_recorded("Configuration", "No folder has a run.json."))
            }
        };
    }
    let all = settings(&described);
    let mut headings = vec!["setting".to_owned()];
    headings.extend(described.iter().map(|run| run.name.clone()));
    // Every command names its own folder, which says nothing.
    let differing: Vec<&Setting> = all
        .iter()
        .filter(|setting| setting.differs() && setting.name != "command")
        .collect();
    let row = |setting: &Setting| -> Vec<Cell> {
        let mut cells = vec![Cell::text(&setting.name)];
        let marked = setting.differs();
        let cell = |value: &Option<String>| {
            let value = value.as_ref();
            value.map_or_else(Cell::absent, |value| number_or_text(value).marked(marked))
        };
        cells.extend(setting.values.iter().map(cell));
        cells
    };
    let rows_of = |settings: &[&Setting]| settings.iter().map(|setting| row(setting)).collect::<Vec<_>>();
    let whole: Vec<&Setting> = all.iter().filter(|setting| setting.name != "command").collect();
    let commands = all.iter().find(|setting| setting.name == "command");
    html! {
        section id="configuration" {
            h2 { "Configuration and environment" }
            @if described.len() > 1 {
                h3 { "What differs" }
                @if differing.is_empty() {
                    p { "Nothing differs but the command." }
                } @else {
                    (table("differences", &headings, &rows_of(&differing)))
                }
            }
            (folded("settings", "All settings", &headings, &rows_of(&whole)))
            @if let Some(commands) = commands {
                details id="commands-fold" {
                    summary { "Commands" }
                    @for (run, command) in described.iter().zip(&commands.values) {
                        p { strong { (run.name) } }
                        pre { (command.as_deref().unwrap_or("not recorded")) }
                    }
                }
            }
        }
    }
}

fn number_or_text(value: &str) -> Cell {
    match value.parse::<f64>() {
        Ok(number) if number.is_finite() => Cell::number(number, value),
        _ => Cell::shortened(value),
    }
}
