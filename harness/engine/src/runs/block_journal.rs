use std::path::Path;

use serde::{Deserialize, Serialize};

use super::json_lines::JsonLines;
use super::records::BlockReport;
use aqlm_formats::{Error, Result};

/// One finished block. It counts only if its file has this checksum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct JournalEntry {
    pub(crate) block: usize,
    pub(crate) file: String,
    pub(crate) sha256: String,
    pub(crate) report: BlockReport,
}

/// `journal.jsonl`: one line per finished block, appended and fsynced after the block's file is in place.
#[derive(Debug)]
pub(crate) struct Journal {
    lines: JsonLines<JournalEntry>,
}

impl Journal {
    /// Reads the existing entries.
    ///
    /// # Errors
    /// Those of [`JsonLines::open`]; `Error::Field` naming the line when the blocks are not 0, 1, 2, ...
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let lines: JsonLines<JournalEntry> =
            JsonLines::open(&folder.join("journal.jsonl"), "the record of a finished block")?;
        for (index, entry) in lines.records().iter().enumerate() {
            if entry.block != index {
                return Err(Error::Field {
                    path: lines.path().into(),
                    field: format!("line {}, block", index + 1),
                    expected: index.to_string(),
                    found: entry.block.to_string(),
                });
            }
        }
        Ok(Self { lines })
    }

    pub(crate) fn entries(&self) -> &[JournalEntry] {
        self.lines.records()
    }

    /// Keeps only the first `count` blocks, because the block after them is damaged.
    pub(crate) fn truncate(&mut self, count: usize) -> Result<()> {
        self.lines.truncate(count)
    }

    pub(crate) fn append(&mut self, entry: JournalEntry) -> Result<()> {
        self.lines.append(entry)
    }
}
