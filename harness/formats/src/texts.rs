//! Reads texts (.txt and .jsonl, optionally gzipped) as one stream of tokens.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::Utf8Error;

use flate2::read::MultiGzDecoder;
use rayon::prelude::*;
use serde_json::Value;

use crate::durable::sha256;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The tokens of a text file, document after document.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenStream {
    path: PathBuf,
    tokens: Vec<u32>,
    documents: usize,
    /// SHA-256 of each document's text
    digests: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Text,
    JsonLines,
}

impl TokenStream {
    /// Reads a file. Its extension decides how:
    ///
    /// - `.txt` is one stream, encoded with the tokenizer's defaults (BOS comes first only if the tokenizer
    ///   adds it).
    /// - `.jsonl` has one {"text": ...} per line, each a document: BOS, its tokens, EOS, if the model has
    ///   such markers.
    /// - `.gz` after either is decompressed first.
    ///
    /// # Errors
    /// `Io`; `Kind` for other extensions; `Line` and `Json` with the line's number; `TooShort` for a file
    /// without any text.
    pub fn load(path: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        Self::from_bytes(path, &bytes, tokenizer)
    }

    /// [`TokenStream::load`] for bytes in memory; `name` appears in errors and its extension decides the
    /// format.
    ///
    /// # Errors
    /// Those of [`TokenStream::load`].
    pub fn from_bytes(name: &Path, bytes: &[u8], tokenizer: &Tokenizer) -> Result<Self> {
        let (format, text) = unpacked(name, bytes)?;
        let text = text.as_ref();
        let (tokens, digests) = match format {
            Format::Text => (tokenizer.encode(text, true)?, vec![digest(text)]),
            Format::JsonLines => encode_documents(name, text, tokenizer)?,
        };
        let documents = digests.len();
        if text.trim().is_empty() || documents == 0 {
            return Err(no_text(name));
        }
        Ok(Self {
            path: name.into(),
            tokens,
            documents,
            digests,
        })
    }

    /// Number of this text's documents that also occur in another text, compared by their hashes.
    pub fn documents_shared_with(&self, other: &Self) -> usize {
        let theirs: HashSet<&String> = other.digests.iter().collect();
        self.digests
            .iter()
            .filter(|digest| theirs.contains(digest))
            .count()
    }

    /// The tokens, markers included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of documents; a .txt file is one.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Windows of `context` tokens that do not overlap; an incomplete last one is dropped.
    ///
    /// # Errors
    /// `TooShort` when there is not even one. A `context` of 0 counts as 1.
    pub fn windows(&self, context: usize) -> Result<Vec<&[u32]>> {
        let context = context.max(1);
        self.need(context, || format!("one window of {context}"))?;
        Ok(self.tokens.chunks_exact(context).collect())
    }

    /// The first `count` x `length` tokens of the stream, cut into `count` sequences of `length` tokens.
    ///
    /// # Errors
    /// `TooShort` when the text has fewer tokens, with their number. 0 for either argument counts as 1.
    pub fn calibration_sequences(&self, length: usize, count: usize) -> Result<Vec<&[u32]>> {
        let (length, count) = (length.max(1), count.max(1));
        self.need(length, || format!("one sequence of {length}"))?;
        self.need(length.saturating_mul(count), || {
            let there = self.tokens.len() / length;
            format!("{count} sequences of {length}; there are {there}")
        })?;
        Ok(self.tokens.chunks_exact(length).take(count).collect())
    }

    fn need(&self, expected: usize, what: impl FnOnce() -> String) -> Result<()> {
        if self.tokens.len() >= expected {
            return Ok(());
        }
        Err(Error::TooShort {
            path: self.path.clone(),
            what: what(),
            expected,
            found: self.tokens.len(),
        })
    }
}

/// The texts of a file's documents in order; a .txt file is one document. [`TokenStream::load`] says which
/// files.
///
/// # Errors
/// Those of [`TokenStream::load`].
pub fn documents(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let (format, text) = unpacked(path, &bytes)?;
    let documents = match format {
        Format::Text => vec![text.into_owned()],
        Format::JsonLines => numbered_documents(&text)
            .into_par_iter()
            .map(|(number, line)| document(path, number, line))
            .collect::<Result<_>>()?,
    };
    if documents.iter().any(|text| !text.trim().is_empty()) {
        Ok(documents)
    } else {
        Err(no_text(path))
    }
}

/// A file's text, and how its documents are marked.
fn unpacked<'a>(name: &Path, bytes: &'a [u8]) -> Result<(Format, Cow<'a, str>)> {
    let zipped = name.extension().is_some_and(|ending| ending == "gz");
    let inner = if zipped {
        name.with_extension("")
    } else {
        name.into()
    };
    let format = match inner.extension().and_then(|ending| ending.to_str()) {
        Some("txt") => Format::Text,
        Some("jsonl") => Format::JsonLines,
        other => {
            return Err(Error::Kind {
                path: name.into(),
                expected: "a file ending in .txt, .jsonl, .txt.gz or .jsonl.gz".into(),
                found: other.map_or_else(|| "no ending".into(), |ending| format!(".{ending}")),
            });
        }
    };
    let not_text = |bytes: &[u8], error: Utf8Error| Error::Line {
        path: name.into(),
        line: bytes[..error.valid_up_to()].split(|&byte| byte == b'\n').count(),
        expected: "UTF-8 text".into(),
        found: format!("byte {:#04x}", bytes[error.valid_up_to()]),
    };
    let text = if zipped {
        let mut unpacked = Vec::new();
        MultiGzDecoder::new(bytes)
            .read_to_end(&mut unpacked)
            .map_err(Error::io(name, "unpack"))?;
        let text = String::from_utf8(unpacked);
        Cow::Owned(text.map_err(|error| not_text(error.as_bytes(), error.utf8_error()))?)
    } else {
        Cow::Borrowed(std::str::from_utf8(bytes).map_err(|error| not_text(bytes, error))?)
    };
    Ok((format, text))
}

fn no_text(path: &Path) -> Error {
    Error::TooShort {
        path: path.into(),
        what: "any text at all".into(),
        expected: 1,
        found: 0,
    }
}

/// SHA-256 of a document's text, without leading and trailing white space.
fn digest(text: &str) -> String {
    sha256(text.trim().as_bytes())
}

/// Tokens of all documents in order, and the digest of each. Blank lines are not documents.
fn encode_documents(path: &Path, text: &str, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<String>)> {
    let encoded = numbered_documents(text)
        .into_par_iter()
        .map(|(number, line)| {
            let text = document(path, number, line)?;
            Ok((tokenizer.encode(&text, false)?, digest(&text)))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut tokens = Vec::with_capacity(encoded.iter().map(|(ids, _)| ids.len() + 2).sum());
    for (ids, _) in &encoded {
        tokens.extend(tokenizer.bos());
        tokens.extend(ids);
        tokens.extend(tokenizer.eos());
    }
    Ok((tokens, encoded.into_iter().map(|(_, digest)| digest).collect()))
}

/// The lines of a .jsonl file that are not blank, with their numbers from 1.
fn numbered_documents(text: &str) -> Vec<(usize, &str)> {
    let lines = (1..).zip(text.lines());
    lines.filter(|(_, line)| !line.trim().is_empty()).collect()
}

/// The text of one line of a .jsonl file.
fn document(path: &Path, number: usize, line: &str) -> Result<String> {
    let value: Value = serde_json::from_str(line).map_err(Error::json(path, number))?;
    let found = match value {
        Value::Object(mut map) => match map.remove("text") {
            Some(Value::String(text)) => return Ok(text),
            Some(other) => format!("\"text\": {}", kind_of(&other)),
            None => "an object without \"text\"".into(),
        },
        other => kind_of(&other).to_string(),
    };
    Err(Error::Line {
        path: path.into(),
        line: number,
        expected: "an object with a string \"text\"".into(),
        found,
    })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::model::{Model, embedded};

    fn tokenizer() -> Tokenizer {
        Model::embedded().unwrap().tokenizer().unwrap()
    }

    fn parse(name: &str, bytes: impl AsRef<[u8]>) -> Result<TokenStream> {
        TokenStream::from_bytes(Path::new(name), bytes.as_ref(), &tokenizer())
    }

    #[test]
    fn the_embedded_evaluation_text_has_194_windows_of_512() {
        let stream = parse("eval.jsonl", embedded::EVALUATION_TEXT).unwrap();
        assert_eq!(stream.documents(), 400);
        assert_eq!(stream.windows(512).unwrap().len(), 194);
        assert_eq!(stream.tokens().iter().filter(|&&id| id == 1).count(), 400);
        assert_eq!((stream.tokens()[0], stream.tokens().last()), (1, Some(&2)));
    }

    #[test]
    fn calibration_takes_the_first_tokens_in_order() {
        let stream = parse("calibration.jsonl", embedded::CALIBRATION_TEXT).unwrap();
        let sequences = stream.calibration_sequences(256, 128).unwrap();
        assert_eq!(sequences.len(), 128);
        assert_eq!(sequences.concat(), stream.tokens()[..256 * 128]);
    }

    #[test]
    fn each_line_is_a_document_with_markers() {
        let stream = parse(
            "a.jsonl",
            "{\"text\": \"Once\"}\n\n{\"text\": \"\", \"id\": 3}\r\n",
        )
        .unwrap();
        let once = tokenizer().encode("Once", false).unwrap();
        assert_eq!(stream.documents(), 2);
        assert_eq!(stream.tokens(), [vec![1], once, vec![2, 1, 2]].concat());
    }

    #[test]
    fn documents_are_texts_without_markers() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            documents(&path)
        };
        let lines = read("a.jsonl", "{\"text\": \"Once\\n\"}\n\n{\"text\": \"\"}\n").unwrap();
        assert_eq!(lines, ["Once\n", ""]);
        assert_eq!(read("a.txt", "Once\n\nupon").unwrap(), ["Once\n\nupon"]);
        assert!(matches!(
            read("b.jsonl", "{\"text\": \" \"}"),
            Err(Error::TooShort { .. })
        ));
        assert!(matches!(read("c.jsonl", "{}"), Err(Error::Line { line: 1, .. })));
    }

    #[test]
    fn shared_documents_are_found_whatever_else_the_lines_hold() {
        let a = parse("a.jsonl", "{\"text\": \"Once\"}\n{\"text\": \"upon\"}\n").unwrap();
        let b = parse(
            "b.jsonl",
            "{\"text\": \"a time\"}\n{\"id\": 3, \"text\": \"Once \"}\n",
        )
        .unwrap();
        assert_eq!((a.documents_shared_with(&b), a.documents_shared_with(&a)), (1, 2));
        assert_eq!(parse("c.txt", "Once\n").unwrap().documents_shared_with(&a), 1);
    }

    #[test]
    fn text_is_one_stream_as_the_tokenizer_encodes_it() {
        let text = "Once upon a time\n\nthere was";
        let stream = parse("a.txt", text).unwrap();
        assert_eq!(stream.tokens(), tokenizer().encode(text, true).unwrap());
    }

    #[test]
    fn gzipped_is_the_same() {
        let text = b"{\"text\": \"Once upon a time\"}\n";
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        let zipped = parse("a.jsonl.gz", encoder.finish().unwrap()).unwrap();
        assert_eq!(zipped.tokens(), parse("a.jsonl", text).unwrap().tokens());
    }

    #[test]
    fn truncated_gzip_is_refused() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&[b'x'; 1000]).unwrap();
        let bytes = encoder.finish().unwrap();
        let result = parse("a.txt.gz", &bytes[..bytes.len() - 6]);
        assert!(matches!(result, Err(Error::Io { action: "unpack", .. })));
    }

    #[test]
    fn lines_that_are_no_json_are_named() {
        let result = parse("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \n");
        assert!(matches!(result, Err(Error::Json { line: 2, .. })));
    }

    #[test]
    fn lines_without_text_are_named() {
        for (line, expected) in [
            ("{\"texts\": \"a\"}", "an object without \"text\""),
            ("{\"text\": 3}", "\"text\": a number"),
            ("[\"a\"]", "a list"),
        ] {
            let result = parse("a.jsonl", format!("{{\"text\": \"a\"}}\n\n{line}\n"));
            assert!(matches!(result, Err(Error::Line { line: 3, found, .. }) if found == expected));
        }
    }

    #[test]
    fn invalid_utf8_is_named_by_line() {
        let result = parse("a.txt", b"fine\nfine\n\xff");
        assert!(matches!(result, Err(Error::Line { line: 3, .. })));
    }

    #[test]
    fn other_endings_are_refused() {
        for name in ["a.csv", "a", "a.gz", "a.parquet"] {
            assert!(matches!(parse(name, "text"), Err(Error::Kind { .. })), "{name}");
        }
    }

    #[test]
    fn short_texts_are_refused_with_both_numbers() {
        assert!(matches!(parse("a.txt", " \n"), Err(Error::TooShort { .. })));
        assert!(matches!(parse("a.jsonl", "\n"), Err(Error::TooShort { .. })));
        let stream = parse("a.txt", "Once upon a time there was a cat").unwrap();
        let found = stream.tokens().len();
        assert!(stream.windows(found).is_ok());
        let result = stream.windows(found + 1);
        assert!(
            matches!(result, Err(Error::TooShort { expected, found: f, .. }) if expected == found + 1 && f == found)
        );
        assert!(stream.calibration_sequences(found / 2, 2).is_ok());
        let result = stream.calibration_sequences(found / 2, 3);
        assert!(matches!(result, Err(Error::TooShort { what, .. }) if what.contains("3 sequences")));
        let result = stream.calibration_sequences(found + 1, 3);
        assert!(matches!(result, Err(Error::TooShort { what, .. }) if what.contains("one sequence")));
    }
}
