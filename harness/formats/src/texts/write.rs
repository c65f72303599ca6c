//! Writes documents as JSON lines.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use super::{TextFormat, told};
use crate::{Error, Result, durable};

/// Checks that [`write_documents`] can write a file of this name.
///
/// # Errors
/// `Kind` for a name that tells another format, or none.
pub fn check_documents_name(path: &Path) -> Result<()> {
    if told(path, None)? == TextFormat::JsonLines {
        return Ok(());
    }
    Err(Error::Kind {
        path: path.into(),
        expected: "a name ending in .jsonl or .jsonl.gz".into(),
        found: "another".into(),
    })
}

/// Writes documents as objects with a `text`, one a line, atomically; gzipped if the name ends in .gz.
///
/// # Errors
/// Those of [`check_documents_name`]; `Io`.
pub fn write_documents<S: AsRef<str>>(path: &Path, documents: &[S]) -> Result<()> {
    check_documents_name(path)?;
    let lines = |to: &mut dyn Write| {
        let mut documents = documents.iter();
        documents.try_for_each(|text| writeln!(to, "{}", json!({ "text": text.as_ref() })))
    };
    let packed = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("gz"));
    durable::write_file(path, |file| {
        if packed {
            let mut encoder = GzEncoder::new(file, Compression::default());
            lines(&mut encoder)?;
            encoder.finish().map(|_| ())
        } else {
            lines(file)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::texts::documents;

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let texts = ["one\ntwo \"three\"", "", "\u{1f600}"];
        for name in ["a.jsonl", "a.jsonl.gz"] {
            let path = folder.path().join(name);
            write_documents(&path, &texts).unwrap();
            assert_eq!(documents(&path, None).unwrap(), texts);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.starts_with(&[0x1f, 0x8b]), name.ends_with("gz"));
        }
        let error = write_documents(&folder.path().join("a.txt"), &texts).unwrap_err();
        assert!(
            error.to_string().contains("expected a name ending in .jsonl"),
            "{error}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
