use std::path::{Path, PathBuf};

use aqlm_vocabulary::ModelTraining;
use serde::{Deserialize, Serialize};

use super::json_lines::JsonLines;
use super::tuning_state::{open_state, restore_state, write_state};
use crate::{EndToEndEvent, EndToEndReport};
use aqlm_formats::{Error, Result};

/// Number of states kept besides the best one: the current state, and the previous one in case the current
/// file is damaged.
const KEPT: usize = 2;

/// Folder of the state files in a run folder.
const STATES: &str = "states";

/// A state file. It counts only if it has this checksum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StateFile {
    pub(crate) file: String,
    pub(crate) sha256: String,
}

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// epochs finished
    pub(crate) epoch: usize,
    /// steps taken in the epoch after them
    pub(crate) step: usize,
    /// losses of these steps, summed over positions
    pub(crate) epoch_total: f64,
    /// parameters at this point
    pub(crate) state: StateFile,
    /// parameters of the best epoch end; `None` while the initial parameters are the best
    pub(crate) best: Option<StateFile>,
    pub(crate) report: EndToEndReport,
}

/// `journal.jsonl` and the state files that it names.
pub(crate) struct Journal {
    folder: PathBuf,
    lines: JsonLines<Checkpoint>,
}

/// Continues a tuner from a state of the run in this folder.
pub(crate) fn restore(run: &Path, state: &StateFile, tuner: &mut impl ModelTraining) -> Result<()> {
    restore_state(&run.join(STATES).join(&state.file), &state.sha256, tuner)
}

impl Journal {
    pub(crate) fn open(run: &Path) -> Result<Self> {
        let folder = run.join(STATES);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "make"))?;
        Ok(Self {
            folder,
            lines: JsonLines::open(&run.join("journal.jsonl"), "the record of a state")?,
        })
    }

    /// The last checkpoint whose files are intact, from whose state the tuner then continues. Later
    /// checkpoints are reported and dropped.
    pub(crate) fn restore_last(
        &mut self,
        tuner: &mut impl ModelTraining,
        observe: &mut dyn FnMut(EndToEndEvent),
    ) -> Result<Option<Checkpoint>> {
        let outline = tuner.outline();
        while let Some(checkpoint) = self.lines.records().last().cloned() {
            let files = std::iter::once(&checkpoint.state).chain(&checkpoint.best);
            let mut opened = files.map(|state| {
                let path = self.folder.join(&state.file);
                open_state(&path, &state.sha256, &outline).map(drop)
            });
            match opened.try_for_each(|opened| opened) {
                Ok(()) => {
                    let path = self.folder.join(&checkpoint.state.file);
                    restore_state(&path, &checkpoint.state.sha256, tuner)?;
                    return Ok(Some(checkpoint));
                }
                Err(error) => {
                    observe(EndToEndEvent::StateDamaged(error.to_string()));
                    self.lines.truncate(self.lines.records().len() - 1)?;
                }
            }
        }
        Ok(None)
    }

    /// Writes the state of a tuner under this name.
    pub(crate) fn write(&self, name: &str, tuner: &impl ModelTraining) -> Result<StateFile> {
        let written = self.write_if(name, tuner, false)?;
        written.ok_or_else(|| Error::Internal("a state that was not written".into()))
    }

    /// The same, unless something in it is not finite.
    pub(crate) fn write_finite(&self, name: &str, tuner: &impl ModelTraining) -> Result<Option<StateFile>> {
        self.write_if(name, tuner, true)
    }

    fn write_if(
        &self,
        name: &str,
        tuner: &impl ModelTraining,
        only_finite: bool,
    ) -> Result<Option<StateFile>> {
        let file = format!("{name}.safetensors");
        let written = write_state(&self.folder.join(&file), tuner, only_finite)?;
        Ok(written.map(|sha256| StateFile { file, sha256 }))
    }

    /// Records a checkpoint whose files are in place, and deletes files that no checkpoint needs any more.
    pub(crate) fn append(&mut self, checkpoint: Checkpoint) -> Result<()> {
        self.lines.append(checkpoint)?;
        let records = self.lines.records();
        let recent = &records[records.len().saturating_sub(KEPT)..];
        let needed: Vec<&str> = recent
            .iter()
            .flat_map(|record| [Some(&record.state), record.best.as_ref()])
            .flatten()
            .map(|state| state.file.as_str())
            .collect();
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder, "read"))? {
            let entry = entry.map_err(Error::io(&self.folder, "read"))?;
            let (path, name) = (entry.path(), entry.file_name());
            if !needed.iter().any(|&file| name == file) {
                std::fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
            }
        }
        Ok(())
    }
}
