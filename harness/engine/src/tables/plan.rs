use std::path::Path;

use super::cost::cost;
use super::grid::{Grid, quoted_line, shell};
use super::models::model;
use super::paper::PaperTable;
use super::run::check_arguments;
use crate::runs::records::{PlanCell, PlanLeftOut, PlanPhase, TablePlanRecord};
use aqlm_formats::{Error, Result};

/// Default rate of a plan, in 1e9 f32 operations per second: 64 server cores at 30 each, which is what two
/// cores with AVX-512 reached with 2x8g8 on a layer of 4096 to 4096 (69 s).
pub const DEFAULT_RATE: f64 = 1920.0;

/// The commands of a grid with estimates of time and memory at `rate` x 1e9 operations per second (a
/// multiply-add is two).
///
/// # Errors
/// Those of [`Grid::cells`]; `Argument` for a rate that is not positive.
pub fn plan(grid: &Grid, table: &PaperTable, out: &Path, rate: f64) -> Result<TablePlanRecord> {
    if !(rate.is_finite() && rate > 0.0) {
        return Err(Error::argument("rate", "a number above 0", rate.to_string()));
    }
    let shape = model(&grid.model)?;
    let evaluated: Vec<(usize, usize)> = grid
        .evaluations
        .iter()
        .map(|(column, evaluation)| {
            let known = shape.evaluations.get(column);
            // A text that the model's description does not know counts as 100 windows.
            let tokens = known.map_or(100 * evaluation.ctx, |known| known.tokens);
            (tokens, evaluation.ctx)
        })
        .collect();
    let cells = grid.cells(table, out)?;
    let planned = cells.iter().map(|cell| {
        let quantize = cell.quantize.as_ref().map(|(scheme, recipe)| (*scheme, recipe));
        let needs = cost(&shape, quantize, grid.preset, grid.seqlen, &evaluated);
        let phases: Vec<PlanPhase> = needs
            .phases
            .iter()
            .map(|work| PlanPhase {
                phase: work.phase.into(),
                multiply_adds: work.multiply_adds,
                seconds: 2.0 * work.multiply_adds / (rate * 1e9),
            })
            .collect();
        let folder = out.join(&cell.name);
        let mut commands: Vec<String> = Vec::new();
        if quantize.is_none() {
            commands.push(format!("mkdir -p {}", folder.display()));
        }
        commands.extend(cell.commands.iter().map(|command| shell(command, &folder)));
        PlanCell {
            cell: cell.name.clone(),
            row: cell.row.clone(),
            scheme: cell.quantize.as_ref().map(|(scheme, _)| *scheme),
            bits: quantize.map(|(scheme, _)| shape.bits_per_parameter(scheme)),
            commands,
            seconds: phases.iter().map(|phase| phase.seconds).sum(),
            phases,
            memory_bytes: needs.memory_bytes,
            disk_bytes: needs.disk_bytes,
        }
    });
    let planned: Vec<PlanCell> = planned.collect();
    Ok(TablePlanRecord {
        id: table.id.clone(),
        model: grid.model.clone(),
        rate,
        check: quoted_line(&check_arguments(grid.backend, None)),
        left_out: left_out(grid, table),
        seconds: planned.iter().map(|cell| cell.seconds).sum(),
        cells: planned,
    })
}

/// Rows of the grid's model that no command computes.
fn left_out(grid: &Grid, table: &PaperTable) -> Vec<PlanLeftOut> {
    let rows = table.rows.iter();
    rows.filter(|row| row.model == grid.model && row.recipe.is_none())
        .map(|row| PlanLeftOut {
            row: row.row.clone(),
            reason: row
                .notes
                .last()
                .cloned()
                .filter(|_| row.method.starts_with("AQLM"))
                .unwrap_or_else(|| format!("this project does not have {}", row.method)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::models::models;
    use super::super::paper::table;
    use super::*;
    use crate::Preset;
    use crate::backends::BackendKind;

    fn planned(id: &str, name: &str) -> TablePlanRecord {
        let table = table(id).unwrap();
        let grid = Grid::proposed(&table, &model(name).unwrap(), BackendKind::Cpu, Preset::Paper);
        let out = format!("runs/table-{id}/{name}");
        plan(&grid, &table, Path::new(&out), DEFAULT_RATE).unwrap()
    }

    /// docs/llama2.md is for people without the program at hand; its commands are those that the program
    /// prints.
    #[test]
    fn the_commands_in_the_documentation_are_those_of_the_plan() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/llama2.md");
        let text = std::fs::read_to_string(path).unwrap();
        let mut in_code = false;
        let documented: Vec<&str> = text
            .lines()
            .filter(|line| {
                let fence = line.starts_with("```");
                in_code ^= fence;
                in_code && !fence && (line.starts_with("aqlm quantize") || line.starts_with("aqlm eval"))
            })
            .collect();
        let mut expected = Vec::new();
        for name in ["llama-2-7b", "llama-2-13b", "llama-2-70b"] {
            for cell in planned("1", name).cells {
                expected.extend(cell.commands.into_iter().filter(|line| line.starts_with("aqlm ")));
            }
        }
        assert_eq!(documented, expected);
    }

    #[test]
    fn every_table_that_can_be_run_has_a_plan_for_its_models() {
        for table in super::super::paper::tables().unwrap() {
            for model in models().unwrap() {
                if !table.models().contains(&model.model) {
                    continue;
                }
                let plan = planned(&table.id, &model.model);
                let runnable = table
                    .rows
                    .iter()
                    .filter(|row| row.model == model.model && row.recipe.is_some());
                assert_eq!(plan.cells.len(), runnable.count(), "{}", table.id);
                for cell in &plan.cells {
                    assert!(cell.seconds.is_finite() && cell.seconds > 0.0);
                    assert!(cell.memory_bytes.is_finite() && cell.memory_bytes > 0.0);
                }
            }
        }
    }

    #[test]
    fn a_plan_says_what_it_leaves_out_and_refuses_a_bad_rate() {
        let plan = planned("1", "llama-2-7b");
        let left: Vec<&str> = plan.left_out.iter().map(|left| left.reason.as_str()).collect();
        assert_eq!(left, ["this project does not have QuIP#"]);
        assert_eq!(plan.check, "aqlm check --backend cpu --json");
        let table = table("7").unwrap();
        let grid = Grid::proposed(
            &table,
            &model("llama-2-7b").unwrap(),
            BackendKind::Cpu,
            Preset::Paper,
        );
        for rate in [0.0, -1.0, f64::NAN] {
            let error = super::plan(&grid, &table, Path::new("runs"), rate).unwrap_err();
            assert!(error.to_string().starts_with("rate: expected"), "{error}");
        }
    }
}
