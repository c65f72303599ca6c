use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::Scheme;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::accuracies::accuracies;
use super::models::{PaperModel, models, name_at};
use super::paper::{TunedPart, columns, unknown};
use crate::runs::RunDescription;
use crate::runs::records::{
    self, BenchReport, DecodeReport, EvalRecord, QuantizeRecord, Record, TableCheck, TableModel,
};
use crate::{EndToEndRun, QuantizeSettings};
use aqlm_formats::{Error, Result};

/// Name of the file that a finished cell of a grid has in its folder.
pub const CELL_FILE: &str = "cell.json";

/// What a cell's file says: which row of which table its figures belong to, and the check behind them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellRecord {
    /// id of the table
    pub table: String,
    /// id of the row
    pub row: String,
    /// the dense model: its name in golden/paper/models.json
    pub model: String,
    /// its path
    pub path: String,
    /// the cell's folder, as the commands name it
    pub folder: String,
    /// the arguments of the commands that made the cell
    pub commands: Vec<Vec<String>>,
    /// the cross-check that stood behind them
    pub check: TableCheck,
}

impl CellRecord {
    /// Table, row and commands without seed and folder: equal for cells that differ in their seeds alone.
    pub(super) fn without_seed(&self) -> (&str, &str, Vec<&str>) {
        let mut is_seed = false;
        let words = self.commands.iter().flatten().map(String::as_str);
        let kept = words.filter(|&word| {
            let drops = is_seed || word == self.folder;
            is_seed = word == "--seed";
            !drops
        });
        (&self.table, &self.row, kept.collect())
    }
}

/// Something finished that has figures for a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Finished {
    /// a run folder
    Run(Box<FinishedRun>),
    /// the record of `aqlm bench`, and its file
    Bench(PathBuf, BenchReport),
    /// the record of `aqlm bench --random-weights`, and its file
    Decode(PathBuf, DecodeReport),
}

/// A finished run folder.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedRun {
    /// the folder
    pub path: PathBuf,
    /// the dense model
    pub model: TableModel,
    /// what `cell.json` says, for a cell of a grid
    pub cell: Option<CellRecord>,
    /// how the model was quantized; `None` for the dense model
    pub quantized: Option<Quantized>,
    /// perplexities by column
    pub evaluations: BTreeMap<String, EvalRecord>,
    /// figures of the quantization, and accuracies on tasks in percent, by column
    pub figures: BTreeMap<String, f64>,
}

/// How a run's model was quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// the scheme
    pub scheme: Scheme,
    /// average bits of a quantized weight, if known
    pub bits: Option<f64>,
    /// what was fine-tuned in a block; `None` when the folder does not say
    pub tuned: Option<Vec<TunedPart>>,
    /// whether the whole model was fine-tuned
    pub end_to_end: bool,
    /// calibration sequences of the quantization; `None` when the folder does not say
    pub sequences: Option<usize>,
    /// all settings but the seed, which is 0 here; `None` when the folder does not say
    pub settings: Option<QuantizeSettings>,
}

/// Reads a run folder, all cells in the folder of a grid, or a file with the record of `aqlm bench`.
///
/// # Errors
/// `Kind` for a path that is none of these, an unfinished run included. `Field` and `Json` naming the file
/// for a damaged one; a figure that is not finite is damage, too. `Io`.
pub fn read_finished(path: &Path) -> Result<Vec<Finished>> {
    if path.is_file() {
        return Ok(vec![speed(path)?]);
    }
    if is_run(path)? {
        return Ok(vec![Finished::Run(Box::new(run(path)?))]);
    }
    let mut cells = Vec::new();
    for folder in sorted(path)? {
        if folder.join(CELL_FILE).is_file() {
            cells.push(Finished::Run(Box::new(run(&folder)?)));
        }
    }
    if cells.is_empty() {
        let found = if path.join("run.json").is_file() {
            "a run that is not finished (no record.json)"
        } else {
            "none of these"
        };
        return Err(Error::Kind {
            path: path.into(),
            expected: format!(
                "a finished run ({}, eval-COLUMN.json), a folder with cells of a grid, or the record of `aqlm bench`",
                records::FILE
            ),
            found: found.into(),
        });
    }
    Ok(cells)
}

/// The record of a speed.
fn speed(path: &Path) -> Result<Finished> {
    match records::read(path)? {
        Record::Bench(report) => Ok(Finished::Bench(path.into(), report)),
        Record::Decode(report) => Ok(Finished::Decode(path.into(), report)),
        other => Err(Error::Field {
            path: path.into(),
            field: "record".into(),
            expected: "the record of `aqlm bench` in a file, or else a run folder".into(),
            found: other.kind().into(),
        }),
    }
}

fn is_run(folder: &Path) -> Result<bool> {
    Ok(folder.join(CELL_FILE).is_file()
        || folder.join(records::FILE).is_file()
        || !evaluation_files(folder)?.is_empty())
}

/// The entries of a folder, by name.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder, "read"))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(Error::io(folder, "read"))?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Files `eval-COLUMN.json` of a folder, by column.
fn evaluation_files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let column = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        Some(name.strip_prefix("eval-")?.strip_suffix(".json")?.to_owned())
    };
    let files = sorted(folder)?.into_iter();
    Ok(files.filter_map(|path| Some((column(&path)?, path))).collect())
}

fn run(folder: &Path) -> Result<FinishedRun> {
    let cell_file = folder.join(CELL_FILE);
    let cell: Option<CellRecord> = if cell_file.is_file() {
        Some(json(&cell_file, "the description of a cell")?)
    } else {
        None
    };
    let evaluations = evaluations(folder)?;
    let record_file = folder.join(records::FILE);
    let mut found = if record_file.is_file() {
        match records::read(&record_file)? {
            Record::Quantize(record) => of_quantize(folder, &record)?,
            Record::Finetune(_) => of_finetune(folder)?,
            other => {
                return Err(Error::Field {
                    path: record_file,
                    field: "record".into(),
                    expected: "quantize/3 or finetune/2".into(),
                    found: other.kind().into(),
                });
            }
        }
    } else {
        of_dense(&evaluations)?
    };
    if let Some(cell) = &cell {
        let shape = known_model(folder)?.map(|model| model.model);
        if folder.join("config.json").is_file() && shape.as_ref() != Some(&cell.model) {
            return Err(Error::Field {
                path: cell_file,
                field: "model".into(),
                expected: shape.map_or_else(
                    || "another model, of the shape in config.json".into(),
                    |name| format!("{name}, whose shape config.json has"),
                ),
                found: cell.model.clone(),
            });
        }
        found.model.name = Some(cell.model.clone());
        found.model.path.clone_from(&cell.path);
    }
    found.path = folder.into();
    found.cell = cell;
    found.evaluations = evaluations;
    found.figures.extend(accuracies(folder)?);
    Ok(found)
}

/// The perplexities in a folder.
fn evaluations(folder: &Path) -> Result<BTreeMap<String, EvalRecord>> {
    let known: Vec<String> = columns()?.into_keys().collect();
    let mut found = BTreeMap::new();
    for (column, path) in evaluation_files(folder)? {
        if !known.contains(&column) {
            return Err(unknown(
                &format!("{}: column in the file's name", path.display()),
                &known,
                &column,
            ));
        }
        match records::read(&path)? {
            Record::Eval(record) if record.perplexity.is_finite() => found.insert(column, record),
            Record::Eval(record) => {
                return Err(Error::Field {
                    path,
                    field: "perplexity".into(),
                    expected: "a finite number".into(),
                    found: record.perplexity.to_string(),
                });
            }
            other => {
                return Err(Error::Field {
                    path,
                    field: "record".into(),
                    expected: "the record of aqlm eval".into(),
                    found: other.kind().into(),
                });
            }
        };
    }
    Ok(found)
}

fn bare(model: TableModel, quantized: Option<Quantized>) -> FinishedRun {
    FinishedRun {
        path: PathBuf::new(),
        model,
        cell: None,
        quantized,
        evaluations: BTreeMap::new(),
        figures: BTreeMap::new(),
    }
}

/// A folder without a model of its own: evaluations of the dense model.
fn of_dense(evaluations: &BTreeMap<String, EvalRecord>) -> Result<FinishedRun> {
    let path = evaluations
        .values()
        .next()
        .map_or_else(String::new, |record| record.model.clone());
    let model = TableModel {
        name: name_at(&path)?,
        path,
        sha256: None,
    };
    Ok(bare(model, None))
}

fn of_quantize(folder: &Path, record: &QuantizeRecord) -> Result<FinishedRun> {
    let run: RunDescription<QuantizeSettings> = json(&folder.join("run.json"), "the run of aqlm quantize")?;
    let settings = &run.settings;
    let switches = [
        settings.finetune.codebooks,
        settings.finetune.scales,
        settings.finetune.norms,
    ];
    let tuned = TunedPart::ALL
        .into_iter()
        .zip(switches)
        .filter(|&(_, on)| on && settings.finetune.epochs > 0)
        .map(|(part, _)| part)
        .collect();
    let model = TableModel {
        name: known_model(folder)?.map(|model| model.model),
        path: run.model,
        sha256: Some(run.model_sha256),
    };
    let quantized = Quantized {
        scheme: record.scheme,
        bits: Some(record.bits_per_parameter),
        tuned: Some(tuned),
        end_to_end: record.end_to_end.is_some(),
        sequences: Some(settings.sequences),
        settings: Some(QuantizeSettings {
            seed: 0,
            ..settings.clone()
        }),
    };
    let mut found = bare(model, Some(quantized));
    let reports = || {
        record
            .blocks
            .iter()
            .flat_map(|block| &block.layers)
            .map(|layer| &layer.report)
    };
    let count = reports().count();
    if count > 0 {
        let mut mean = |column: &str, sum: f64| found.figures.insert(column.into(), sum / count as f64);
        mean("first_error", reports().map(|report| report.initial_error).sum());
        mean("layer_error", reports().map(|report| report.relative_error).sum());
        mean("rounds", reports().map(|report| report.trace.len() as f64).sum());
    }
    if let Some((column, value)) = found.figures.iter().find(|(_, value)| !value.is_finite()) {
        return Err(Error::Field {
            path: folder.join(records::FILE),
            field: "blocks".into(),
            expected: format!("layers with a finite mean of {column}"),
            found: value.to_string(),
        });
    }
    Ok(found)
}

fn of_finetune(folder: &Path) -> Result<FinishedRun> {
    let run: RunDescription<EndToEndRun> = json(&folder.join("run.json"), "the run of aqlm finetune")?;
    let shape = known_model(folder)?;
    let scheme = scheme_of(folder)?;
    let model = TableModel {
        name: shape.as_ref().map(|model| model.model.clone()),
        path: run.model,
        // The run's own SHA-256 is that of the quantized model.
        sha256: run.settings.teacher_sha256,
    };
    let quantized = Quantized {
        scheme,
        bits: shape.map(|model| model.bits_per_parameter(scheme)),
        tuned: None,
        end_to_end: true,
        sequences: None,
        settings: None,
    };
    Ok(bare(model, Some(quantized)))
}

/// Reads a JSON file of the project.
pub(crate) fn json<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let value: Value = serde_json::from_slice(&text).map_err(Error::json(path, 1))?;
    serde_path_to_error::deserialize(value).map_err(|error| Error::Field {
        path: path.into(),
        field: error.path().to_string(),
        expected: format!("what {expected} has there"),
        found: error.inner().to_string(),
    })
}

/// The known model whose shape a folder's config.json has.
fn known_model(folder: &Path) -> Result<Option<PaperModel>> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config: Value = json(&path, "a configuration")?;
    let number = |field: &str| config.get(field).and_then(Value::as_u64);
    Ok(models()?.into_iter().find(|model| {
        [
            ("hidden_size", model.hidden_size),
            ("intermediate_size", model.intermediate_size),
            ("num_hidden_layers", model.blocks),
            ("vocab_size", model.vocab_size),
        ]
        .into_iter()
        .all(|(field, expected)| number(field) == Some(expected as u64))
            && number("num_local_experts").unwrap_or(1) == model.experts as u64
    }))
}

/// The scheme in a checkpoint's config.json.
fn scheme_of(folder: &Path) -> Result<Scheme> {
    let path = folder.join("config.json");
    let config: Value = json(&path, "a configuration")?;
    let quantization = config.get("quantization_config");
    let number = |field: &str| {
        let found = quantization.and_then(|config| config.get(field));
        found.and_then(Value::as_u64).ok_or_else(|| Error::Field {
            path: path.clone(),
            field: format!("quantization_config.{field}"),
            expected: "a whole number".into(),
            found: found.map_or_else(|| "nothing".into(), Value::to_string),
        })
    };
    Ok(Scheme::with_out_group(
        number("num_codebooks")? as usize,
        number("nbits_per_codebook")? as u32,
        number("in_group_size")? as usize,
        number("out_group_size")? as usize,
    )?)
}
