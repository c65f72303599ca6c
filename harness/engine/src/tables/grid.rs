use std::collections::BTreeMap;
use std::path::Path;

use aqlm_vocabulary::Scheme;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::models::{PaperModel, model};
use super::paper::{PaperRow, PaperTable, QuantizeRecipe, Recipe, TunedPart, columns, unknown};
use crate::Preset;
use crate::backends::BackendKind;
use aqlm_formats::{Error, Result};

/// A grid of runs that fills a table: the content of a grid's file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// id of the table
    pub table: String,
    /// the model, by its name in golden/paper/models.json
    pub model: String,
    /// its path
    pub path: String,
    /// the backend of every command
    pub backend: BackendKind,
    /// the settings to start from
    pub preset: Preset,
    /// calibration text
    pub calibration: String,
    /// tokens in a calibration sequence
    pub seqlen: usize,
    /// a scheme that stands in for those of all rows
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// calibration sequences of all rows
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequences: Option<usize>,
    /// other arguments of `aqlm quantize`, for every cell
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// one cell for each seed, named after it; without seeds one cell with seed 0
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u64>,
    /// evaluations, by column
    pub evaluations: BTreeMap<String, Evaluation>,
    /// the cells; without them one for each row that can be run
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cells: Vec<GridCell>,
}

/// An evaluation of every cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// the text
    pub data: String,
    /// tokens in a window
    pub ctx: usize,
    /// other arguments of `aqlm eval`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
}

/// One cell of a grid; what it leaves out comes from the grid, then from the table's row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridCell {
    /// the row of the table
    pub row: String,
    /// name of its folder; the row's by default
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<String>,
    /// the scheme
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// calibration sequences
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequences: Option<usize>,
    /// what is fine-tuned in a block
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Vec<TunedPart>>,
    /// whether the whole model is fine-tuned
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_to_end: Option<bool>,
    /// other arguments of `aqlm quantize`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
}

/// A cell with everything decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// its name, that of its folder
    pub name: String,
    /// the row of the table
    pub row: String,
    /// scheme and recipe; `None` for the dense model
    pub quantize: Option<(Scheme, QuantizeRecipe)>,
    /// its commands, in order
    pub commands: Vec<Command>,
}

/// One command of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// arguments of `aqlm`
    pub arguments: Vec<String>,
    /// file in the cell's folder that gets standard output
    pub output: Option<String>,
}

impl Grid {
    /// The grid that a plan for a model of golden/paper/models.json proposes, with every row that can be run.
    pub fn proposed(table: &PaperTable, model: &PaperModel, backend: BackendKind, preset: Preset) -> Self {
        let evaluations = model.evaluations.iter().map(|(column, evaluation)| {
            let evaluation = Evaluation {
                data: evaluation.data.clone(),
                ctx: evaluation.ctx,
                arguments: evaluation.arguments.clone(),
            };
            (column.clone(), evaluation)
        });
        Self {
            table: table.id.clone(),
            model: model.model.clone(),
            path: model.path.clone(),
            backend,
            preset,
            calibration: model.calibration.clone(),
            seqlen: model.seqlen,
            scheme: None,
            sequences: None,
            arguments: Vec::new(),
            seeds: Vec::new(),
            evaluations: evaluations.collect(),
            cells: Vec::new(),
        }
    }

    /// Reads a grid's file.
    ///
    /// # Errors
    /// `Io`, `Json`; `Field` with the field, what was expected and what was found.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let value: Value = serde_json::from_slice(&text).map_err(Error::json(path, 1))?;
        serde_path_to_error::deserialize(value).map_err(|error| Error::Field {
            path: path.into(),
            field: match error.path().to_string() {
                whole if whole == "." => "whole file".into(),
                field => field,
            },
            expected: "what a grid has there".into(),
            found: error.inner().to_string(),
        })
    }

    /// The grid's JSON document.
    #[expect(clippy::missing_panics_doc, reason = "no grid makes it panic")]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a grid is numbers, strings, lists and maps of strings")
    }

    /// The cells with their commands, for folders in `out`.
    ///
    /// # Errors
    /// `Argument` for an unknown model, row or column (with the known ones), for a row that no command
    /// computes, for a scheme that does not fit the model, and for two cells of one name or a name that is no
    /// folder's.
    pub fn cells(&self, table: &PaperTable, out: &Path) -> Result<Vec<Cell>> {
        let shape = model(&self.model)?;
        if self.table != table.id {
            return Err(Error::argument(
                "table of the grid",
                &format!("{}, the table on the command line", table.id),
                format!("`{}`", self.table),
            ));
        }
        let known: Vec<String> = columns()?.into_keys().collect();
        if let Some(column) = self.evaluations.keys().find(|column| !known.contains(column)) {
            return Err(unknown("column of the grid's evaluations", &known, column));
        }
        let wanted = if self.cells.is_empty() {
            self.all_rows(table)
        } else {
            self.cells.clone()
        };
        let mut cells: Vec<Cell> = Vec::new();
        for cell in &wanted {
            let row = table.row(&cell.row)?;
            let Some(recipe) = &row.recipe else {
                return Err(Error::argument(
                    &format!("row of table {}", table.id),
                    "one that this project can compute",
                    format!("`{}` ({})", row.row, row.method),
                ));
            };
            for cell in self.seeded(cell, row, recipe, &shape, out)? {
                if cells.iter().any(|other| other.name == cell.name) {
                    return Err(Error::argument(
                        "cell of the grid",
                        "one of each name",
                        format!("two of `{}`", cell.name),
                    ));
                }
                cells.push(cell);
            }
        }
        Ok(cells)
    }

    /// Every row of the grid's model that can be run; for a model without rows in the table, every such row
    /// of the table's first model.
    fn all_rows(&self, table: &PaperTable) -> Vec<GridCell> {
        let runnable = |model: &str| -> Vec<GridCell> {
            let rows = table.rows.iter();
            rows.filter(|row| row.model == model && row.recipe.is_some())
                .map(|row| GridCell {
                    row: row.row.clone(),
                    cell: None,
                    scheme: None,
                    sequences: None,
                    tuned: None,
                    end_to_end: None,
                    arguments: Vec::new(),
                })
                .collect()
        };
        let own = runnable(&self.model);
        if own.is_empty() && !table.models().contains(&self.model) {
            return table.models().first().map_or(own, |first| runnable(first));
        }
        own
    }

    /// The cells of one row: one for each seed.
    fn seeded(
        &self,
        cell: &GridCell,
        row: &PaperRow,
        recipe: &Recipe,
        shape: &PaperModel,
        out: &Path,
    ) -> Result<Vec<Cell>> {
        let name = cell.cell.as_ref().unwrap_or(&cell.row);
        let is_name = !name.is_empty()
            && !name.starts_with('.')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !is_name || name == "checks" {
            return Err(Error::argument(
                "cell of the grid",
                "a name of letters, digits, `.`, `_` and `-`, and not `checks`",
                format!("`{name}`"),
            ));
        }
        let Recipe::Quantize(recipe) = recipe else {
            return Ok(vec![Cell {
                name: name.clone(),
                row: row.row.clone(),
                quantize: None,
                commands: self.evaluations_of(&self.path),
            }]);
        };
        let Some(scheme) = cell.scheme.or(self.scheme).or(row.scheme) else {
            return Err(Error::argument(
                &format!("scheme of the cell `{name}`"),
                "one, because the row has none",
                "nothing",
            ));
        };
        if let Some(misfit) = shape.misfit(scheme) {
            return Err(Error::argument(
                &format!("scheme of the cell `{name}`"),
                &format!(
                    "one that fits {} (--scheme, or `scheme` in the grid)",
                    shape.model
                ),
                format!("{scheme}: {misfit}"),
            ));
        }
        let recipe = QuantizeRecipe {
            sequences: cell.sequences.or(self.sequences).unwrap_or(recipe.sequences),
            tuned: cell.tuned.clone().unwrap_or_else(|| recipe.tuned.clone()),
            end_to_end: cell.end_to_end.unwrap_or(recipe.end_to_end),
            arguments: [&recipe.arguments[..], &self.arguments, &cell.arguments].concat(),
        };
        let with_seed = |name: String, seed: u64| {
            let folder = out.join(&name).display().to_string();
            let mut commands = vec![self.quantization(scheme, &recipe, seed, &folder)];
            commands.extend(self.evaluations_of(&folder));
            Cell {
                name,
                row: row.row.clone(),
                quantize: Some((scheme, recipe.clone())),
                commands,
            }
        };
        if self.seeds.is_empty() {
            return Ok(vec![with_seed(name.clone(), 0)]);
        }
        let seeds = self.seeds.iter();
        Ok(seeds
            .map(|&seed| with_seed(format!("{name}-s{seed}"), seed))
            .collect())
    }

    fn quantization(&self, scheme: Scheme, recipe: &QuantizeRecipe, seed: u64, folder: &str) -> Command {
        let preset = match self.preset {
            Preset::Project => "project",
            Preset::Paper => "paper",
            Preset::Official => "official",
        };
        let mut arguments: Vec<String> = [
            "quantize",
            &self.path,
            "--scheme",
            &scheme.to_string(),
            "--calib",
            &self.calibration,
            "--out",
            folder,
            "--backend",
            self.backend.name(),
            "--preset",
            preset,
            "--seqlen",
            &self.seqlen.to_string(),
            "--sequences",
            &recipe.sequences.to_string(),
            "--seed",
            &seed.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        let mut add = |more: &[&str]| arguments.extend(more.iter().map(|&one| one.to_owned()));
        let parts: Vec<&str> = recipe.tuned.iter().map(|part| part.name()).collect();
        match (recipe.end_to_end, parts.is_empty()) {
            (false, true) => add(&["--finetune", "none"]),
            (true, true) => add(&["--finetune", "end-to-end", "--finetune-epochs", "0"]),
            (false, false) => add(&["--finetune", "block"]),
            (true, false) => add(&["--finetune", "end-to-end"]),
        }
        if !parts.is_empty() && parts.len() < TunedPart::ALL.len() {
            add(&["--finetune-tune", &parts.join(",")]);
        }
        if recipe.end_to_end {
            add(&["--end-to-end-sequences", &recipe.sequences.to_string()]);
        }
        arguments.extend(recipe.arguments.iter().cloned());
        arguments.push("--json".into());
        Command {
            arguments,
            output: None,
        }
    }

    fn evaluations_of(&self, model: &str) -> Vec<Command> {
        let evaluation = |(column, evaluation): (&String, &Evaluation)| {
            let mut arguments: Vec<String> = [
                "eval",
                model,
                "--data",
                &evaluation.data,
                "--ctx",
                &evaluation.ctx.to_string(),
                "--backend",
                self.backend.name(),
            ]
            .map(str::to_owned)
            .to_vec();
            arguments.extend(evaluation.arguments.iter().cloned());
            arguments.push("--json".into());
            Command {
                arguments,
                output: Some(format!("eval-{column}.json")),
            }
        };
        self.evaluations.iter().map(evaluation).collect()
    }
}

/// A command as a line of a shell; `folder` is the cell's.
pub fn shell(command: &Command, folder: &Path) -> String {
    let mut line = quoted_line(&command.arguments);
    if let Some(output) = &command.output {
        line.push_str(" > ");
        line.push_str(&quoted(&folder.join(output).display().to_string()));
    }
    line
}

/// `aqlm` with arguments, as a line of a shell.
pub(super) fn quoted_line(arguments: &[String]) -> String {
    let mut words = vec!["aqlm".to_owned()];
    words.extend(arguments.iter().map(|argument| quoted(argument)));
    words.join(" ")
}

fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests;
