use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use aqlm_formats::durable;
use aqlm_formats::{Error, Result};

/// A file of one record per line, appended and fsynced. A write that is cut off anywhere loses at most its
/// own record.
#[derive(Debug)]
pub(crate) struct JsonLines<T> {
    path: PathBuf,
    records: Vec<T>,
}

impl<T: Serialize + DeserializeOwned> JsonLines<T> {
    /// Reads the existing records. A last line without a newline is an interrupted write and is dropped.
    ///
    /// # Errors
    /// `Error::Field` naming the line when a complete line does not parse as `what`.
    pub(crate) fn open(path: &Path, what: &str) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::io(path, "read")(source)),
        };
        let mut records = Vec::new();
        for (number, line) in text.split_inclusive('\n').enumerate() {
            let Some(line) = line.strip_suffix('\n') else {
                break;
            };
            let record = serde_json::from_str(line).map_err(|error| Error::Field {
                path: path.into(),
                field: format!("line {}", number + 1),
                expected: what.into(),
                found: error.to_string(),
            })?;
            records.push(record);
        }
        Ok(Self {
            path: path.into(),
            records,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn records(&self) -> &[T] {
        &self.records
    }

    /// Keeps only the first `count` records.
    pub(crate) fn truncate(&mut self, count: usize) -> Result<()> {
        self.records.truncate(count);
        durable::write_text(&self.path, &self.whole())
    }

    pub(crate) fn append(&mut self, record: T) -> Result<()> {
        // The file may end in an incomplete line; rewriting the few lines is simpler than repairing.
        let whole = self.whole();
        let length = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Error::io(&self.path, "read")(error)),
        };
        if length != whole.len() as u64 {
            durable::write_text(&self.path, &whole)?;
        }
        let append = || -> std::io::Result<()> {
            let mut file: File = OpenOptions::new().create(true).append(true).open(&self.path)?;
            file.write_all(line(&record).as_bytes())?;
            file.sync_all()
        };
        append().map_err(Error::io(&self.path, "write"))?;
        self.records.push(record);
        Ok(())
    }

    fn whole(&self) -> String {
        self.records.iter().map(line).collect()
    }
}

fn line(record: &impl Serialize) -> String {
    let mut text = serde_json::to_string(record).expect("a record is numbers, texts and lists of them");
    text.push('\n');
    text
}
