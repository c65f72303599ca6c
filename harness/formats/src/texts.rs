//! Reads texts (.txt, .jsonl and .parquet, the first two optionally gzipped) as one stream of tokens.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::Value;

use crate::durable::sha256;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

mod checked_pages;
mod gzip;
mod page_headers;
pub(crate) mod parquet;
mod rows;
mod write;

pub use rows::{Row, rows, rows_of};
pub use write::{check_documents_name, write_documents};

/// The path that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// How a text file holds its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// one stream of UTF-8
    Text,
    /// an object with a `text` in every line, each a document
    JsonLines,
    /// a column `text`, each row a document
    Parquet,
}

impl TextFormat {
    /// The format that a file's name tells, in letters of either case: .txt or .raw, .jsonl, .ndjson or
    /// .json, .parquet; .gz after all but the last.
    pub fn of(name: &Path) -> Option<Self> {
        let ending = |path: &Path| Some(path.extension()?.to_str()?.to_ascii_lowercase());
        let last = ending(name)?;
        let packed = last == "gz";
        let last = if packed {
            ending(&name.with_extension(""))?
        } else {
            last
        };
        match last.as_str() {
            "txt" | "raw" => Some(Self::Text),
            "jsonl" | "ndjson" | "json" => Some(Self::JsonLines),
            "parquet" if !packed => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// The tokens of a text file, document after document.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenStream {
    path: PathBuf,
    format: TextFormat,
    /// the bytes, if they cannot be read a second time
    bytes: Option<Arc<Vec<u8>>>,
    tokens: Vec<u32>,
    documents: usize,
    /// SHA-256 of each document's text
    digests: Vec<String>,
}

impl TokenStream {
    /// Reads a file, or standard input for the path `-`. The name tells the format ([`TextFormat::of`]), or
    /// else `stated` does:
    ///
    /// - A text is one stream, encoded with the tokenizer's defaults (BOS comes first only if the tokenizer
    ///   adds it).
    /// - Of JSON lines and parquet, each row is a document: BOS, its tokens, EOS, if the model has such
    ///   markers.
    /// - Texts and JSON lines that are gzipped are unpacked first, whatever their name, and a byte order mark
    ///   is dropped.
    ///
    /// # Errors
    /// `Io`; `Kind` when neither the name nor `stated` tells the format, and for damaged parquet files;
    /// `Line` and `Json` with the line's number; `Field` for a row without a text; `TooShort` for a file
    /// without any text.
    pub fn load_as(path: &Path, stated: Option<TextFormat>, tokenizer: &Tokenizer) -> Result<Self> {
        let bytes = read(path)?;
        let mut stream = Self::parse(path, stated, &bytes, tokenizer)?;
        if path.as_os_str() == STANDARD_INPUT || !path.is_file() {
            stream.bytes = Some(Arc::new(bytes));
        }
        Ok(stream)
    }

    /// [`TokenStream::load_as`] for a file whose name tells the format.
    ///
    /// # Errors
    /// Those of [`TokenStream::load_as`].
    pub fn load(path: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        Self::load_as(path, None, tokenizer)
    }

    /// The same text with another tokenizer.
    ///
    /// # Errors
    /// Those of [`TokenStream::load_as`].
    pub fn with_tokenizer(&self, tokenizer: &Tokenizer) -> Result<Self> {
        match &self.bytes {
            Some(bytes) => Self::parse(&self.path, Some(self.format), bytes, tokenizer),
            None => Self::load_as(&self.path, Some(self.format), tokenizer),
        }
    }

    /// [`TokenStream::load`] for bytes in memory; `name` appears in errors and its ending tells the format.
    ///
    /// # Errors
    /// Those of [`TokenStream::load`].
    pub fn from_bytes(name: &Path, bytes: &[u8], tokenizer: &Tokenizer) -> Result<Self> {
        Self::parse(name, None, bytes, tokenizer)
    }

    fn parse(name: &Path, stated: Option<TextFormat>, bytes: &[u8], tokenizer: &Tokenizer) -> Result<Self> {
        let format = told(name, stated)?;
        let documents = parse(name, format, bytes)?;
        let (tokens, digests) = match (format, &documents[..]) {
            (_, []) => return Err(no_text(name)),
            (TextFormat::Text, [text, ..]) if text.trim().is_empty() => return Err(no_text(name)),
            (TextFormat::Text, [text, ..]) => (tokenizer.encode(text, true)?, vec![digest(text)]),
            (TextFormat::JsonLines | TextFormat::Parquet, _) => encode_documents(&documents, tokenizer)?,
        };
        let documents = digests.len();
        Ok(Self {
            path: name.into(),
            format,
            bytes: None,
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

/// The texts of a file's documents in order; a text is one document. [`TokenStream::load_as`] says which
/// files.
///
/// # Errors
/// Those of [`TokenStream::load_as`].
pub fn documents(path: &Path, stated: Option<TextFormat>) -> Result<Vec<String>> {
    let documents = parse(path, told(path, stated)?, &read(path)?)?;
    if documents.iter().any(|text| !text.trim().is_empty()) {
        Ok(documents)
    } else {
        Err(no_text(path))
    }
}

/// The bytes of a file, or of standard input for the path `-`.
fn read(path: &Path) -> Result<Vec<u8>> {
    if path.as_os_str() == STANDARD_INPUT {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut bytes);
        read.map_err(Error::io(path, "read"))?;
        Ok(bytes)
    } else {
        std::fs::read(path).map_err(Error::io(path, "read"))
    }
}

/// The format that the name tells, or else the stated one.
fn told(name: &Path, stated: Option<TextFormat>) -> Result<TextFormat> {
    TextFormat::of(name).or(stated).ok_or_else(|| Error::Kind {
        path: name.into(),
        expected:
            "a name ending in .txt, .raw, .jsonl, .json or .parquet, the first four also with .gz, or a \
                   stated format"
                .into(),
        found: match name.extension() {
            Some(ending) => format!(".{}", Path::new(ending).display()),
            None => "no ending".into(),
        },
    })
}

/// The documents of a file's bytes, which may be gzipped unless they are parquet.
fn parse(name: &Path, format: TextFormat, bytes: &[u8]) -> Result<Vec<String>> {
    let unpacked;
    let bytes = if gzip::is_packed(bytes) && format != TextFormat::Parquet {
        unpacked = gzip::unpack(bytes).map_err(Error::io(name, "unpack"))?;
        &unpacked
    } else {
        bytes
    };
    match format {
        TextFormat::Text => Ok(vec![plain_text(name, bytes)?.to_owned()]),
        TextFormat::JsonLines => {
            let lines: Vec<(usize, &str)> = (1..)
                .zip(plain_text(name, bytes)?.lines())
                .filter(|(_, line)| !line.trim().is_empty())
                .collect();
            let document = |(number, line)| document(name, number, line);
            lines.into_par_iter().map(document).collect()
        }
        TextFormat::Parquet => parquet::texts(name, bytes),
    }
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

/// UTF-8 without the byte order mark that some editors put in front.
fn plain_text<'a>(name: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    let wrong = |line: usize, found: String| Error::Line {
        path: name.into(),
        line,
        expected: "UTF-8 text".into(),
        found,
    };
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(wrong(1, "the byte order mark of UTF-16".into()));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.split(|&byte| byte == b'\n').count();
        wrong(line, format!("byte {:#04x}", bytes[error.valid_up_to()]))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Tokens of all documents in order, and the digest of each.
fn encode_documents(documents: &[String], tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<String>)> {
    let encoded = documents
        .par_iter()
        .map(|text| Ok((tokenizer.encode(text, false)?, digest(text))))
        .collect::<Result<Vec<_>>>()?;
    let mut tokens = Vec::with_capacity(encoded.iter().map(|(ids, _)| ids.len() + 2).sum());
    for (ids, _) in &encoded {
        tokens.extend(tokenizer.bos());
        tokens.extend(ids);
        tokens.extend(tokenizer.eos());
    }
    Ok((tokens, encoded.into_iter().map(|(_, digest)| digest).collect()))
}

/// The text of one of the JSON lines.
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

/// What a value is, in words.
pub fn kind_of(value: &Value) -> &'static str {
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
            documents(&path, None)
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
    fn other_endings_are_refused_unless_the_format_is_stated() {
        for name in ["a.csv", "a", "a.gz", "a.parquet.gz", "-"] {
            assert!(matches!(parse(name, "text"), Err(Error::Kind { .. })), "{name}");
            let stated = Some(TextFormat::Text);
            let stream = TokenStream::parse(Path::new(name), stated, b"text", &tokenizer());
            assert_eq!(stream.unwrap().tokens(), parse("a.txt", "text").unwrap().tokens());
        }
    }

    #[test]
    fn endings_of_the_same_format_are_alike() {
        let line = "{\"text\": \"Once\"}";
        for (known, alike) in [
            ("a.txt", ["a.TXT", "wiki.test.raw", "a.Raw", "a.txt.gz"]),
            ("a.jsonl", ["a.JSONL", "a.ndjson", "a.json", "a.Json.GZ"]),
        ] {
            let expected = parse(known, line).unwrap();
            for name in alike {
                assert_eq!(parse(name, line).unwrap().tokens(), expected.tokens(), "{name}");
            }
        }
        // the name outweighs what is stated
        let stated = Some(TextFormat::JsonLines);
        let stream = TokenStream::parse(Path::new("a.txt"), stated, line.as_bytes(), &tokenizer());
        assert_eq!(stream.unwrap().tokens(), parse("a.txt", line).unwrap().tokens());
    }

    #[test]
    fn a_byte_order_mark_is_dropped() {
        for (name, text) in [("a.txt", "Once upon"), ("a.jsonl", "{\"text\": \"Once\"}\n")] {
            let marked = parse(name, format!("\u{feff}{text}")).unwrap();
            assert_eq!(marked.tokens(), parse(name, text).unwrap().tokens(), "{name}");
        }
        for marked in [b"\xff\xfea\0".as_slice(), b"\xfe\xff\0a"] {
            assert!(
                matches!(parse("a.txt", marked), Err(Error::Line { found, .. }) if found.contains("UTF-16"))
            );
        }
    }

    #[test]
    fn gzip_is_recognised_by_its_bytes() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"Once upon").unwrap();
        let mut packed = encoder.finish().unwrap();
        packed.extend([0; 100]);
        for name in ["a.txt", "a.txt.gz"] {
            let expected = parse("a.txt", "Once upon").unwrap();
            assert_eq!(
                parse(name, &packed).unwrap().tokens(),
                expected.tokens(),
                "{name}"
            );
            assert_eq!(
                parse(name, "Once upon").unwrap().tokens(),
                expected.tokens(),
                "{name}"
            );
        }
    }

    #[test]
    fn another_tokenizer_reads_the_same_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.text");
        std::fs::write(&path, "Once upon").unwrap();
        let stream = TokenStream::load_as(&path, Some(TextFormat::Text), &tokenizer()).unwrap();
        assert_eq!(stream.with_tokenizer(&tokenizer()).unwrap(), stream);
        // what cannot be read again is kept
        let kept = TokenStream {
            path: STANDARD_INPUT.into(),
            bytes: Some(Arc::new(b"Once upon".to_vec())),
            ..stream
        };
        assert_eq!(kept.with_tokenizer(&tokenizer()).unwrap().tokens(), kept.tokens());
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
