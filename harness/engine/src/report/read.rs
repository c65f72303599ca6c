use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::Scheme;
use serde_json::Value;

use super::codebooks::{Codebooks, codebooks};
use crate::runs::block_journal::Journal;
use crate::runs::records::{
    self, BlockReport, DivergenceRecord, EvalRecord, GenerateRecord, Record, TableModel, TasksRecord,
};
use crate::runs::{Metric, MetricEvent, PhaseSeconds, read_metrics};
use crate::tables::{Finished, json, name_at, one_model, one_protocol, read_finished, tasks_record};
use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};

/// What made a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// `aqlm quantize`
    Quantize,
    /// `aqlm finetune`
    Finetune,
    /// only evaluations: the dense model
    Dense,
}

/// Whether a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// its record is there
    Finished,
    /// it runs, or was interrupted
    Unfinished,
}

/// A record, and the words in its file's name that tell it from others of its kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Named<T> {
    /// `wikitext2` for `divergence-wikitext2.json`
    pub name: String,
    /// the record
    pub record: T,
}

/// Losses of end-to-end fine-tuning, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct EndToEndLosses {
    /// before the first step
    pub before: f64,
    /// of the kept state
    pub after: f64,
    /// of each epoch
    pub train: Vec<f64>,
    /// of each epoch
    pub validation: Vec<f64>,
    /// seconds of training and validation
    pub seconds: f64,
}

/// Everything that a report shows of a run. What the folder does not hold is `None` or empty.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportedRun {
    /// the folder
    pub path: PathBuf,
    /// its shortest name that is unique in the report
    pub name: String,
    /// what made it
    pub kind: RunKind,
    /// whether it has ended
    pub state: RunState,
    /// the dense model
    pub model: TableModel,
    /// `run.json`
    pub description: Option<Value>,
    /// the scheme
    pub scheme: Option<Scheme>,
    /// average bits of a quantized weight; of an unfinished run, over its finished blocks
    pub bits: Option<f64>,
    /// mean distance of the layers from the rate-distortion limit, in dB
    pub limit_db: Option<f64>,
    /// bytes of the dense and of the quantized model
    pub bytes: Option<[u64; 2]>,
    /// seconds of all blocks, and of end-to-end fine-tuning
    pub seconds: Option<f64>,
    /// finished blocks
    pub blocks: Vec<BlockReport>,
    /// end-to-end fine-tuning
    pub end_to_end: Option<EndToEndLosses>,
    /// seconds by phase of each block of which they are known
    pub phases: BTreeMap<usize, PhaseSeconds>,
    /// what happened, as far as it was written
    pub metrics: Vec<Metric>,
    /// perplexities by column
    pub evaluations: BTreeMap<String, EvalRecord>,
    /// divergences from the dense model
    pub divergences: Vec<Named<DivergenceRecord>>,
    /// figures on tasks
    pub tasks: Option<TasksRecord>,
    /// generated texts
    pub samples: Vec<GenerateRecord>,
    /// codes and codewords of the checkpoint
    pub codebooks: Option<Codebooks>,
}

impl ReportedRun {
    /// A run of which nothing is known.
    pub(super) fn empty(path: PathBuf) -> Self {
        Self {
            path,
            name: String::new(),
            kind: RunKind::Dense,
            state: RunState::Finished,
            model: TableModel {
                name: None,
                path: String::new(),
                sha256: None,
            },
            description: None,
            scheme: None,
            bits: None,
            limit_db: None,
            bytes: None,
            seconds: None,
            blocks: Vec::new(),
            end_to_end: None,
            phases: BTreeMap::new(),
            metrics: Vec::new(),
            evaluations: BTreeMap::new(),
            divergences: Vec::new(),
            tasks: None,
            samples: Vec::new(),
            codebooks: None,
        }
    }

    /// Seconds by phase of all blocks; `None` unless they are known of every finished block.
    pub fn phase_seconds(&self) -> Option<PhaseSeconds> {
        if self.phases.is_empty() || self.phases.len() < self.blocks.len() {
            return None;
        }
        let mut sum = PhaseSeconds::default();
        for phases in self.phases.values() {
            sum.add(phases);
        }
        Some(sum)
    }
}

/// Reads runs: run folders, finished or not, folders of evaluations of the dense model, and folders of grids,
/// which stand for their cells.
///
/// # Errors
/// `Kind` for a path that is none of these. `Argument` for runs of different dense models, with what differs,
/// for evaluations of one column that differ in protocol, window or number of tokens, and for a folder given
/// twice. `Field` and `Json` naming the file for a damaged one; those of opening a checkpoint; `Io`.
pub fn read_runs(paths: &[PathBuf]) -> Result<Vec<ReportedRun>> {
    let mut runs = Vec::new();
    for path in paths {
        std::fs::metadata(path).map_err(Error::io(path, "read"))?;
        if path.join("run.json").is_file() && !path.join(records::FILE).is_file() {
            runs.push(unfinished(path)?);
            continue;
        }
        for finished in read_finished(path)? {
            match finished {
                Finished::Run(run) => runs.push(complete(*run)?),
                Finished::Bench(path, _) | Finished::Decode(path, _) => {
                    return Err(Error::Kind {
                        path,
                        expected: "a run folder, or a folder with cells of a grid".into(),
                        found: "the record of `aqlm bench`".into(),
                    });
                }
            }
        }
    }
    one_model(runs.iter().map(|run| (&*run.path, &run.model)))?;
    one_protocol(runs.iter().map(|run| (&*run.path, &run.evaluations)))?;
    name(&mut runs)?;
    Ok(runs)
}

/// A run whose record is there.
fn complete(found: crate::tables::FinishedRun) -> Result<ReportedRun> {
    let path = found.path;
    let mut run = ReportedRun {
        model: found.model,
        evaluations: found.evaluations,
        scheme: found.quantized.as_ref().map(|quantized| quantized.scheme),
        bits: found.quantized.as_ref().and_then(|quantized| quantized.bits),
        ..ReportedRun::empty(path.clone())
    };
    beside(&mut run)?;
    let record_file = path.join(records::FILE);
    if !record_file.is_file() {
        return Ok(run);
    }
    run.description = Some(json(&path.join("run.json"), "the description of a run")?);
    match records::read(&record_file)? {
        Record::Quantize(record) => {
            run.kind = RunKind::Quantize;
            run.limit_db = record.limit_db;
            run.bytes = Some([record.bytes_before, record.bytes_after]);
            let tuning = record.end_to_end.as_ref().map_or(0.0, |tuning| tuning.seconds);
            run.seconds = Some(record.seconds + tuning);
            run.blocks = record.blocks;
            run.end_to_end = record.end_to_end.map(|tuning| EndToEndLosses {
                before: tuning.loss_before,
                after: tuning.loss_after,
                train: tuning.train_losses,
                validation: tuning.validation_losses,
                seconds: tuning.seconds,
            });
        }
        Record::Finetune(record) => {
            run.kind = RunKind::Finetune;
            run.seconds = Some(record.seconds);
            run.end_to_end = Some(EndToEndLosses {
                before: record.loss_before,
                after: record.loss_after,
                train: record.train_losses,
                validation: record.validation_losses,
                seconds: record.seconds,
            });
        }
        // `read_finished` refuses other records.
        _ => {}
    }
    if path.join("config.json").is_file() {
        run.codebooks = codebooks(&Model::open(&path)?)?;
    }
    Ok(run)
}

/// A run without a record.
fn unfinished(path: &Path) -> Result<ReportedRun> {
    let file = path.join("run.json");
    let description: Value = json(&file, "the description of a run")?;
    let text = |pointer: &str| description.pointer(pointer).and_then(Value::as_str);
    let needed = |pointer: &str, field: &str| {
        text(pointer).map(str::to_owned).ok_or_else(|| Error::Field {
            path: file.clone(),
            field: field.into(),
            expected: "a text".into(),
            found: "nothing".into(),
        })
    };
    let is_tuning = description.pointer("/settings/teacher_sha256").is_some();
    let mut run = ReportedRun::empty(path.into());
    run.state = RunState::Unfinished;
    run.model.path = needed("/model", "model")?;
    if is_tuning {
        run.kind = RunKind::Finetune;
        // The run's own SHA-256 is that of the quantized model.
        run.model.sha256 = text("/settings/teacher_sha256").map(str::to_owned);
    } else {
        run.kind = RunKind::Quantize;
        run.model.name = name_at(&run.model.path)?;
        run.model.sha256 = Some(needed("/model_sha256", "model_sha256")?);
        let scheme = needed("/settings/layer/scheme", "settings.layer.scheme")?;
        run.scheme = Some(
            scheme
                .parse()
                .map_err(|error: aqlm_vocabulary::AqlmError| Error::Field {
                    path: file.clone(),
                    field: "settings.layer.scheme".into(),
                    expected: "a scheme, as in 2x8g8".into(),
                    found: error.to_string(),
                })?,
        );
        let journal = Journal::open(path)?;
        run.blocks = journal
            .entries()
            .iter()
            .map(|entry| entry.report.clone())
            .collect();
        let layers = || run.blocks.iter().flat_map(|block| &block.layers);
        let parameters: usize = layers().map(|layer| layer.parameters).sum();
        if parameters > 0 {
            let bits: f64 = layers()
                .map(|layer| layer.bits_per_parameter * layer.parameters as f64)
                .sum();
            run.bits = Some(bits / parameters as f64);
            run.seconds = Some(run.blocks.iter().map(|block| block.seconds).sum());
        }
    }
    run.description = Some(description);
    beside(&mut run)?;
    Ok(run)
}

/// Reads what lies beside the record of a run.
fn beside(run: &mut ReportedRun) -> Result<()> {
    let path = run.path.clone();
    run.metrics = read_metrics(&path)?;
    // where `aqlm quantize --finetune end-to-end` trains the whole model
    run.metrics.extend(read_metrics(&path.join("end-to-end"))?);
    for metric in &run.metrics {
        if let MetricEvent::Block {
            report,
            phases: Some(phases),
        } = &metric.event
        {
            run.phases.insert(report.block, *phases);
        }
    }
    for (name, file) in files(&path, "divergence-")? {
        match records::read(&file)? {
            Record::Divergence(record) => run.divergences.push(Named { name, record }),
            other => return Err(unexpected(file, "divergence", &other)),
        }
    }
    run.tasks = tasks_record(&path)?;
    for (_, file) in files(&path, "generate-")? {
        match records::read(&file)? {
            Record::Generate(record) => run.samples.push(record),
            other => return Err(unexpected(file, "generate", &other)),
        }
    }
    Ok(())
}

fn unexpected(path: PathBuf, expected: &str, found: &Record) -> Error {
    Error::Field {
        path,
        field: "record".into(),
        expected: format!("{expected}, as the file's name says"),
        found: found.kind().into(),
    }
}

/// Files `PREFIXname.json` of a folder, by name.
fn files(folder: &Path, prefix: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.and_then(|name| name.strip_prefix(prefix)?.strip_suffix(".json")) {
            files.insert(name.to_owned(), path);
        }
    }
    Ok(files)
}

/// Gives every run as many of its path's last parts as make its name unique.
fn name(runs: &mut [ReportedRun]) -> Result<()> {
    let mut parts: Vec<Vec<String>> = Vec::new();
    for run in &*runs {
        let whole = std::fs::canonicalize(&run.path).map_err(Error::io(&run.path, "read"))?;
        let parts_of = whole
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned());
        parts.push(parts_of.collect());
    }
    for (at, run) in runs.iter_mut().enumerate() {
        let mine = &parts[at];
        let end = |parts: &[String], count: usize| parts[parts.len().saturating_sub(count)..].join("/");
        let is_unique = |count: &usize| {
            let same = |other: &&Vec<String>| end(other, *count) == end(mine, *count);
            parts.iter().filter(same).count() == 1
        };
        let Some(count) = (1..=mine.len()).find(is_unique) else {
            return Err(Error::argument(
                "runs",
                "every run once",
                format!("{} twice", run.path.display()),
            ));
        };
        run.name = end(mine, count);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_long_as_needed_and_a_folder_stands_once() {
        let folder = tempfile::tempdir().unwrap();
        let run = |path: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            ReportedRun::empty(path)
        };
        let mut runs = [run("a/one"), run("b/one"), run("two")];
        name(&mut runs).unwrap();
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["a/one", "b/one", "two"]);
        let error = name(&mut [run("two"), run("two")]).unwrap_err().to_string();
        assert!(error.contains("twice"), "{error}");
    }

    #[test]
    fn a_run_that_was_just_started_is_unfinished_and_other_folders_are_no_runs() {
        let folder = tempfile::tempdir().unwrap();
        let error = read_runs(&[folder.path().into()]).unwrap_err().to_string();
        assert!(error.contains("none of these"), "{error}");
        let write = |text: &str| std::fs::write(folder.path().join("run.json"), text).unwrap();
        write(r#"{"model": "m", "model_sha256": "5", "settings": {"layer": {"scheme": "2x8g8"}}}"#);
        let runs = read_runs(&[folder.path().into()]).unwrap();
        assert_eq!(
            (runs[0].state, runs[0].kind),
            (RunState::Unfinished, RunKind::Quantize)
        );
        assert_eq!(runs[0].phase_seconds(), None);
        write(r#"{"model": "m", "settings": {"layer": {"scheme": "2x8g8"}}}"#);
        let error = read_runs(&[folder.path().into()]).unwrap_err().to_string();
        assert!(error.contains("`model_sha256`"), "{error}");
    }
}
