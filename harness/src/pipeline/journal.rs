use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::quantize::BlockReport;
use crate::durable;
use crate::error::{Error, Result};

/// One finished block: its file's checksum makes it count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct JournalEntry {
    pub(super) block: usize,
    pub(super) file: String,
    pub(super) sha256: String,
    pub(super) report: BlockReport,
}

/// `journal.jsonl`: one line a finished block, appended and fsynced after the block's file is in place.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    entries: Vec<JournalEntry>,
}

impl Journal {
    /// Reads what is there. A last line without its newline is a write that was cut off: it is dropped.
    ///
    /// # Errors
    /// `Error::Field` naming the line when a whole line does not parse or the blocks are not 0, 1, 2, ...
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("journal.jsonl");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::io(&path, "read")(source)),
        };
        let mut entries = Vec::new();
        for (number, line) in text.split_inclusive('\n').enumerate() {
            let Some(line) = line.strip_suffix('\n') else {
                break;
            };
            let entry: JournalEntry = serde_json::from_str(line).map_err(|error| Error::Field {
                path: path.clone(),
                field: format!("line {}", number + 1),
                expected: "the record of a finished block".into(),
                found: error.to_string(),
            })?;
            if entry.block != entries.len() {
                return Err(Error::Field {
                    path,
                    field: format!("line {}, block", number + 1),
                    expected: entries.len().to_string(),
                    found: entry.block.to_string(),
                });
            }
            entries.push(entry);
        }
        Ok(Self { path, entries })
    }

    pub(super) fn entries(&self) -> &[JournalEntry] {
        &self.entries
    }

    /// Keeps only the first `count` blocks, for a block after them turned out to be damaged.
    pub(super) fn truncate(&mut self, count: usize) -> Result<()> {
        self.entries.truncate(count);
        let mut text = String::new();
        for entry in &self.entries {
            text.push_str(&line(entry));
        }
        durable::write_text(&self.path, &text)
    }

    pub(super) fn append(&mut self, entry: JournalEntry) -> Result<()> {
        // A cut-off line may be lying at the end of the file; rewriting the few lines is simpler than repairing.
        let whole: String = self.entries.iter().map(line).collect();
        let length = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        if length != whole.len() as u64 {
            durable::write_text(&self.path, &whole)?;
        }
        let append = || -> std::io::Result<()> {
            let mut file: File = OpenOptions::new().create(true).append(true).open(&self.path)?;
            file.write_all(line(&entry).as_bytes())?;
            file.sync_all()
        };
        append().map_err(Error::io(&self.path, "write"))?;
        self.entries.push(entry);
        Ok(())
    }
}

fn line(entry: &JournalEntry) -> String {
    // Serialising plain numbers and strings to memory cannot fail.
    let mut text = serde_json::to_string(entry).unwrap_or_default();
    text.push('\n');
    text
}
