//! JSON files as Python programs write them: with a byte order mark at times, and with numbers that JSON
//! does not have.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Error, Result, stand_in};

/// Key of the object that stands for a number that JSON does not have; transformers 5 writes the same.
pub(crate) const FLOAT: &str = "__float__";

/// Reads and parses a file.
///
/// # Errors
/// `Io`, and those of [`parse`].
pub(crate) fn read(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    parse(path, &bytes)
}

/// Parses the bytes of a file; `path` is its name in errors. A byte order mark is dropped. `NaN`, `Infinity`
/// and `-Infinity` become objects `{"__float__": "NaN"}`: no reader takes one for a number, so they matter
/// only in fields that are read.
///
/// # Errors
/// `Kind` for a git-lfs pointer or a web page; `Json`.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    stand_in::refuse(path, bytes, "JSON")?;
    let bytes = without_mark(bytes);
    serde_json::from_slice(bytes).or_else(|error| match marked_floats(bytes) {
        Cow::Borrowed(_) => Err(Error::json(path, 1)(error)),
        Cow::Owned(replaced) => serde_json::from_slice(&replaced).map_err(Error::json(path, 1)),
    })
}

/// The bytes without UTF-8's byte order mark.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The text with its NaN and infinities outside of strings replaced.
fn marked_floats(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut replaced = Vec::new();
    // everything before `copied` is in `replaced`
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => in_string = !in_string,
            b'\\' if in_string => at += 1,
            b'N' | b'I' | b'-' if !in_string => {
                let rest = &bytes[at..];
                let names = ["NaN", "Infinity", "-Infinity"].into_iter();
                if let Some(name) = names.into_iter().find(|name| rest.starts_with(name.as_bytes())) {
                    replaced.extend_from_slice(&bytes[copied..at]);
                    replaced.extend_from_slice(json!({ FLOAT: name }).to_string().as_bytes());
                    at += name.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(bytes);
    }
    replaced.extend_from_slice(&bytes[copied..]);
    Cow::Owned(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Value> {
        parse(Path::new("config.json"), text.as_bytes())
    }

    #[test]
    fn a_byte_order_mark_is_dropped() {
        assert_eq!(parsed("\u{feff}{\"a\": 1}").unwrap(), json!({"a": 1}));
    }

    #[test]
    fn numbers_that_json_lacks_are_kept_apart_from_numbers_and_strings() {
        let text = r#"{"a": NaN, "b": [-Infinity, Infinity, -1], "c": "NaN \" Infinity", "d": 1}"#;
        let float = |name: &str| json!({"__float__": name});
        let expected = json!({
            "a": float("NaN"), "b": [float("-Infinity"), float("Infinity"), -1], "c": "NaN \" Infinity", "d": 1,
        });
        assert_eq!(parsed(text).unwrap(), expected);
    }

    #[test]
    fn broken_text_is_named_with_its_place() {
        for text in [
            "{\"a\": }",
            "{\"a\": Nan}",
            "{\"a\": NaN",
            "\"\\",
            "{\"a\": NaN, \"b\": }",
        ] {
            assert!(matches!(parsed(text), Err(Error::Json { line: 1, .. })), "{text}");
        }
    }
}
