//! `config.json`. Every field that changes the arithmetic is either implemented or rejected.

use std::fmt;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::{ArchSpec, Scheme};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::families::Family;
use super::fields::{Fields, brief};
use crate::{Error, Result};

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

    /// Parses the text of a config.json; `path` is its name in errors.
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
        let arch = (family.arch)(&fields)?;
        let (bos, eos) = (
            fields.token_ids("bos_token_id")?,
            fields.token_ids("eos_token_id")?,
        );
        Ok(Self {
            path: path.into(),
            family,
            arch,
            bos: bos.first().copied(),
            eos,
            storage: storage(&fields)?,
            quantization: quantization(&fields)?,
            raw,
        })
    }
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
        assert_eq!((arch.final_norm.epsilon, block.norms.norm.epsilon), (1e-5, 1e-5));
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
