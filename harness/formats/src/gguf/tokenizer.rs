//! A tokenizer from GGUF metadata, converted through the tokenizer.json format of Hugging Face's library.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fields::Fields;
use super::metadata::Metadata;
use crate::tokenizer::{Tokenizer, merges, template};
use crate::{Error, Result};

/// Word splitting of GPT-4 and Llama 3; `{digits}` is how many digits stay together.
const GPT4_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GPT-2's splitting of words.
const GPT2_SPLIT: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// llama.cpp's splitting for `default`, and for files that name none: each expression splits the pieces that
/// the previous ones left.
const DEFAULT_SPLITS: [&str; 4] = [r"[\p{P}$+<=>^~|]+", GPT2_SPLIT, r"\p{N}+", "[0-9]{3}"];

/// Types of tokens in `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// A tokenizer's metadata, interpreted on request.
#[derive(Debug)]
pub(crate) struct GgufTokenizer {
    path: PathBuf,
    metadata: BTreeMap<String, Metadata>,
}

impl GgufTokenizer {
    pub(super) fn new(path: &Path, mut metadata: BTreeMap<String, Metadata>) -> Self {
        metadata.retain(|name, _| name.starts_with("tokenizer."));
        Self {
            path: path.into(),
            metadata,
        }
    }

    /// Builds the tokenizer.
    ///
    /// # Errors
    /// `Field` for missing or contradictory metadata, `Unsupported` for other kinds of tokenizers,
    /// `Tokenizer` when the library rejects the result.
    pub(crate) fn build(&self) -> Result<Tokenizer> {
        let fields = Fields {
            path: &self.path,
            architecture: "",
            metadata: &self.metadata,
        };
        let vocabulary = Vocabulary::read(&fields)?;
        let json = match fields.text("tokenizer.ggml.model")? {
            "gpt2" => byte_level(&fields, &vocabulary)?,
            "llama" => sentence_piece(&fields, &vocabulary)?,
            other => {
                return Err(fields.unsupported(
                    "tokenizer.ggml.model",
                    "gpt2 or llama",
                    format!("{other:?}"),
                ));
            }
        };
        Tokenizer::from_bytes(&self.path, json.to_string().as_bytes())
    }
}

/// Tokens with their types.
struct Vocabulary<'a> {
    tokens: &'a [String],
    ids: HashMap<&'a str, usize>,
    types: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(fields: &Fields<'a>) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens = texts(fields, key)?.ok_or_else(|| fields.wrong(key, "a list of texts"))?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(Error::Field {
                    path: fields.path.into(),
                    field: key.into(),
                    expected: "each token once".into(),
                    found: format!("{token:?} as {first} and {id}"),
                });
            }
        }
        let types = numbers(fields, "tokenizer.ggml.token_type", tokens.len())?;
        let types = types.map_or_else(
            || vec![1; tokens.len()],
            |list| list.iter().map(|&kind| kind as i64).collect(),
        );
        Ok(Self { tokens, ids, types })
    }

    fn json(&self) -> Value {
        let ids = self.tokens.iter().enumerate();
        Value::Object(ids.map(|(id, token)| (token.clone(), json!(id))).collect())
    }

    /// Tokens that are matched as a whole before all others.
    fn added(&self) -> Value {
        let kinds = self.types.iter().enumerate();
        let added = kinds.filter(|(_, kind)| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED));
        added
            .map(|(id, kind)| {
                json!({
                    "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != USER_DEFINED,
                })
            })
            .collect()
    }

    fn token(&self, fields: &Fields<'_>, key: &str) -> Result<Option<(usize, &'a str)>> {
        let Some(id) = fields.token_id(key)? else {
            return Ok(None);
        };
        let id = usize::try_from(id).unwrap_or(usize::MAX);
        match self.tokens.get(id) {
            Some(token) => Ok(Some((id, token))),
            None => Err(fields.wrong(key, &format!("an id below {}", self.tokens.len()))),
        }
    }
}

fn texts<'a>(fields: &Fields<'a>, key: &str) -> Result<Option<&'a [String]>> {
    match fields.get(key) {
        None => Ok(None),
        Some(Metadata::Texts(list)) => Ok(Some(list)),
        Some(_) => Err(fields.wrong(key, "a list of texts")),
    }
}

fn numbers(fields: &Fields<'_>, key: &str, length: usize) -> Result<Option<Vec<f64>>> {
    match fields.get(key) {
        None => Ok(None),
        Some(Metadata::Numbers(list)) => {
            let list = list.floats();
            if list.len() == length {
                Ok(Some(list))
            } else {
                Err(fields.wrong(key, &format!("{length} numbers, one a token")))
            }
        }
        Some(_) => Err(fields.wrong(key, "a list of numbers")),
    }
}

/// The key that names the splitting of words.
const PRE: &str = "tokenizer.ggml.pre";

/// The named splitting of words. An empty name is none, as in llama.cpp.
fn pre<'a>(fields: &Fields<'a>) -> Result<Option<&'a str>> {
    Ok(fields.optional_text(PRE)?.filter(|name| !name.is_empty()))
}

/// A warning if the file does not say how its tokenizer splits words.
pub(super) fn warning(fields: &Fields<'_>) -> Result<Option<String>> {
    let byte_level =
        matches!(fields.get("tokenizer.ggml.model"), Some(Metadata::Text(model)) if model == "gpt2");
    let unknown = byte_level && pre(fields)?.is_none();
    Ok(unknown.then(|| {
        format!(
            "{}: field `{PRE}`: expected the name of the tokenizer's splitting of words, found nothing; llama.cpp's \
             default was taken, and BOS is added only if the file says so: tokens may differ from the original \
             model's",
            fields.path.display()
        )
    }))
}

/// Byte-level BPE with a list of merges, as in GPT-2.
fn byte_level(fields: &Fields<'_>, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let key = "tokenizer.ggml.merges";
    let merges = texts(fields, key)?.ok_or_else(|| fields.wrong(key, "a list of texts"))?;
    let merges: Vec<(&str, &str)> = merges
        .iter()
        .map(|merge| {
            merge.split_once(' ').ok_or_else(|| Error::Field {
                path: fields.path.into(),
                field: key.into(),
                expected: "pairs of tokens with a space between".into(),
                found: format!("{merge:?}"),
            })
        })
        .collect::<Result<_>>()?;
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let sequence = |first: Value, use_regex: bool| json!({"type": "Sequence", "pretokenizers": [first, bytes(use_regex)]});
    let isolate = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let split = |digits: &str| isolate(&GPT4_SPLIT.replace("{digits}", digits));
    let key = PRE;
    // (splitting of words, BOS first unless the file says otherwise)
    let (pre_tokenizer, add_bos) = match pre(fields)?.unwrap_or("default") {
        "default" => {
            let splits = DEFAULT_SPLITS.map(isolate).into_iter().chain([bytes(false)]);
            (
                json!({"type": "Sequence", "pretokenizers": splits.collect::<Vec<_>>()}),
                false,
            )
        }
        "gpt-2" | "olmo" => (bytes(true), false),
        "smollm" | "refact" => (
            sequence(json!({"type": "Digits", "individual_digits": true}), true),
            false,
        ),
        "llama-bpe" | "llama3" | "llama-v3" => (sequence(split("{1,3}"), false), true),
        "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => (sequence(split("{1,3}"), false), false),
        "qwen2" | "stablelm2" => (sequence(split(""), false), false),
        other => {
            return Err(fields.unsupported(
                key,
                "gpt-2, olmo, smollm, refact, llama-bpe, dbrx, smaug-bpe, chatglm-bpe, glm4, qwen2, stablelm2 or \
                 default",
                format!("{other:?}"),
            ));
        }
    };
    let normalizer = match fields.optional_text(key)? {
        Some("qwen2") => json!({"type": "NFC"}),
        _ => Value::Null,
    };
    // Llama 3's and GLM-4's vocabularies have words that their merges cannot produce
    let ignore_merges = add_bos || pre(fields)? == Some("glm4");
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(fields, vocabulary, add_bos)?,
        "decoder": bytes(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocabulary.json(), "merges": merges,
        },
    }))
}

/// SentencePiece's BPE: "▁" replaces spaces, with an extra one in front, and bytes replace characters without
/// a token.
fn sentence_piece(fields: &Fields<'_>, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let key = "tokenizer.ggml.scores";
    let scores = numbers(fields, key, vocabulary.tokens.len())?
        .ok_or_else(|| fields.wrong(key, "a list of numbers, one a token"))?;
    if scores.iter().any(|score| score.is_nan()) {
        return Err(fields.wrong(key, "numbers without NaN"));
    }
    let prefix = fields.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = if prefix {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]})
    } else {
        spaces
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = match vocabulary.token(fields, "tokenizer.ggml.unknown_token_id")? {
        Some((_, token)) => Some(token),
        None => vocabulary
            .types
            .iter()
            .position(|&kind| kind == UNKNOWN)
            .map(|id| vocabulary.tokens[id].as_str()),
    };
    let tokens: Vec<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
    let merges = merges(&tokens, &vocabulary.ids, &scores, |id| {
        !matches!(vocabulary.types[id], UNKNOWN | CONTROL | BYTE)
    });
    let byte_fallback = (0..=255).all(|byte| vocabulary.ids.contains_key(format!("<0x{byte:02X}>").as_str()));
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": post_processor(fields, vocabulary, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": byte_fallback, "ignore_merges": false,
            "vocab": vocabulary.json(), "merges": merges,
        },
    }))
}

/// The markers that encoding adds by default.
fn post_processor(fields: &Fields<'_>, vocabulary: &Vocabulary<'_>, bos_by_default: bool) -> Result<Value> {
    let bos = vocabulary.token(fields, "tokenizer.ggml.bos_token_id")?;
    let eos = vocabulary.token(fields, "tokenizer.ggml.eos_token_id")?;
    let with_bos = fields
        .flag("tokenizer.ggml.add_bos_token")?
        .unwrap_or(bos_by_default);
    let with_eos = fields.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let (bos, eos) = (bos.filter(|_| with_bos), eos.filter(|_| with_eos));
    Ok(template(bos, eos))
}
