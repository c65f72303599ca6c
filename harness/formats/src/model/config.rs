//! `config.json` of the Llama family. Every field that changes the arithmetic is honoured or refused.

use std::fmt;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::{LayerKind, LlamaConfig, Rope, RopeScaling, Scheme};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Sizes above this are refused as damage, so that products of two of them cannot overflow.
const LARGEST_SIZE: usize = 1 << 31;

/// Model families whose block is a Llama block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 1, 2, 3 and the many models that share their code
    Llama,
    /// Llama with an optional sliding window
    Mistral,
    /// Llama with biases on q, k and v
    Qwen2,
}

impl Family {
    /// The family's `model_type` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
        }
    }

    /// The class that transformers builds for it.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
        }
    }
}

/// Types that unquantized weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageType {
    /// IEEE half precision
    #[serde(rename = "float16")]
    F16,
    /// bfloat16
    #[serde(rename = "bfloat16")]
    BF16,
    /// IEEE single precision
    #[serde(rename = "float32")]
    F32,
}

impl StorageType {
    /// The name in config.json (`torch_dtype`).
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F32 => "float32",
        }
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
        }
    }
}

impl fmt::Display for StorageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything that is read from a model's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// the file it came from
    pub path: PathBuf,
    /// which family
    pub family: Family,
    /// the numbers that decide the arithmetic
    pub llama: LlamaConfig,
    /// token that starts a document
    pub bos: Option<u32>,
    /// tokens that end one; the first is the one that is appended to documents
    pub eos: Vec<u32>,
    /// the type that the weights were saved in, where stated
    pub storage: Option<StorageType>,
    /// whether q, k and v have biases
    pub qkv_bias: bool,
    /// whether o has a bias
    pub o_bias: bool,
    /// whether gate, up and down have biases
    pub mlp_bias: bool,
    /// the scheme of the quantized layers, when there are any
    pub quantization: Option<Scheme>,
    /// the whole file as read, so that a checkpoint made from the model keeps what this project has no use
    /// for
    pub raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads a config.json.
    ///
    /// # Errors
    /// `Io`, `Json`, and those of [`ModelConfig::from_json`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        Self::from_text(path, &text)
    }

    /// Parses the text of a config.json; `path` names it in errors.
    ///
    /// # Errors
    /// `Json`, and those of [`ModelConfig::from_json`].
    pub fn from_text(path: &Path, text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(Error::json(path, 1))?;
        match value {
            Value::Object(map) => Self::from_json(path, map),
            other => Err(Error::Field {
                path: path.into(),
                field: "(the whole file)".into(),
                expected: "a JSON object".into(),
                found: brief(&other),
            }),
        }
    }

    /// Understands a parsed config.json.
    ///
    /// # Errors
    /// `Field` for values that are missing, of the wrong type or contradictory; `Unsupported` for values that
    /// ask for arithmetic the project does not have.
    pub fn from_json(path: &Path, raw: Map<String, Value>) -> Result<Self> {
        let fields = Fields {
            path,
            prefix: "",
            map: &raw,
        };
        let family = match fields.required_str("model_type")? {
            "llama" => Family::Llama,
            "mistral" => Family::Mistral,
            "qwen2" => Family::Qwen2,
            other => {
                return Err(fields.unsupported(
                    "model_type",
                    "llama, mistral or qwen2",
                    format!("{other:?}"),
                ));
            }
        };
        refuse_unknown_arithmetic(&fields)?;

        let hidden_size = fields.size("hidden_size")?;
        let num_attention_heads = fields.size("num_attention_heads")?;
        let num_key_value_heads = fields
            .optional_size("num_key_value_heads")?
            .unwrap_or(match family {
                // transformers' own defaults where the file is silent
                Family::Llama => num_attention_heads,
                Family::Mistral => 8,
                Family::Qwen2 => 32,
            });
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(fields.wrong(
                "num_key_value_heads",
                format!("a divisor of num_attention_heads = {num_attention_heads}"),
            ));
        }
        let head_dim = match fields.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(fields.wrong(
                    "hidden_size",
                    format!(
                        "a multiple of num_attention_heads = {num_attention_heads}, as head_dim is not given"
                    ),
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(Error::Field {
                path: path.into(),
                field: "head_dim".into(),
                expected: "an even number (RoPE rotates pairs)".into(),
                found: head_dim.to_string(),
            });
        }
        let num_hidden_layers = fields.size("num_hidden_layers")?;
        let rms_norm_eps = fields.positive("rms_norm_eps")?.unwrap_or(1e-6);
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        let llama = LlamaConfig {
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps,
            rope: rope(&fields)?,
            sliding_window: sliding_window(&fields, family, num_hidden_layers)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            max_position_embeddings: fields.optional_size("max_position_embeddings")?.unwrap_or(
                match family {
                    Family::Llama => 2048,
                    Family::Mistral => 131_072,
                    Family::Qwen2 => 32_768,
                },
            ),
        };
        let (bos, eos) = (
            fields.token_ids("bos_token_id")?,
            fields.token_ids("eos_token_id")?,
        );
        Ok(Self {
            path: path.into(),
            family,
            llama,
            bos: bos.first().copied(),
            eos,
            storage: storage(&fields)?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias,
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            quantization: quantization(&fields)?,
            raw,
        })
    }

    /// Whether a linear layer has a bias.
    pub fn has_bias(&self, layer: LayerKind) -> bool {
        match layer {
            LayerKind::QProj | LayerKind::KProj | LayerKind::VProj => self.qkv_bias,
            LayerKind::OProj => self.o_bias,
            LayerKind::GateProj | LayerKind::UpProj | LayerKind::DownProj => self.mlp_bias,
        }
    }
}

/// Fields that would change the arithmetic, each with the only value for which it changes nothing here.
fn refuse_unknown_arithmetic(fields: &Fields<'_>) -> Result<()> {
    for key in ["hidden_act", "hidden_activation"] {
        if let Some(activation) = fields.optional_str(key)?
            && activation != "silu"
        {
            return Err(fields.unsupported(key, "silu", format!("{activation:?}")));
        }
    }
    let neutral_numbers = [
        ("partial_rotary_factor", 1.0),
        ("embedding_multiplier", 1.0),
        ("attention_multiplier", 1.0),
        ("residual_multiplier", 1.0),
        ("logits_scaling", 1.0),
        ("logit_scale", 1.0),
    ];
    for (key, neutral) in neutral_numbers {
        if let Some(value) = fields.number(key)?
            && value != neutral
        {
            return Err(fields.unsupported(key, &format!("{neutral} or nothing"), value.to_string()));
        }
    }
    let absent = [
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
        "clip_qkv",
        "qk_layernorm",
        "use_qk_norm",
        "no_rope_layers",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "attention_chunk_size",
        "use_mrope",
    ];
    for key in absent {
        if let Some(value) = fields.get(key)
            && *value != Value::Bool(false)
            && value.as_f64() != Some(0.0)
        {
            return Err(fields.unsupported(key, "nothing", brief(value)));
        }
    }
    Ok(())
}

/// `rope_theta`, `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5, both in one).
fn rope(fields: &Fields<'_>) -> Result<Rope> {
    let outer_theta = fields.positive("rope_theta")?;
    let mut rope = Rope {
        theta: outer_theta.unwrap_or(10_000.0),
        scaling: RopeScaling::None,
    };
    let mut seen = None;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = fields.get(key) else { continue };
        let Value::Object(map) = value else {
            return Err(fields.wrong(key, "an object or null"));
        };
        let inner = Fields {
            path: fields.path,
            prefix: key,
            map,
        };
        if let Some(theta) = inner.positive("rope_theta")? {
            if outer_theta.is_some_and(|outer| outer != theta) {
                return Err(inner.wrong(
                    "rope_theta",
                    format!("the same value as rope_theta = {}", rope.theta),
                ));
            }
            rope.theta = theta;
        }
        let scaling = rope_scaling(&inner)?;
        if let Some(other) = &seen
            && *other != scaling
        {
            return Err(fields.wrong(key, "the same scaling as rope_parameters"));
        }
        seen = Some(scaling.clone());
        rope.scaling = scaling;
    }
    Ok(rope)
}

fn rope_scaling(fields: &Fields<'_>) -> Result<RopeScaling> {
    // "type" is the older spelling; files often carry both
    let kinds = [fields.optional_str("rope_type")?, fields.optional_str("type")?];
    let kind = match kinds {
        [Some(new), Some(old)] if new != old => {
            return Err(fields.wrong("type", format!("the same as rope_type = {new:?}")));
        }
        [Some(kind), _] | [None, Some(kind)] => kind,
        // transformers 5 writes only rope_theta when nothing is scaled
        [None, None] if fields.get("factor").is_none() => "default",
        [None, None] => return Err(fields.wrong("rope_type", "default, linear or llama3")),
    };
    let used: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "llama3" => &[
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ],
        other => {
            let key = if kinds[0].is_some() { "rope_type" } else { "type" };
            return Err(fields.unsupported(key, "default, linear or llama3", format!("{other:?}")));
        }
    };
    if let Some(factor) = fields.number("partial_rotary_factor")?
        && factor != 1.0
    {
        return Err(fields.unsupported("partial_rotary_factor", "1 or nothing", factor.to_string()));
    }
    for (key, value) in fields.map {
        let known = ["type", "rope_type", "rope_theta", "partial_rotary_factor"];
        if !value.is_null() && !used.contains(&key.as_str()) && !known.contains(&key.as_str()) {
            return Err(fields.unsupported(key, &format!("no such field for type {kind:?}"), brief(value)));
        }
    }
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: fields.required_positive("factor")?,
        }),
        _ => {
            let scaling = RopeScaling::Llama3 {
                factor: fields.required_positive("factor")?,
                low_freq_factor: fields.required_positive("low_freq_factor")?,
                high_freq_factor: fields.required_positive("high_freq_factor")?,
                original_max_position_embeddings: fields.size("original_max_position_embeddings")?,
            };
            // the blend divides by high - low
            if fields.number("high_freq_factor")? <= fields.number("low_freq_factor")? {
                return Err(fields.wrong("high_freq_factor", "a value above low_freq_factor"));
            }
            Ok(scaling)
        }
    }
}

/// The window that every block uses, or none. A mixture over blocks is refused.
fn sliding_window(fields: &Fields<'_>, family: Family, blocks: usize) -> Result<Option<usize>> {
    let window = if fields.map.contains_key("sliding_window") {
        fields.optional_size("sliding_window")?
    } else {
        // transformers' default for Mistral and Qwen2
        (family != Family::Llama).then_some(4096)
    };
    let by_type = match fields.get("layer_types") {
        None => None,
        Some(value) => {
            let types: Option<Vec<&str>> = value
                .as_array()
                .and_then(|list| list.iter().map(Value::as_str).collect());
            let types = types
                .filter(|types| types.len() == blocks)
                .ok_or_else(|| fields.wrong("layer_types", format!("a list of {blocks} names")))?;
            if types.iter().all(|&name| name == "full_attention") {
                Some(false)
            } else if types.iter().all(|&name| name == "sliding_attention") {
                Some(true)
            } else {
                return Err(fields.unsupported(
                    "layer_types",
                    "full_attention for all blocks or sliding_attention for all blocks",
                    brief(value),
                ));
            }
        }
    };
    match family {
        Family::Llama => {
            if let Some(window) = window {
                return Err(fields.unsupported(
                    "sliding_window",
                    "nothing for model_type llama",
                    window.to_string(),
                ));
            }
            if by_type == Some(true) {
                return Err(fields.wrong("layer_types", "full_attention for model_type llama"));
            }
            Ok(None)
        }
        Family::Mistral => {
            if by_type == Some(false) && window.is_some() {
                return Err(fields.wrong("layer_types", "sliding_attention, as sliding_window is given"));
            }
            Ok(window)
        }
        Family::Qwen2 => {
            if !fields.flag("use_sliding_window")?.unwrap_or(false) {
                if by_type == Some(true) {
                    return Err(fields.wrong("layer_types", "full_attention, as use_sliding_window is false"));
                }
                return Ok(None);
            }
            if let Some(all) = by_type {
                return Ok(window.filter(|_| all));
            }
            // transformers slides in the blocks from max_window_layers on, and its default is 28
            let first = fields.count("max_window_layers")?.unwrap_or(28);
            if first >= blocks {
                Ok(None)
            } else if first == 0 {
                Ok(window)
            } else {
                Err(fields.unsupported(
                    "max_window_layers",
                    &format!("0 or at least {blocks}: one window for all blocks"),
                    first.to_string(),
                ))
            }
        }
    }
}

fn storage(fields: &Fields<'_>) -> Result<Option<StorageType>> {
    // transformers 5 renamed the field
    for key in ["dtype", "torch_dtype"] {
        if let Some(name) = fields.optional_str(key)? {
            return match name.trim_start_matches("torch.") {
                "float16" => Ok(Some(StorageType::F16)),
                "bfloat16" => Ok(Some(StorageType::BF16)),
                // f64 weights are read into f32, the widest type that leaves here
                "float32" | "float64" => Ok(Some(StorageType::F32)),
                "auto" => Ok(None),
                _ => Err(fields.wrong(key, "float16, bfloat16, float32 or float64")),
            };
        }
    }
    Ok(None)
}

fn quantization(fields: &Fields<'_>) -> Result<Option<Scheme>> {
    let key = "quantization_config";
    let Some(value) = fields.get(key) else {
        return Ok(None);
    };
    let Value::Object(map) = value else {
        return Err(fields.wrong(key, "an object or null"));
    };
    let inner = Fields {
        path: fields.path,
        prefix: key,
        map,
    };
    let method = inner.required_str("quant_method")?;
    if method != "aqlm" {
        return Err(inner.unsupported("quant_method", "aqlm", format!("{method:?}")));
    }
    // absent numbers have transformers' defaults (AqlmConfig)
    let number = |name: &str, default: usize| Ok::<_, Error>(inner.optional_size(name)?.unwrap_or(default));
    let nbits = number("nbits_per_codebook", 16)?;
    let scheme = Scheme::with_out_group(
        number("num_codebooks", 1)?,
        u32::try_from(nbits).unwrap_or(u32::MAX),
        number("in_group_size", 8)?,
        number("out_group_size", 1)?,
    );
    match scheme {
        Ok(scheme) => Ok(Some(scheme)),
        Err(error) => Err(Error::Field {
            path: fields.path.into(),
            field: key.into(),
            expected: "a scheme".into(),
            found: error.to_string(),
        }),
    }
}

/// One JSON object with the names that errors need.
struct Fields<'a> {
    path: &'a Path,
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() {
            key.into()
        } else {
            format!("{}.{key}", self.prefix)
        }
    }

    /// The value, where there is one that is not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::Field {
            path: self.path.into(),
            field: self.name(key),
            expected: expected.into(),
            found: self.map.get(key).map_or_else(|| "nothing".into(), brief),
        }
    }

    fn unsupported(&self, key: &str, expected: &str, found: String) -> Error {
        Error::Unsupported {
            path: self.path.into(),
            field: self.name(key),
            expected: expected.into(),
            found,
        }
    }

    fn optional_str(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a text")))
            .transpose()
    }

    fn required_str(&self, key: &str) -> Result<&'a str> {
        self.optional_str(key)?.ok_or_else(|| self.wrong(key, "a text"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false")))
            .transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|value| value.as_f64().ok_or_else(|| self.wrong(key, "a number")))
            .transpose()
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        let number = self.number(key)?;
        if number.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
            return Err(self.wrong(key, "a positive number"));
        }
        Ok(number)
    }

    fn required_positive(&self, key: &str) -> Result<f64> {
        self.positive(key)?
            .ok_or_else(|| self.wrong(key, "a positive number"))
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|value| {
                value
                    .as_u64()
                    .map(|number| number as usize)
                    .filter(|&number| number <= LARGEST_SIZE)
                    .ok_or_else(|| self.wrong(key, format!("a whole number of 0 to {LARGEST_SIZE}")))
            })
            .transpose()
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match self.count(key) {
            Ok(Some(0)) | Err(_) => Err(self.wrong(key, format!("a whole number of 1 to {LARGEST_SIZE}"))),
            ok => ok,
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?
            .ok_or_else(|| self.wrong(key, format!("a whole number of 1 to {LARGEST_SIZE}")))
    }

    /// One id or a list of ids.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let list = match value {
            Value::Array(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        // some configurations spell "none" as -1
        if let [Value::Number(number)] = list
            && number.as_i64() == Some(-1)
        {
            return Ok(Vec::new());
        }
        list.iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| self.wrong(key, "a token id or a list of them"))
    }
}

/// A JSON value for an error message: whole when short, its beginning otherwise.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        text
    } else {
        text.chars().take(LONGEST).chain("...".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A valid configuration with some fields replaced; null in `changes` removes the field.
    fn parse(changes: &Value) -> Result<ModelConfig> {
        let mut config = json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let Value::Object(map) = config else {
            unreachable!()
        };
        ModelConfig::from_json(Path::new("config.json"), map)
    }

    fn assert_field(changes: &Value, name: &str) {
        let result = parse(changes);
        assert!(
            matches!(&result, Err(Error::Field { field, .. }) if field == name),
            "{changes}: {result:?}"
        );
    }

    fn assert_unsupported(changes: &Value, name: &str) {
        let result = parse(changes);
        assert!(
            matches!(&result, Err(Error::Unsupported { field, .. }) if field == name),
            "{changes}: {result:?}"
        );
    }

    #[test]
    fn silent_fields_have_transformers_defaults() {
        let config = parse(&json!({"num_key_value_heads": null})).unwrap();
        assert_eq!(
            config.llama,
            LlamaConfig {
                vocab_size: 100,
                hidden_size: 64,
                intermediate_size: 96,
                num_hidden_layers: 2,
                num_attention_heads: 4,
                num_key_value_heads: 4,
                head_dim: 16,
                rms_norm_eps: 1e-6,
                rope: Rope {
                    theta: 10_000.0,
                    scaling: RopeScaling::None
                },
                sliding_window: None,
                tie_word_embeddings: false,
                max_position_embeddings: 2048,
            }
        );
        assert_eq!(
            (config.bos, config.eos, config.storage, config.quantization),
            (None, vec![], None, None)
        );
        assert!(
            LayerKind::ALL
                .iter()
                .all(|&kind| !parse(&json!({})).unwrap().has_bias(kind))
        );
    }

    #[test]
    fn stated_fields_are_honoured() {
        let config = parse(&json!({
            "rms_norm_eps": 1e-5, "rope_theta": 5e5, "head_dim": 32, "tie_word_embeddings": true, "attention_bias": true,
            "mlp_bias": true, "bos_token_id": 1, "eos_token_id": [2, 3], "torch_dtype": "bfloat16",
            "max_position_embeddings": 77, "pretraining_tp": 2, "attention_dropout": 0.1, "use_cache": true,
        }))
        .unwrap();
        let llama = &config.llama;
        assert_eq!(
            (llama.rms_norm_eps, llama.rope.theta, llama.head_dim),
            (1e-5, 5e5, 32)
        );
        assert!(llama.tie_word_embeddings);
        assert_eq!(llama.max_position_embeddings, 77);
        assert!(LayerKind::ALL.iter().all(|&kind| config.has_bias(kind)));
        assert_eq!((config.bos, config.eos), (Some(1), vec![2, 3]));
        assert_eq!(config.storage, Some(StorageType::BF16));
    }

    #[test]
    fn qwen2_has_biases_on_q_k_and_v_only() {
        let config = parse(&json!({"model_type": "qwen2"})).unwrap();
        let with: Vec<_> = LayerKind::ALL
            .into_iter()
            .filter(|&kind| config.has_bias(kind))
            .collect();
        assert_eq!(with, [LayerKind::QProj, LayerKind::KProj, LayerKind::VProj]);
    }

    #[test]
    fn other_families_are_refused_by_name() {
        let result = parse(&json!({"model_type": "gpt2"}));
        let Err(error @ Error::Unsupported { .. }) = result else {
            panic!("{result:?}")
        };
        let text = error.to_string();
        assert!(
            text.contains("llama, mistral or qwen2") && text.contains("gpt2"),
            "{text}"
        );
        assert_field(&json!({"model_type": null}), "model_type");
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let body = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let mut both = body.clone();
        both["rope_theta"] = json!(5e5);
        for changes in [
            json!({"rope_theta": 5e5, "rope_scaling": body}),
            json!({"rope_parameters": both}),
            json!({"rope_theta": 5e5, "rope_parameters": both, "rope_scaling": body}),
        ] {
            let rope = parse(&changes).unwrap().llama.rope;
            assert_eq!(
                rope,
                Rope {
                    theta: 5e5,
                    scaling: llama3.clone()
                }
            );
        }
        let linear = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(
            parse(&linear).unwrap().llama.rope.scaling,
            RopeScaling::Linear { factor: 2.0 }
        );
        let plain = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
        assert_eq!(
            parse(&plain).unwrap().llama.rope,
            Rope {
                theta: 5e5,
                scaling: RopeScaling::None
            }
        );
    }

    #[test]
    fn rope_that_is_not_implemented_is_refused() {
        for kind in ["dynamic", "yarn", "longrope", "su", "mrope"] {
            assert_unsupported(
                &json!({"rope_scaling": {"rope_type": kind, "factor": 2.0}}),
                "rope_scaling.rope_type",
            );
        }
        assert_unsupported(
            &json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
            "rope_scaling.type",
        );
        assert_unsupported(
            &json!({"rope_scaling": {"type": "linear", "factor": 2.0, "attention_factor": 1.5}}),
            "rope_scaling.attention_factor",
        );
        assert_unsupported(&json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor");
        assert_unsupported(
            &json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            "rope_parameters.partial_rotary_factor",
        );
    }

    #[test]
    fn contradictory_rope_is_refused() {
        assert_field(
            &json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}),
            "rope_parameters.rope_theta",
        );
        assert_field(
            &json!({"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2.0}}),
            "rope_scaling.type",
        );
        assert_field(
            &json!({"rope_scaling": {"factor": 2.0}}),
            "rope_scaling.rope_type",
        );
        assert_field(
            &json!({"rope_scaling": {"type": "linear"}}),
            "rope_scaling.factor",
        );
        assert_field(
            &json!({"rope_scaling": {"type": "linear", "factor": -1.0}}),
            "rope_scaling.factor",
        );
        assert_field(&json!({"rope_theta": 0.0}), "rope_theta");
        assert_field(
            &json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
            "rope_scaling.high_freq_factor",
        );
    }

    #[test]
    fn sliding_windows_follow_each_familys_rules() {
        let window = |changes: Value| parse(&changes).unwrap().llama.sliding_window;
        assert_eq!(window(json!({"model_type": "mistral"})), Some(4096));
        assert_eq!(
            window(json!({"model_type": "mistral", "sliding_window": null})),
            None
        );
        assert_eq!(
            window(json!({"model_type": "mistral", "sliding_window": 128})),
            Some(128)
        );
        assert_eq!(
            window(json!({"model_type": "qwen2", "sliding_window": 128})),
            None
        );
        let sliding = |first: usize| json!({"model_type": "qwen2", "sliding_window": 128, "use_sliding_window": true, "max_window_layers": first});
        assert_eq!(window(sliding(0)), Some(128));
        assert_eq!(window(sliding(2)), None);
        assert_unsupported(&sliding(1), "max_window_layers");
        assert_unsupported(&json!({"sliding_window": 128}), "sliding_window");
        assert_unsupported(
            &json!({"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]}),
            "layer_types",
        );
    }

    #[test]
    fn arithmetic_that_is_not_implemented_is_refused() {
        for (key, value) in [
            ("hidden_act", json!("gelu")),
            ("attn_logit_softcapping", json!(50.0)),
            ("final_logit_softcapping", json!(30.0)),
            ("logits_scaling", json!(8.0)),
            ("use_qk_norm", json!(true)),
            ("num_local_experts", json!(8)),
        ] {
            let mut changes = json!({});
            changes[key] = value;
            assert_unsupported(&changes, key);
        }
        assert!(parse(&json!({"hidden_act": "silu", "use_qk_norm": false, "logits_scaling": 1.0})).is_ok());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for key in [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ] {
            for value in [
                Value::Null,
                json!(0),
                json!(-4),
                json!(2.5),
                json!("64"),
                json!(1_u64 << 40),
            ] {
                let mut changes = json!({});
                changes[key] = value;
                assert_field(&changes, key);
            }
        }
        assert_field(&json!({"num_key_value_heads": 3}), "num_key_value_heads");
        assert_field(&json!({"hidden_size": 66}), "hidden_size");
        assert_field(&json!({"head_dim": 15}), "head_dim");
        assert_field(&json!({"rms_norm_eps": -1e-5}), "rms_norm_eps");
        assert_field(&json!({"eos_token_id": "two"}), "eos_token_id");
        assert_field(&json!({"torch_dtype": "int8"}), "torch_dtype");
    }

    #[test]
    fn quantization_is_aqlm_or_refused() {
        let config = parse(&json!({"quantization_config": {
            "quant_method": "aqlm", "in_group_size": 16, "out_group_size": 2, "num_codebooks": 4, "nbits_per_codebook": 4,
            "linear_weights_not_to_quantize": ["lm_head.weight"],
        }}));
        assert_eq!(config.unwrap().quantization, Some("4x4g16o2".parse().unwrap()));
        let defaults = parse(&json!({"quantization_config": {"quant_method": "aqlm"}}));
        assert_eq!(defaults.unwrap().quantization, Some("1x16g8".parse().unwrap()));
        assert_unsupported(
            &json!({"quantization_config": {"quant_method": "gptq"}}),
            "quantization_config.quant_method",
        );
        assert_field(
            &json!({"quantization_config": {}}),
            "quantization_config.quant_method",
        );
        assert_field(
            &json!({"quantization_config": {"quant_method": "aqlm", "nbits_per_codebook": 17}}),
            "quantization_config",
        );
    }

    #[test]
    fn a_file_that_is_no_json_is_named_with_its_line() {
        let result = ModelConfig::from_text(Path::new("config.json"), "{\n  \"vocab_size\": }");
        assert!(matches!(result, Err(Error::Json { line: 2, .. })));
        let result = ModelConfig::from_text(Path::new("config.json"), "[1]");
        assert!(matches!(result, Err(Error::Field { .. })));
    }
}
