//! `config.json`. Every field that changes the arithmetic is either implemented or rejected.

use std::fmt;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::{ArchSpec, Scheme};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::families::Family;
use super::fields::{Fields, brief};
use super::{keys, rope};
use crate::{Error, Result, json};

/// Types in which unquantized weights are stored.
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

/// Everything read from a model's configuration.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// the file it came from
    pub path: PathBuf,
    /// the model family
    pub family: &'static Family,
    /// the model as data
    pub arch: ArchSpec,
    /// token that starts a document
    pub bos: Option<u32>,
    /// tokens that end a document; the first one is appended to documents
    pub eos: Vec<u32>,
    /// the type in which the weights were saved, if stated
    pub storage: Option<StorageType>,
    /// the scheme of the quantized layers, if any
    pub quantization: Option<Scheme>,
    /// the whole file as read; a checkpoint written from the model thereby keeps fields that this project
    /// ignores
    pub raw: Map<String, Value>,
    /// what the reader of a result should know: fields that were not read, and rules on which releases of
    /// transformers disagree; each names the file and the field
    pub warnings: Vec<String>,
}

impl ModelConfig {
    /// Reads a config.json.
    ///
    /// # Errors
    /// `Io`, and those of [`ModelConfig::from_text`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_value(path, json::read(path)?)
    }

    /// Parses the text of a config.json; `path` is its name in errors.
    ///
    /// # Errors
    /// `Json`; `Kind` for a git-lfs pointer or a web page; those of [`ModelConfig::from_json`].
    pub fn from_text(path: &Path, text: &str) -> Result<Self> {
        Self::from_value(path, json::parse(path, text.as_bytes())?)
    }

    fn from_value(path: &Path, value: Value) -> Result<Self> {
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

    /// Interprets a parsed config.json.
    ///
    /// # Errors
    /// `Field` for values that are missing, of the wrong type or contradictory; `Unsupported` for values that
    /// require arithmetic that this project does not implement.
    pub fn from_json(path: &Path, raw: Map<String, Value>) -> Result<Self> {
        let fields = Fields {
            path,
            prefix: "",
            map: &raw,
        };
        let family = Family::of(&fields)?;
        let mut warnings = keys::check(&fields, family)?;
        let arch = (family.arch)(&fields)?;
        let (bos, eos) = (
            fields.token_ids("bos_token_id")?,
            fields.token_ids("eos_token_id")?,
        );
        warnings.extend(rope::unread(&fields)?);
        warnings.extend(other_class(&fields, family)?);
        Ok(Self {
            path: path.into(),
            family,
            arch,
            bos: bos.first().copied(),
            eos,
            storage: storage(&fields)?,
            quantization: quantization(&fields)?,
            raw,
            warnings,
        })
    }

    /// Whether the layers' schemes are in an `aqlm` block, as in AQLM's first months.
    pub(super) fn is_legacy(&self) -> bool {
        self.raw.contains_key("aqlm")
    }
}

/// A warning when the class that `architectures` names is neither the family's nor its model without a head.
fn other_class(fields: &Fields<'_>, family: &Family) -> Result<Option<String>> {
    let Some(value) = fields.get("architectures") else {
        return Ok(None);
    };
    let names: Option<Vec<&str>> = value
        .as_array()
        .and_then(|list| list.iter().map(Value::as_str).collect());
    let names = names.ok_or_else(|| fields.wrong("architectures", "a list of names"))?;
    let bare = family.architecture.replace("ForCausalLM", "Model");
    let known = |name: &&str| *name == family.architecture || *name == bare;
    Ok((!names.iter().all(known)).then(|| {
        format!(
            "{}: field `architectures` is {}: the model is read as {}",
            fields.path.display(),
            brief(value),
            family.architecture
        )
    }))
}

fn storage(fields: &Fields<'_>) -> Result<Option<StorageType>> {
    // transformers 5 renamed the field
    for key in ["dtype", "torch_dtype"] {
        if let Some(name) = fields.optional_str(key)? {
            return match name.trim_start_matches("torch.") {
                "float16" => Ok(Some(StorageType::F16)),
                "bfloat16" => Ok(Some(StorageType::BF16)),
                // f64 weights are read as f32, the widest type written here
                "float32" | "float64" => Ok(Some(StorageType::F32)),
                "auto" => Ok(None),
                _ => Err(fields.wrong(key, "float16, bfloat16, float32 or float64")),
            };
        }
    }
    Ok(None)
}

fn quantization(fields: &Fields<'_>) -> Result<Option<Scheme>> {
    let object = |key: &'static str| match fields.get(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(Fields {
            path: fields.path,
            prefix: key,
            map,
        })),
        Some(_) => Err(fields.wrong(key, "an object or null")),
    };
    let legacy = object("aqlm")?.map(|inner| scheme(&inner)).transpose()?;
    let Some(inner) = object("quantization_config")? else {
        return Ok(legacy);
    };
    let method = inner.required_str("quant_method")?;
    if method != "aqlm" {
        return Err(inner.unsupported("quant_method", "aqlm", format!("{method:?}")));
    }
    let scheme = scheme(&inner)?;
    if legacy.is_some_and(|legacy| legacy != scheme) {
        return Err(fields.wrong("aqlm", format!("{scheme} as in quantization_config")));
    }
    Ok(Some(scheme))
}

/// The scheme that an object of four numbers describes.
fn scheme(inner: &Fields<'_>) -> Result<Scheme> {
    // absent numbers have transformers' defaults (AqlmConfig)
    let number = |name: &str, default: usize| Ok::<_, Error>(inner.optional_size(name)?.unwrap_or(default));
    let nbits = number("nbits_per_codebook", 16)?;
    let scheme = Scheme::with_out_group(
        number("num_codebooks", 1)?,
        u32::try_from(nbits).unwrap_or(u32::MAX),
        number("in_group_size", 8)?,
        number("out_group_size", 1)?,
    );
    scheme.map_err(|error| Error::Field {
        path: inner.path.into(),
        field: inner.prefix.into(),
        expected: "a scheme".into(),
        found: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::llama::{GATE, LlamaBlock, OUTPUT};
    use aqlm_vocabulary::{BlockSpec, Rope, RopeScaling};
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

    fn rotary(config: &ModelConfig) -> Rope {
        config.arch.attention().rotary.clone().unwrap()
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
            config.arch,
            ArchSpec::llama(
                100,
                2048,
                2,
                BlockSpec::llama(LlamaBlock {
                    hidden_size: 64,
                    intermediate_size: 96,
                    heads: 4,
                    kv_heads: 4,
                    head_dim: 16,
                    epsilon: 1e-6,
                    rotary: Rope {
                        theta: 10_000.0,
                        scaling: RopeScaling::None
                    },
                    window: None,
                })
            )
        );
        assert_eq!(
            (config.bos, config.eos, config.storage, config.quantization),
            (None, vec![], None, None)
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
        let (arch, block) = (&config.arch, &config.arch.blocks[1]);
        assert_eq!(
            (arch.final_norm.epsilon, block.norms[0].norm.epsilon),
            (1e-5, 1e-5)
        );
        assert_eq!(rotary(&config).theta, 5e5);
        assert_eq!((block.attention.head_dim, block.shape(OUTPUT)), (32, (64, 128)));
        assert!(arch.tied);
        assert_eq!(arch.max_position_embeddings, 77);
        assert!(block.linears.iter().all(|linear| linear.bias));
        assert_eq!((config.bos, config.eos), (Some(1), vec![2, 3]));
        assert_eq!(config.storage, Some(StorageType::BF16));
    }

    #[test]
    fn qwen2_has_biases_on_q_k_and_v_only() {
        let config = parse(&json!({"model_type": "qwen2"})).unwrap();
        let biases: Vec<bool> = config.arch.blocks[0]
            .linears
            .iter()
            .map(|linear| linear.bias)
            .collect();
        assert_eq!(biases, [true, true, true, false, false, false, false]);
        let mlp = parse(&json!({"mlp_bias": true})).unwrap().arch.blocks.remove(0);
        assert!(mlp.linear(GATE).bias && !mlp.linear(OUTPUT).bias);
    }

    #[test]
    fn other_families_are_refused_by_name() {
        let result = parse(&json!({"model_type": "gpt2"}));
        let Err(error @ Error::Unsupported { .. }) = result else {
            panic!("{result:?}")
        };
        let text = error.to_string();
        assert!(
            text.contains("llama, mistral, qwen2") && text.contains("gpt2"),
            "{text}"
        );
        let result = parse(&json!({"model_type": "cohere"}));
        assert!(
            matches!(&result, Err(Error::Unsupported { found, .. }) if found.contains("side by side")),
            "{result:?}"
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
            let rope = rotary(&parse(&changes).unwrap());
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
            rotary(&parse(&linear).unwrap()).scaling,
            RopeScaling::Linear { factor: 2.0 }
        );
        let plain = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
        assert_eq!(
            rotary(&parse(&plain).unwrap()),
            Rope {
                theta: 5e5,
                scaling: RopeScaling::None
            }
        );
    }

    #[test]
    fn rope_that_is_not_implemented_is_refused() {
        for kind in ["longrope", "su", "mrope", "proportional"] {
            assert_unsupported(
                &json!({"rope_scaling": {"rope_type": kind, "factor": 2.0}}),
                "rope_scaling.rope_type",
            );
        }
        assert_unsupported(
            &json!({"rope_scaling": {"type": "longrope", "factor": 2.0}}),
            "rope_scaling.type",
        );
        assert_unsupported(
            &json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
            "rope_parameters.full_attention",
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
        let window = |changes: Value| parse(&changes).unwrap().arch.attention().window;
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
        assert_unsupported(&json!({"sliding_window": 128}), "sliding_window");
        let windows = |changes: &Value| -> Vec<Option<usize>> {
            let blocks = parse(changes).unwrap().arch.blocks;
            blocks.into_iter().map(|block| block.attention.window).collect()
        };
        assert_eq!(windows(&sliding(1)), [None, Some(128)]);
        let mut by_type = sliding(1);
        by_type["layer_types"] = json!(["sliding_attention", "full_attention"]);
        assert_eq!(windows(&by_type), [Some(128), None]);
        by_type["use_sliding_window"] = json!(false);
        assert_field(&by_type, "layer_types");
        for types in [
            json!(["sliding_attention"]),
            json!(["full_attention", "linear_attention"]),
        ] {
            assert_field(
                &json!({"model_type": "qwen2", "layer_types": types}),
                "layer_types",
            );
        }
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
            ("is_causal", json!(false)),
            ("transformers_weights", json!("other.safetensors")),
            ("per_layer_config", json!({"0": {"head_dim": 8}})),
            ("pruned_heads", json!({"0": [1]})),
            ("text_config", json!({"hidden_size": 8})),
            ("is_encoder_decoder", json!(true)),
        ] {
            let mut changes = json!({});
            changes[key] = value;
            assert_unsupported(&changes, key);
        }
        let neutral = json!({
            "hidden_act": "swish", "use_qk_norm": false, "logits_scaling": 1.0, "is_causal": true, "pruned_heads": {},
        });
        assert_eq!(parse(&neutral).unwrap().warnings, [""; 0]);
    }

    #[test]
    fn keys_without_effect_pass_in_silence_and_unknown_ones_are_named() {
        let quiet = json!({
            "use_cache": true, "temperature": 0.7, "attention_dropout": 0.1, "_name_or_path": "x", "id2label": {"0": "a"},
            "architectures": ["LlamaForCausalLM"], "custom": null,
        });
        assert_eq!(parse(&quiet).unwrap().warnings, [""; 0]);
        for (changes, word) in [
            (json!({"custom": 1}), "`custom`"),
            (
                json!({"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}),
                "`auto_map`",
            ),
            (
                json!({"architectures": ["LlamaForSequenceClassification"]}),
                "`architectures`",
            ),
            (json!({"model_type": "qwen2", "mlp_bias": true}), "`mlp_bias`"),
            (json!({"use_sliding_window": true}), "`use_sliding_window`"),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2.0, "attention_factor": 1.5}}),
                "`rope_scaling.attention_factor`",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 5e5}}),
                "`rope_scaling.rope_theta`",
            ),
        ] {
            let warnings = parse(&changes).unwrap().warnings;
            assert!(
                warnings.len() == 1 && warnings[0].contains(word),
                "{changes}: {warnings:?}"
            );
        }
    }

    #[test]
    fn numbers_that_are_not_finite_matter_only_where_they_are_read() {
        let config = |field: &str| {
            let text = format!(
                "{{\"model_type\": \"llama\", \"vocab_size\": 9, \"hidden_size\": 8, \"intermediate_size\": 8, \
                 \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"{field}\": Infinity}}"
            );
            ModelConfig::from_text(Path::new("config.json"), &text)
        };
        assert!(config("initializer_range").is_ok());
        let result = config("rms_norm_eps");
        assert!(matches!(result, Err(Error::Field { field, found, .. })
            if field == "rms_norm_eps" && found.contains("Infinity")));
    }

    #[test]
    fn biases_are_those_of_the_familys_code() {
        for family in ["mistral", "qwen2"] {
            let changes = json!({"model_type": family, "attention_bias": true, "mlp_bias": true});
            let config = parse(&changes).unwrap();
            assert!(!config.arch.blocks[0].linear(OUTPUT).bias && !config.arch.blocks[0].linear(GATE).bias);
            assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
        }
    }

    #[test]
    fn only_an_absent_number_of_key_heads_has_the_familys_default() {
        let keys = |family: &str, heads: Option<usize>| {
            let mut config = json!({
                "model_type": family, "vocab_size": 9, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 32,
            });
            if let Some(heads) = heads {
                config["num_key_value_heads"] = json!(heads);
            }
            config
        };
        let read = |config: Value| {
            let config = ModelConfig::from_text(Path::new("config.json"), &config.to_string());
            config.unwrap().arch.attention().kv_heads
        };
        for (family, default) in [("llama", 32), ("mistral", 8), ("qwen2", 32)] {
            assert_eq!(read(keys(family, None)), default);
            assert_eq!(read(keys(family, Some(4))), 4);
            let mut null = keys(family, None);
            null["num_key_value_heads"] = Value::Null;
            assert_eq!(read(null), 32, "{family}");
        }
    }

    #[test]
    fn dynamic_and_yarn_have_transformers_defaults() {
        let scaling = |changes: Value| rotary(&parse(&changes).unwrap()).scaling;
        assert_eq!(
            scaling(json!({"rope_scaling": {"type": "dynamic", "factor": 2}, "max_position_embeddings": 77})),
            RopeScaling::Dynamic {
                factor: 2.0,
                max_position_embeddings: 77
            }
        );
        let yarn = |attention_factor| RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 2048,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor,
        };
        let given = |changes: Value| {
            let mut body = json!({"rope_type": "yarn", "factor": 4.0});
            for (key, value) in changes.as_object().unwrap() {
                body[key] = value.clone();
            }
            scaling(json!({"rope_parameters": body}))
        };
        let derived = 0.1 * 4.0_f64.ln() + 1.0;
        assert_eq!(given(json!({})), yarn(derived));
        assert_eq!(
            given(json!({"beta_fast": 0, "beta_slow": null, "mscale": 1.0})),
            yarn(derived)
        );
        assert_eq!(
            given(json!({"attention_factor": 1.5, "mscale": 2, "mscale_all_dim": 1})),
            yarn(1.5)
        );
        let ratio = (0.2 * 4.0_f64.ln() + 1.0) / derived;
        assert_eq!(given(json!({"mscale": 2, "mscale_all_dim": 1})), yarn(ratio));
        for (field, value) in [
            ("factor", json!(0.5)),
            ("beta_fast", json!(0.5)),
            ("attention_factor", json!(0)),
        ] {
            let mut body = json!({"rope_type": "yarn", "factor": 4.0});
            body[field] = value;
            assert_field(&json!({"rope_scaling": body}), &format!("rope_scaling.{field}"));
        }
        let outside =
            json!({"original_max_position_embeddings": 512, "rope_scaling": {"type": "yarn", "factor": 4.0}});
        assert_field(&outside, "rope_scaling.original_max_position_embeddings");
    }

    #[test]
    fn what_is_written_reads_back_in_each_spelling() {
        for body in [
            json!(null),
            json!({"rope_type": "linear", "factor": 2.0}),
            json!({"rope_type": "dynamic", "factor": 2.0}),
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}),
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "truncate": false}),
        ] {
            let rope = rotary(&parse(&json!({"rope_theta": 5e5, "rope_scaling": body})).unwrap());
            let mut written = Map::new();
            rope::write(&mut written, &rope);
            let only = |keys: &[&str]| {
                let kept = written.iter().filter(|(key, _)| keys.contains(&key.as_str()));
                let kept: Map<String, Value> =
                    kept.map(|(key, value)| (key.clone(), value.clone())).collect();
                rotary(&parse(&Value::Object(kept)).unwrap())
            };
            let old = ["rope_theta", "rope_scaling"];
            for keys in [
                &old[..],
                &["rope_parameters"],
                &["rope_theta", "rope_scaling", "rope_parameters"],
            ] {
                assert_eq!(only(keys), rope);
            }
        }
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
        let block = json!({"in_group_size": 16, "num_codebooks": 2, "nbits_per_codebook": 6});
        let legacy =
            json!({"model_type": "llama_aqlm", "aqlm": block, "auto_map": {"AutoConfig": "configuration.C"}});
        let legacy = parse(&legacy).unwrap();
        assert_eq!(legacy.quantization, Some("2x6g16".parse().unwrap()));
        assert_eq!((legacy.family.name, legacy.warnings.len()), ("llama", 0));
        assert_field(
            &json!({"aqlm": block, "quantization_config": {"quant_method": "aqlm"}}),
            "aqlm",
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
