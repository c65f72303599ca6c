//! Rows of a data set: objects with any fields.

use std::path::Path;

use serde_json::{Map, Value};

use super::{TextFormat, gzip, kind_of, plain_text, read, told};
use crate::{Error, Result};

/// An object of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// its line, from 1
    pub line: usize,
    /// its fields
    pub fields: Map<String, Value>,
}

/// The objects of a file with one of them a line; the file may be gzipped. Empty lines are skipped.
///
/// # Errors
/// `Io`; `Kind` for another format; `Line` and `Json` with the line's number, also for
/// a file without any object.
pub fn rows(path: &Path) -> Result<Vec<Row>> {
    let format = told(path, None)?;
    if format != TextFormat::JsonLines {
        return Err(Error::Kind {
            path: path.into(),
            expected: "a name ending in .jsonl, .ndjson or .json, or one of them with .gz".into(),
            found: "another".into(),
        });
    }
    rows_of(path, &read(path)?)
}

/// [`rows`] of bytes in memory; `name` appears in errors.
///
/// # Errors
/// As [`rows`], without `Kind`.
pub fn rows_of(name: &Path, bytes: &[u8]) -> Result<Vec<Row>> {
    let unpacked;
    let bytes = if gzip::is_packed(bytes) {
        unpacked = gzip::unpack(bytes).map_err(Error::io(name, "unpack"))?;
        &unpacked
    } else {
        bytes
    };
    let mut rows = Vec::new();
    for (line, text) in (1..).zip(plain_text(name, bytes)?.lines()) {
        if text.trim().is_empty() {
            continue;
        }
        let wrong = |found: &str| Error::Line {
            path: name.into(),
            line,
            expected: "an object".into(),
            found: found.into(),
        };
        match serde_json::from_str(text).map_err(Error::json(name, line))? {
            Value::Object(fields) => rows.push(Row { line, fields }),
            other => return Err(wrong(kind_of(&other))),
        }
    }
    if rows.is_empty() {
        return Err(Error::Line {
            path: name.into(),
            line: 1,
            expected: "an object".into(),
            found: "no object in the whole file".into(),
        });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn rows_keep_their_lines_and_may_be_packed() {
        let text = "{\"a\": 1}\n\n{\"b\": [\"c\"]}\n";
        let plain = rows_of(Path::new("x.jsonl"), text.as_bytes()).unwrap();
        let lines: Vec<usize> = plain.iter().map(|row| row.line).collect();
        assert_eq!(lines, [1, 3]);
        assert_eq!(plain[1].fields["b"][0], "c");
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(rows_of(Path::new("x.jsonl.gz"), &packed).unwrap(), plain);
    }

    #[test]
    fn what_is_no_object_is_named_by_its_line() {
        for (text, words) in [
            ("{}\n[1]", "x.jsonl, line 2: expected an object, found a list"),
            ("{}\n{", "x.jsonl, line 2, column 1"),
            ("\n \n", "no object in the whole file"),
        ] {
            let error = rows_of(Path::new("x.jsonl"), text.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = rows(Path::new("x.parquet")).unwrap_err().to_string();
        assert!(error.contains("expected a name ending in .jsonl"), "{error}");
    }
}
