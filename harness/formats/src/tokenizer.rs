//! Text to tokens and back, including document markers.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result, json, stand_in};

mod merges;
pub(crate) mod sentence_piece;
mod stream;
mod template;

pub(crate) use merges::merges;
pub use stream::TextStream;
pub(crate) use template::template;

/// A tokenizer, and the markers configured in a model's files.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    bos: Option<u32>,
    eos: Option<u32>,
    /// tokens at which generation stops
    stops: Vec<u32>,
    warnings: Vec<String>,
}

/// Classes that rebuild the post-processor from `add_bos_token` (true unless stated) and `add_eos_token` in
/// transformers 4.
const BY_FLAGS: [&str; 6] = [
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CodeLlamaTokenizer",
    "CodeLlamaTokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
];

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// `Io`; `Tokenizer` when the library cannot parse the file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        Self::from_bytes(path, &bytes)
    }

    /// Parses the bytes of a tokenizer.json; `path` is their name in errors.
    ///
    /// # Errors
    /// `Kind` for a git-lfs pointer or a web page; `Tokenizer` when the library cannot parse them.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        let refuse = |reason: String| Error::Tokenizer {
            path: path.into(),
            reason,
        };
        stand_in::refuse(path, bytes, "a tokenizer.json")?;
        let bytes = json::without_mark(bytes);
        // The library panics on broken JSON and on some parts of an unexpected type. Most of these are
        // rejected here with a better reason; the remaining panics also become errors.
        let document: Value = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
        for part in [
            "normalizer",
            "pre_tokenizer",
            "post_processor",
            "decoder",
            "model",
        ] {
            if let Some(found) = document.get(part)
                && !found.is_null()
                && !found.get("type").is_some_and(Value::is_string)
                && (part != "model" || !found.is_object())
            {
                return Err(refuse(format!(
                    "`{part}`: expected null or an object with a `type`"
                )));
            }
        }
        let parsed = catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
        let inner = parsed
            .map_err(|_| refuse("the tokenizer library gave up on it".into()))?
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Self::from_tokenizers(path, inner))
    }

    /// Wraps a tokenizer that was built in memory.
    pub fn from_tokenizers(path: &Path, inner: tokenizers::Tokenizer) -> Self {
        Self {
            inner: of_whole_texts(inner),
            path: path.into(),
            bos: None,
            eos: None,
            stops: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Sets the document markers; the first of `eos` ends a document, and generation stops at each of them.
    #[must_use]
    pub fn with_markers(mut self, bos: Option<u32>, eos: Vec<u32>) -> Self {
        self.bos = bos;
        self.eos = eos.first().copied();
        self.stops = eos;
        self
    }

    /// Sets the tokens at which generation stops; an empty list changes nothing.
    #[must_use]
    pub fn with_stops(mut self, stops: Vec<u32>) -> Self {
        if !stops.is_empty() {
            self.stops = stops;
        }
        self
    }

    /// Takes the markers from a parsed tokenizer_config.json. Its `bos_token` and `eos_token` override the
    /// ids of config.json; BOS also when null (Qwen2 names a BOS id that its tokenizer does not have).
    /// Generation stops at `eos_token` only where no other file names a token.
    ///
    /// Whether a text gets markers is the post-processor's decision, as in transformers 5. `add_bos_token`
    /// and `add_eos_token` decide in transformers 4 for some classes; a warning says where that gives other
    /// ids.
    ///
    /// # Errors
    /// `Field` when a named token is not in the vocabulary, or when a field has another type.
    pub fn with_tokenizer_config(mut self, path: &Path, config: &Value) -> Result<Self> {
        if let Some(token) = config.get("bos_token") {
            self.bos = self.marker(path, "bos_token", token)?;
        }
        if let Some(token) = config.get("eos_token")
            && let Some(id) = self.marker(path, "eos_token", token)?
        {
            self.eos = Some(id);
        }
        let flags = [
            ("add_bos_token", true, self.bos, self.adds_bos()),
            ("add_eos_token", false, self.eos, self.adds_eos()),
        ];
        let class = config.get("tokenizer_class").and_then(Value::as_str);
        for (field, default, marker, added) in flags {
            let stated = flag(path, config, field)?;
            let Some(class) = class.filter(|class| BY_FLAGS.contains(class)) else {
                continue;
            };
            let wanted = stated.unwrap_or(default);
            if marker.is_some() && wanted != added {
                let adds = if added { "adds it" } else { "does not add it" };
                self.warnings.push(format!(
                    "{}: field `{field}` is {wanted} for the class {class}, but the post-processor of \
                     tokenizer.json {adds}: the post-processor decides, as in transformers 5; transformers 4 \
                     follows the field",
                    path.display()
                ));
            }
        }
        Ok(self)
    }

    /// What the reader of a result should know about the tokenizer's files: rules on which releases of
    /// transformers disagree. Each text names the file and the field.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The id of a token given as its text, or as an object with the text in `content`.
    fn marker(&self, path: &Path, field: &str, token: &Value) -> Result<Option<u32>> {
        let wrong = |expected: &str, found: String| Error::Field {
            path: path.into(),
            field: field.into(),
            expected: expected.into(),
            found,
        };
        let content = match token {
            Value::Null => return Ok(None),
            Value::Object(token) => token.get("content").and_then(Value::as_str),
            other => other.as_str(),
        };
        let content = content.ok_or_else(|| {
            wrong(
                "a text, an object with it in `content`, or null",
                token.to_string(),
            )
        })?;
        let id = self.inner.token_to_id(content);
        id.map(Some)
            .ok_or_else(|| wrong("a token of the vocabulary", format!("{content:?}")))
    }

    fn failed(&self, error: &impl ToString) -> Error {
        Error::Tokenizer {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }

    /// The tokens of a text. With `add_special`, the markers of the tokenizer's post-processor are added.
    ///
    /// # Errors
    /// `Tokenizer` when the vocabulary cannot express parts of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special);
        let encoding = encoding.map_err(|error| self.failed(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Whether [`Tokenizer::encode`] with `add_special` starts with BOS.
    pub fn adds_bos(&self) -> bool {
        let empty = self.inner.encode_fast("", true);
        self.bos.is_some() && empty.is_ok_and(|empty| empty.get_ids().first().copied() == self.bos)
    }

    /// Whether [`Tokenizer::encode`] with `add_special` ends with EOS.
    pub fn adds_eos(&self) -> bool {
        let empty = self.inner.encode_fast("", true);
        empty.is_ok_and(|empty| {
            let last = empty.get_ids().last();
            last.is_some_and(|id| Some(*id) == self.eos && Some(*id) != self.bos)
        })
    }

    /// The text of tokens; `skip_special` omits markers.
    ///
    /// # Errors
    /// `Tokenizer` when the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|error| self.failed(&error))
    }

    /// Decodes token by token, for printing while generating.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// The token that starts a document.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a document.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// All tokens at which generation stops.
    pub fn stops(&self) -> &[u32] {
        if self.stops.is_empty() {
            self.eos.as_slice()
        } else {
            &self.stops
        }
    }

    /// Number of tokens, including added ones.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest id with its text; `None` for an empty vocabulary. Ids may have gaps, so the largest id can
    /// exceed the size.
    pub fn largest_id(&self) -> Option<(u32, String)> {
        let vocabulary = self.inner.get_vocab(true);
        vocabulary
            .into_iter()
            .map(|(token, id)| (id, token))
            .max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(&a.1)))
    }

    /// The text of one token in the vocabulary's spelling.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokenizer as the text of a tokenizer.json.
    ///
    /// # Errors
    /// `Tokenizer` when the library cannot write it.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|error| self.failed(&error))
    }

    /// The contents of a tokenizer_config.json with which transformers produces the same tokens.
    pub fn config_json(&self, max_length: usize) -> Value {
        let token = |id: Option<u32>| id.and_then(|id| self.token(id));
        serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token(self.bos()),
            "eos_token": token(self.eos()),
            "add_bos_token": self.adds_bos(),
            "add_eos_token": self.adds_eos(),
            "clean_up_tokenization_spaces": false,
            "model_max_length": max_length,
        })
    }
}

/// Disables padding and truncation, which a file may contain from training. Texts here are never truncated or
/// padded.
fn of_whole_texts(mut inner: tokenizers::Tokenizer) -> tokenizers::Tokenizer {
    inner.with_padding(None);
    inner
        .with_truncation(None)
        .expect("only settings that are there are refused");
    inner
}

/// An optional boolean field.
fn flag(path: &Path, config: &Value, field: &str) -> Result<Option<bool>> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(Error::Field {
            path: path.into(),
            field: field.into(),
            expected: "true, false or null".into(),
            found: other.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests;
