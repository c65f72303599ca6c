use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lock::FolderLock;
use super::metrics::{self, Metric, MetricEvent};
use crate::backends::BackendKind;
use crate::ranks::{Ranks, share, wait_for_first};
use aqlm_formats::durable;
use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};

/// Identity of a run: `run.json`. Two runs are the same if everything agrees except the wording of the
/// command, the device and the time. Only the same run can be resumed.
///
/// `S` holds the settings of the command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunDescription<S> {
    /// version of the program
    pub version: String,
    /// the exact command; bytes that are not UTF-8 are replaced
    pub command: Vec<String>,
    /// where the model came from
    pub model: String,
    /// SHA-256 of the model's files
    pub model_sha256: String,
    /// where the calibration text came from
    pub calibration: String,
    /// SHA-256 of the calibration token ids
    pub calibration_sha256: String,
    /// which backend
    pub backend: BackendKind,
    /// the device
    pub device: String,
    /// all settings
    pub settings: S,
}

impl<S: Serialize + Clone> RunDescription<S> {
    /// Describes the run that this process is about to start.
    ///
    /// # Errors
    /// `Error::Io` when the model's files can't be read.
    pub fn new(
        model: &Model,
        calibration_path: &Path,
        calibration: &[&[u32]],
        settings: &S,
        backend: BackendKind,
        device: String,
    ) -> Result<Self> {
        let tokens: Vec<u8> = calibration
            .iter()
            .copied()
            .flatten()
            .flat_map(|token| token.to_le_bytes())
            .collect();
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: std::env::args_os()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect(),
            model: model.source().display().to_string(),
            model_sha256: model.fingerprint()?,
            calibration: calibration_path.display().to_string(),
            calibration_sha256: durable::sha256(&tokens),
            backend,
            device,
            settings: settings.clone(),
        })
    }

    /// The first field whose difference forbids resuming, with both values.
    ///
    /// # Errors
    /// `Error::Internal` when settings are not valid JSON.
    pub fn difference(&self, other: &Self) -> Result<Option<(String, String, String)>> {
        let fields = |run: &Self| -> Result<Vec<(String, String)>> {
            let mut fields = vec![
                ("version".into(), run.version.clone()),
                ("model_sha256".into(), run.model_sha256.clone()),
                ("calibration_sha256".into(), run.calibration_sha256.clone()),
                ("backend".into(), run.backend.to_string()),
            ];
            let settings = serde_json::to_value(&run.settings)
                .map_err(|error| Error::Internal(format!("settings of a run that are no JSON: {error}")))?;
            flatten("settings", &settings, &mut fields);
            Ok(fields)
        };
        let (mine, theirs) = (fields(self)?, fields(other)?);
        let differs = mine.iter().find(|field| !theirs.contains(field));
        let Some(differs) = differs.or_else(|| theirs.iter().find(|field| !mine.contains(field))) else {
            return Ok(None);
        };
        let value = |fields: &[(String, String)]| {
            fields
                .iter()
                .find(|(name, _)| *name == differs.0)
                .map_or("nothing".to_owned(), |(_, value)| value.clone())
        };
        Ok(Some((differs.0.clone(), value(&mine), value(&theirs))))
    }
}

fn flatten(prefix: &str, value: &Value, fields: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&format!("{prefix}.{key}"), value, fields);
            }
        }
        leaf => fields.push((prefix.to_owned(), leaf.to_string())),
    }
}

/// A device in words without its number of threads, on which no result depends.
fn arithmetic(device: &str) -> String {
    let parts = device.split(", ").filter(|part| !part.ends_with(" threads"));
    parts.collect::<Vec<_>>().join(", ")
}

/// The folder of a run (docs/resume.md): `run.json`, `metrics.jsonl`, `journal.jsonl`, the files named in the
/// journal, and the final model.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// `None` on ranks that only read
    lock: Option<FolderLock>,
}

impl RunFolder {
    /// Starts a run in a new or empty folder. With `resume`, continues in the folder of the same run.
    ///
    /// # Errors
    /// `Error::RunExists` when the folder holds this run and `resume` is not set. `Error::RunFolder` when the
    /// folder holds something else or another run, or is in use.
    pub fn open<S: Serialize + DeserializeOwned + Clone>(
        path: &Path,
        description: &RunDescription<S>,
        resume: bool,
    ) -> Result<Self> {
        let refuse = |reason: String| {
            Err(Error::RunFolder {
                path: path.to_path_buf(),
                reason,
            })
        };
        let run_json = path.join("run.json");
        let exists = match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                return refuse("it is a file, expected a folder or nothing".into());
            }
            Err(source) => return Err(Error::io(path, "read")(source)),
        };
        if exists {
            if !run_json.is_file() {
                return refuse("it exists, is not empty and is not a run of `aqlm` (no run.json)".into());
            }
            let text = std::fs::read(&run_json).map_err(Error::io(&run_json, "read"))?;
            let found: RunDescription<S> = serde_json::from_slice(&text).map_err(|error| Error::Field {
                path: run_json.clone(),
                field: "whole file".into(),
                expected: "the description of a run of this command".into(),
                found: error.to_string(),
            })?;
            if let Some((field, wanted, there)) = description.difference(&found)? {
                return refuse(format!(
                    "it holds another run: {field} is {there} there and {wanted} here"
                ));
            }
            if !resume {
                return Err(Error::RunExists { path: path.into() });
            }
            let lock = FolderLock::take(path)?;
            return Ok(Self {
                path: path.to_path_buf(),
                lock: Some(lock),
            });
        }
        std::fs::create_dir_all(path).map_err(Error::io(path, "make"))?;
        let lock = FolderLock::take(path)?;
        let text = serde_json::to_string_pretty(description)
            .map_err(|error| Error::Internal(format!("settings of a run that are no JSON: {error}")))?;
        durable::write_text(&run_json, &text)?;
        Ok(Self {
            path: path.to_path_buf(),
            lock: Some(lock),
        })
    }

    /// [`RunFolder::open`] on rank 0, which alone writes to the folder. The other ranks read there, after
    /// they have found that they describe the same run, on the same kind of device.
    ///
    /// # Errors
    /// As [`RunFolder::open`]; `Error::Rank` when a rank sees another model or text, or has another device.
    pub fn open_on<S: Serialize + DeserializeOwned + Clone>(
        ranks: &dyn Ranks,
        path: &Path,
        description: &RunDescription<S>,
        resume: bool,
    ) -> Result<Self> {
        let first = share(ranks, 0, || Ok(description.clone()))?;
        let refuse = |(field, expected, found): (String, String, String)| {
            Err(Error::Rank {
                name: format!("rank {} of {}", ranks.rank(), ranks.size()),
                reason: format!("{field}: expected {expected} as on rank 0, found {found}"),
            })
        };
        if let Some((field, found, expected)) = description.difference(&first)? {
            return refuse((field, expected, found));
        }
        let [expected, found] = [&first, description].map(|run| arithmetic(&run.device));
        if expected != found {
            return refuse(("device".into(), expected, found));
        }
        // No rank looks into the folder before rank 0 has opened it.
        let opened = if ranks.is_first() {
            Some(Self::open(path, description, resume)?)
        } else {
            None
        };
        wait_for_first(ranks)?;
        Ok(opened.unwrap_or(Self {
            path: path.to_path_buf(),
            lock: None,
        }))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a finished block's file, relative to the folder.
    pub fn block_file(block: usize) -> String {
        format!("blocks/block_{block:04}.safetensors")
    }

    /// Path of a finished block's file.
    pub fn block_path(&self, block: usize) -> PathBuf {
        self.path.join(Self::block_file(block))
    }

    /// Appends one event to `metrics.jsonl`; does nothing on ranks that only read.
    ///
    /// # Errors
    /// `Error::Io` when it can't be written.
    pub fn metric(&self, event: MetricEvent) -> Result<()> {
        if self.lock.is_none() {
            return Ok(());
        }
        metrics::append(&self.path, &Metric::now(event))
    }
}
