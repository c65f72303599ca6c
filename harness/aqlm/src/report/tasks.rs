use maud::{Markup, html};

use super::table::{Cell, not_recorded, table};
use aqlm_engine::report::ReportedRun;
use aqlm_engine::runs::records::{MetricFigure, TaskFigures};

/// A row for each run with figures on tasks, a column for each figure of each task.
pub(super) fn tasks(runs: &[ReportedRun]) -> Markup {
    let mut figures: Vec<(&str, &str)> = Vec::new();
    for task in runs
        .iter()
        .filter_map(|run| run.tasks.as_ref())
        .flat_map(|record| &record.tasks)
    {
        for figure in &task.metrics {
            let column = (task.task.as_str(), figure.metric.as_str());
            if !figures.contains(&column) {
                figures.push(column);
            }
        }
    }
    figures.sort_unstable();
    let mut headings = vec!["run".to_owned(), "texts begin with BOS".to_owned()];
    headings.extend(figures.iter().map(|(task, metric)| format!("{task}, {metric}")));
    let rows: Vec<Vec<Cell>> = runs
        .iter()
        .filter_map(|run| {
            let record = run.tasks.as_ref()?;
            let of = |&(task, metric): &(&str, &str)| {
                let task = record.tasks.iter().find(|found| found.task == task)?;
                let figure = task.metrics.iter().find(|found| found.metric == metric)?;
                Some(cell(task, figure))
            };
            let mut row = vec![
                Cell::text(&run.name),
                Cell::text(if record.with_bos { "yes" } else { "no" }),
            ];
            row.extend(
                figures
                    .iter()
                    .map(|column| of(column).unwrap_or_else(Cell::missing)),
            );
            Some(row)
        })
        .collect();
    html! {
        section id="tasks" {
            h2 { "Tasks" }
            @if rows.is_empty() {
                (not_recorded("Figures on tasks", "Put the record of aqlm tasks into the run folders as tasks.json."))
            } @else {
                (table("task-table", &headings, &rows))
                p.note { "Mean and standard error over the documents, and how many there were." }
            }
        }
    }
}

/// A figure with its error, the documents behind it and those that do not count.
fn cell(task: &TaskFigures, figure: &MetricFigure) -> Cell {
    let estimate = &figure.estimate;
    let lost = match task.not_finite {
        0 => String::new(),
        lost => format!(", {lost} not finite"),
    };
    Cell::number(
        estimate.value,
        format!(
            "{:.4} \u{b1} {:.4} ({}{lost})",
            estimate.value, estimate.error, task.documents
        ),
    )
}
