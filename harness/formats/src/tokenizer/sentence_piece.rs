//! Reads SentencePiece's tokenizer.model, both its BPE and its Unigram, and presents it as a tokenizer.json.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};
use tokenizers::normalizers::Precompiled;

use super::{Tokenizer, merges, template};
use crate::{Error, Result};

/// What stands for a space inside pieces.
const SPACE: char = '▁';

/// Score of pieces that SentencePiece never finds in a text, whatever their score in the file: markers, bytes
/// and the unknown piece. Far below the score of any piece that is a logarithm of a frequency.
const NEVER: f64 = -1e4;

/// The file: a protobuf message, of which these fields decide the tokens.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(string, optional, tag = "46")]
    bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    eos_piece: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// Types of pieces, as numbered in the format.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// Types of models.
const UNIGRAM: i32 = 1;
const BPE: i32 = 2;

/// What files beside tokenizer.model change.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// whether a space is put before a text, if a file says so
    prefix: Option<bool>,
    /// whether BOS comes first, if a file says so
    add_bos: Option<bool>,
    /// whether EOS comes last, if a file says so
    add_eos: Option<bool>,
    /// more tokens: id to an entry of tokenizer.json's `added_tokens`
    added: BTreeMap<u64, Value>,
}

impl Beside {
    /// Reads `add_prefix_space`, `add_bos_token`, `add_eos_token` and `added_tokens_decoder` of
    /// tokenizer_config.json, and added_tokens.json, where these files exist.
    ///
    /// # Errors
    /// `Io`, `Json`, and `Field` for values of other types.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut beside = Self::default();
        let path = folder.join("added_tokens.json");
        for (content, id) in object(&path)? {
            let id = id
                .as_u64()
                .ok_or_else(|| wrong(&path, &content, "an id", &id.to_string()))?;
            beside.added.insert(id, added_token(id, &content, false));
        }
        let path = folder.join("tokenizer_config.json");
        let config = object(&path)?;
        for (field, value) in [
            ("add_prefix_space", &mut beside.prefix),
            ("add_bos_token", &mut beside.add_bos),
            ("add_eos_token", &mut beside.add_eos),
        ] {
            *value = match config.get(field) {
                None | Some(Value::Null) => None,
                Some(Value::Bool(flag)) => Some(*flag),
                Some(other) => return Err(wrong(&path, field, "true, false or null", &other.to_string())),
            };
        }
        let Some(decoder) = config.get("added_tokens_decoder") else {
            return Ok(beside);
        };
        let field = "added_tokens_decoder";
        let entries = decoder
            .as_object()
            .ok_or_else(|| wrong(&path, field, "an object", &decoder.to_string()))?;
        for (id, entry) in entries {
            let field = format!("{field}.{id}");
            let key: u64 = id.parse().map_err(|_| wrong(&path, &field, "an id", id))?;
            let content = entry.get("content").and_then(Value::as_str);
            let content = content
                .ok_or_else(|| wrong(&path, &field, "a token with its `content`", &entry.to_string()))?;
            let mut token = added_token(key, content, false);
            for name in ["single_word", "lstrip", "rstrip", "normalized", "special"] {
                if let Some(flag) = entry.get(name).and_then(Value::as_bool) {
                    token[name] = json!(flag);
                }
            }
            beside.added.insert(key, token);
        }
        Ok(beside)
    }
}

/// A JSON file's object; empty if there is no file.
fn object(path: &Path) -> Result<serde_json::Map<String, Value>> {
    if !path.is_file() {
        return Ok(serde_json::Map::new());
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(Error::json(path, 1))
}

fn wrong(path: &Path, field: &str, expected: &str, found: &str) -> Error {
    Error::Field {
        path: path.into(),
        field: field.into(),
        expected: expected.into(),
        found: found.into(),
    }
}

fn added_token(id: u64, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special,
    })
}

/// Reads the bytes of a tokenizer.model; `path` is their name in errors. BOS is added to texts, EOS is not,
/// as transformers does for such files.
///
/// # Errors
/// `Tokenizer` for other files; `Field` for contradictory values; `Unsupported` for other types of models and
/// pieces, and other treatments of white space.
pub(crate) fn from_bytes(path: &Path, bytes: &[u8], beside: &Beside) -> Result<Tokenizer> {
    let model = Model::decode(bytes).ok().filter(|model| !model.pieces.is_empty());
    let model = model.ok_or_else(|| Error::Tokenizer {
        path: path.into(),
        reason: format!("expected a SentencePiece model, found {}", kind_of(bytes)),
    })?;
    let trainer = model.trainer.unwrap_or_default();
    let normalizer = model.normalizer.unwrap_or_default();
    let pieces = Pieces::new(path, &model.pieces)?;
    for (field, value, expected) in [
        (
            "trainer_spec.treat_whitespace_as_suffix",
            trainer.treat_whitespace_as_suffix,
            false,
        ),
        (
            "normalizer_spec.escape_whitespaces",
            normalizer.escape_whitespaces,
            true,
        ),
    ] {
        if value.is_some_and(|value| value != expected) {
            return Err(unsupported(
                path,
                field,
                &expected.to_string(),
                (!expected).to_string(),
            ));
        }
    }
    let bytes_known = (0..=255).all(|byte| pieces.ids.contains_key(format!("<0x{byte:02X}>").as_str()));
    let byte_fallback = trainer.byte_fallback.unwrap_or(false);
    if byte_fallback && !bytes_known {
        return Err(wrong(
            path,
            "trainer_spec.byte_fallback",
            "false, or a piece for each byte",
            "true",
        ));
    }
    let vocabulary = match trainer.model_type.unwrap_or(UNIGRAM) {
        UNIGRAM => pieces.unigram(byte_fallback),
        BPE => pieces.bpe(byte_fallback),
        other => {
            let field = "trainer_spec.model_type";
            return Err(unsupported(
                path,
                field,
                "1 (Unigram) or 2 (BPE)",
                other.to_string(),
            ));
        }
    };
    let prefix = beside.prefix.or(normalizer.add_dummy_prefix).unwrap_or(true);
    let marker = |name: &Option<String>, default: &str| {
        let name = name.as_deref().unwrap_or(default);
        let id = *pieces.ids.get(name)?;
        (pieces.kinds[id] == CONTROL).then_some((id, pieces.tokens[id]))
    };
    let bos = marker(&trainer.bos_piece, "<s>");
    let eos = marker(&trainer.eos_piece, "</s>");
    let document = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": pieces.added(path, beside)?,
        "normalizer": normalization(path, &normalizer, prefix)?,
        "pre_tokenizer": pieces.cuts(),
        "post_processor": template(
            bos.filter(|_| beside.add_bos.unwrap_or(true)),
            eos.filter(|_| beside.add_eos.unwrap_or(false)),
        ),
        "decoder": decoder(prefix),
        "model": vocabulary,
    });
    let tokenizer = Tokenizer::from_bytes(path, document.to_string().as_bytes())?;
    let id = |marker: Option<(usize, &str)>| marker.map(|(id, _)| id as u32);
    Ok(tokenizer.with_markers(id(bos), id(eos).into_iter().collect()))
}

fn unsupported(path: &Path, field: &str, expected: &str, found: String) -> Error {
    Error::Unsupported {
        path: path.into(),
        field: field.into(),
        expected: expected.into(),
        found,
    }
}

/// For errors: what a file is that is no SentencePiece model.
fn kind_of(bytes: &[u8]) -> &'static str {
    let text = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    let first = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    match first.iter().position(|&byte| byte == b' ') {
        _ if first.starts_with(b"version https://git-lfs") => "a git-lfs pointer: run git lfs pull",
        Some(space) if text(first) && first[space + 1..].iter().all(u8::is_ascii_digit) => {
            "tiktoken's list of tokens; transformers converts it to a tokenizer.json"
        }
        _ => "another file",
    }
}

/// The pieces, checked.
struct Pieces<'a> {
    tokens: Vec<&'a str>,
    ids: HashMap<&'a str, usize>,
    scores: Vec<f64>,
    kinds: Vec<i32>,
    unknown: usize,
}

impl<'a> Pieces<'a> {
    fn new(path: &Path, pieces: &'a [Piece]) -> Result<Self> {
        let mut all = Self {
            tokens: Vec::with_capacity(pieces.len()),
            ids: HashMap::with_capacity(pieces.len()),
            scores: Vec::with_capacity(pieces.len()),
            kinds: Vec::with_capacity(pieces.len()),
            unknown: 0,
        };
        let mut unknown = None;
        for (id, piece) in pieces.iter().enumerate() {
            let token = piece.text.as_deref().unwrap_or_default();
            if token.is_empty() || all.ids.insert(token, id).is_some() {
                let field = format!("pieces[{id}].piece");
                return Err(wrong(
                    path,
                    &field,
                    "a text that no other piece has",
                    &format!("{token:?}"),
                ));
            }
            let score = piece.score.unwrap_or(0.0);
            if !score.is_finite() {
                let field = format!("pieces[{id}].score");
                return Err(wrong(path, &field, "a finite number", &score.to_string()));
            }
            let kind = piece.kind.unwrap_or(NORMAL);
            match kind {
                UNKNOWN if unknown.is_none() => unknown = Some(id),
                NORMAL | CONTROL | USER_DEFINED | BYTE => {}
                other => {
                    let expected = "1 to 4 or 6, and 2 (the unknown piece) once";
                    let field = format!("pieces[{id}].type");
                    return Err(unsupported(path, &field, expected, other.to_string()));
                }
            }
            all.tokens.push(token);
            all.scores.push(f64::from(score));
            all.kinds.push(kind);
        }
        all.unknown = unknown.ok_or_else(|| wrong(path, "pieces", "one of type 2 (unknown)", "none"))?;
        Ok(all)
    }

    /// Tokens that are matched as a whole before all others, as transformers does for these types. A piece
    /// of a user with spaces in it is found like any other: the text has no `▁` when these tokens are looked
    /// for.
    fn added(&self, path: &Path, beside: &Beside) -> Result<Vec<Value>> {
        let whole = |id: &usize| match self.kinds[*id] {
            UNKNOWN | CONTROL => true,
            USER_DEFINED => !self.tokens[*id].contains(SPACE),
            _ => false,
        };
        let ids = (0..self.tokens.len()).filter(whole);
        let special = |id: usize| self.kinds[id] != USER_DEFINED;
        let mut added: Vec<Value> = ids
            .map(|id| added_token(id as u64, self.tokens[id], special(id)))
            .collect();
        let first = self.tokens.len() as u64;
        for (next, (id, token)) in (first..).zip(beside.added.range(first..)) {
            let content = token["content"].as_str().unwrap_or_default();
            if *id != next || self.ids.contains_key(content) {
                let expected = format!("id {next}, and a text that no piece has");
                return Err(wrong(
                    path,
                    "added tokens",
                    &expected,
                    &format!("{id} for {content:?}"),
                ));
            }
            added.push(token.clone());
        }
        Ok(added)
    }

    fn bpe(&self, byte_fallback: bool) -> Value {
        let joined = |id: usize| matches!(self.kinds[id], NORMAL | USER_DEFINED);
        let merges = merges(&self.tokens, &self.ids, &self.scores, joined);
        json!({
            "type": "BPE", "dropout": null, "unk_token": self.tokens[self.unknown],
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": byte_fallback, "ignore_merges": false, "vocab": self.ids, "merges": merges,
        })
    }

    fn unigram(&self, byte_fallback: bool) -> Value {
        let normal = |id: &usize| self.kinds[*id] == NORMAL;
        let best = (0..self.tokens.len()).filter(normal).map(|id| self.scores[id]);
        let best = best.fold(f64::NEG_INFINITY, f64::max);
        let pieces = self.tokens.iter().enumerate().map(|(id, token)| {
            let score = match self.kinds[id] {
                NORMAL => self.scores[id],
                // SentencePiece prefers a user's piece to all pieces of the same length together
                USER_DEFINED if best.is_finite() => token.len() as f64 * best - 0.1,
                _ => NEVER,
            };
            json!([token, score])
        });
        json!({
            "type": "Unigram", "unk_id": self.unknown, "vocab": pieces.collect::<Vec<_>>(),
            "byte_fallback": byte_fallback,
        })
    }

    /// What cuts a text before pieces are looked for.
    fn cuts(&self) -> Value {
        let mut steps = Vec::new();
        // Words, each with the space before it, where no piece goes beyond a word: shorter sums round less.
        let inner_space = |token: &&str| token.chars().skip(1).any(|char| char == SPACE);
        if !self.tokens.iter().any(inner_space) {
            steps.push(json!({
                "type": "Split", "pattern": {"String": SPACE.to_string()}, "behavior": "MergedWithNext",
                "invert": false,
            }));
        }
        // The library's Unigram finds every piece of the vocabulary in a text, the names of bytes too.
        if self.kinds.contains(&BYTE) {
            steps.push(json!({
                "type": "Split", "pattern": {"Regex": "<(?=0x[0-9A-F]{2}>)"}, "behavior": "Isolated",
                "invert": false,
            }));
        }
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// What happens to a text before it is cut into pieces.
fn normalization(path: &Path, normalizer: &Normalizer, prefix: bool) -> Result<Value> {
    let replace =
        |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let mut steps = Vec::new();
    if let Some(map) = normalizer
        .precompiled_charsmap
        .as_deref()
        .filter(|map| !map.is_empty())
    {
        let field = "normalizer_spec.precompiled_charsmap";
        let wrong = |found: &str| wrong(path, field, "a table of replacements", found);
        // the library allocates what the first number says
        let table = map.first_chunk().map(|size| u32::from_le_bytes(*size) as usize);
        if table.is_none_or(|table| table == 0 || table % 4 != 0 || table > map.len() - 4) {
            return Err(wrong("a size that does not fit"));
        }
        let map = Precompiled::from(map).map_err(|error| wrong(&error.to_string()))?;
        steps.push(serde_json::to_value(map).map_err(|error| wrong(&error.to_string()))?);
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        steps.push(replace(json!({"Regex": r"\A +| +\z"}), ""));
        steps.push(replace(json!({"Regex": " {2,}"}), " "));
    }
    if prefix {
        steps.push(json!({"type": "Prepend", "prepend": SPACE.to_string()}));
    }
    steps.push(replace(json!({"String": " "}), &SPACE.to_string()));
    Ok(json!({"type": "Sequence", "normalizers": steps}))
}

fn decoder(prefix: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE.to_string()}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

#[cfg(test)]
mod tests;
