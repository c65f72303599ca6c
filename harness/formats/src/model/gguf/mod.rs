//! GGUF files of the llama architecture, presented under the names and conventions of a Hugging Face folder.

mod container;
mod dequantize;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::ModelConfig;
use super::tensors::{TensorInfo, TensorSource, refuse_not_finite};
use crate::{Error, Result};
pub(crate) use container::MAGIC;
use container::{Container, Metadata, TensorPlace};
pub(super) use tokenizer::GgufTokenizer;

/// The tensor in which llama.cpp's converter stores what Llama 3 does to RoPE's frequencies.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The tensors of a GGUF file.
#[derive(Debug)]
pub(super) struct GgufTensors {
    container: Container,
    /// Hugging Face name -> where it is
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
struct Tensor {
    place: TensorPlace,
    /// heads whose rows the converter interleaved
    interleaved_heads: Option<usize>,
}

/// Everything that a GGUF file says of a model.
pub(super) struct Gguf {
    pub(super) config: ModelConfig,
    pub(super) tensors: GgufTensors,
    pub(super) tokenizer: GgufTokenizer,
}

/// Opens a file and understands its metadata.
///
/// # Errors
/// `Io`, `Truncated`, `Header`, `Offsets` and `TensorType` for a file that cannot be read; `Unsupported` for
/// another architecture, experts, or RoPE variants that are not implemented; `Field` for missing or
/// contradictory metadata; `UnexpectedTensor` for tensors that a Llama does not have.
pub(super) fn open(path: &Path) -> Result<Gguf> {
    let mut container = Container::open(path)?;
    let fields = Fields {
        path,
        metadata: &container.metadata,
    };
    let architecture = fields.text("general.architecture")?;
    if architecture != "llama" {
        return Err(fields.unsupported("general.architecture", "llama", format!("{architecture:?}")));
    }
    let config = config(&container, &fields)?;
    let config = ModelConfig::from_json(path, config)?;
    let mut tensors = BTreeMap::new();
    for (name, place) in std::mem::take(&mut container.tensors) {
        if name == ROPE_FACTORS {
            continue;
        }
        let Some(hugging_face) = hugging_face_name(&name) else {
            return Err(Error::UnexpectedTensor {
                path: path.into(),
                tensor: name,
                reason: "as a Llama has no such tensor".into(),
            });
        };
        // the converter reorders the rows of q and k for the other RoPE convention
        let interleaved_heads = if hugging_face.contains(".q_proj.") {
            Some(config.arch.attention().heads)
        } else if hugging_face.contains(".k_proj.") {
            Some(config.arch.attention().kv_heads)
        } else {
            None
        };
        tensors.insert(
            hugging_face,
            Tensor {
                place,
                interleaved_heads,
            },
        );
    }
    let tokenizer = GgufTokenizer::new(path, std::mem::take(&mut container.metadata));
    Ok(Gguf {
        config,
        tensors: GgufTensors { container, tensors },
        tokenizer,
    })
}

/// The configuration in Hugging Face's words.
fn config(container: &Container, fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let embedding = container.tensors.get("token_embd.weight");
    let rows = embedding.and_then(|place| place.shape.first().copied());
    let rows = rows.ok_or_else(|| Error::MissingTensor {
        path: fields.path.into(),
        tensor: "token_embd.weight".into(),
    })?;
    let hidden = fields.size("llama.embedding_length")?;
    let heads = fields.size("llama.attention.head_count")?;
    let head_dim = match fields.optional_size("llama.attention.key_length")? {
        Some(length) => length,
        None => hidden / heads,
    };
    for (field, why) in [
        (
            "llama.attention.value_length",
            "the same as llama.attention.key_length",
        ),
        ("llama.rope.dimension_count", "all dimensions of a head"),
    ] {
        if let Some(found) = fields.optional_size(field)?
            && found != head_dim
        {
            return Err(fields.unsupported(field, &format!("{head_dim}, {why}"), found.to_string()));
        }
    }
    if let Some(experts) = fields.integer("llama.expert_count")?
        && experts != 0
    {
        return Err(fields.unsupported("llama.expert_count", "no experts", experts.to_string()));
    }
    let window = fields.optional_size("llama.attention.sliding_window")?;
    let has = |name: &str| container.tensors.contains_key(name);
    let theta = fields.number("llama.rope.freq_base")?.unwrap_or(10_000.0);
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.into(), value);
    set(
        "architectures",
        json!([if window.is_some() {
            "MistralForCausalLM"
        } else {
            "LlamaForCausalLM"
        }]),
    );
    set(
        "model_type",
        json!(if window.is_some() { "mistral" } else { "llama" }),
    );
    set("vocab_size", json!(rows));
    set("hidden_size", json!(hidden));
    set(
        "intermediate_size",
        json!(fields.size("llama.feed_forward_length")?),
    );
    set("num_hidden_layers", json!(fields.size("llama.block_count")?));
    set("num_attention_heads", json!(heads));
    set(
        "num_key_value_heads",
        json!(
            fields
                .optional_size("llama.attention.head_count_kv")?
                .unwrap_or(heads)
        ),
    );
    set("head_dim", json!(head_dim));
    set("hidden_act", json!("silu"));
    set(
        "max_position_embeddings",
        json!(fields.size("llama.context_length")?),
    );
    set(
        "rms_norm_eps",
        json!(fields.required_number("llama.attention.layer_norm_rms_epsilon")?),
    );
    set("rope_theta", json!(theta));
    set("rope_scaling", rope_scaling(container, fields, theta, head_dim)?);
    set("tie_word_embeddings", json!(!has("output.weight")));
    set("attention_bias", json!(has("blk.0.attn_q.bias")));
    set("mlp_bias", json!(has("blk.0.ffn_gate.bias")));
    if let Some(window) = window {
        set("sliding_window", json!(window));
    }
    if let Some(bos) = fields.integer("tokenizer.ggml.bos_token_id")? {
        set("bos_token_id", json!(bos));
    }
    let mut ends: Vec<i64> = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let id = fields.integer(&format!("tokenizer.ggml.{key}_token_id"))?;
        ends.extend(id.filter(|id| !ends.contains(id)));
    }
    match ends.as_slice() {
        [] => {}
        [one] => _ = set("eos_token_id", json!(one)),
        several => _ = set("eos_token_id", json!(several)),
    }
    Ok(config)
}

/// What the file does to RoPE's frequencies, in the words of config.json.
fn rope_scaling(container: &Container, fields: &Fields<'_>, theta: f64, head_dim: usize) -> Result<Value> {
    let factor = match fields.number("llama.rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // the older spelling
        None => fields.number("llama.rope.scale_linear")?,
    };
    let kind = fields.optional_text("llama.rope.scaling.type")?;
    let linear = match (kind, factor) {
        (Some("none"), _) | (None, None) => None,
        (Some("linear") | None, Some(factor)) => (factor != 1.0).then_some(factor),
        (Some("linear"), None) => {
            return Err(fields.wrong("llama.rope.scaling.factor", "a number for linear scaling"));
        }
        (Some(other), _) => {
            return Err(fields.unsupported(
                "llama.rope.scaling.type",
                "none or linear",
                format!("{other:?}"),
            ));
        }
    };
    let Some(place) = container.tensors.get(ROPE_FACTORS) else {
        return Ok(linear.map_or(
            Value::Null,
            |factor| json!({"rope_type": "linear", "factor": factor}),
        ));
    };
    let factors = place.kind.decode(&container.read(place)?);
    match llama3_factor(&factors, theta, head_dim) {
        Some(factor) if linear.is_none() => Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LLAMA3_LOW,
            "high_freq_factor": LLAMA3_HIGH,
            "original_max_position_embeddings": LLAMA3_CONTEXT,
        })),
        _ => Err(Error::UnexpectedTensor {
            path: fields.path.into(),
            tensor: ROPE_FACTORS.into(),
            reason: "unless its factors are those of Llama 3.1 and nothing else scales RoPE".into(),
        }),
    }
}

/// Llama 3.1 to 3.3 all use these and differ in the factor alone.
const LLAMA3_LOW: f64 = 1.0;
const LLAMA3_HIGH: f64 = 4.0;
const LLAMA3_CONTEXT: usize = 8192;

/// The factor for which Llama 3's rule gives these divisors of the frequencies, when there is one.
fn llama3_factor(found: &[f32], theta: f64, head_dim: usize) -> Option<f64> {
    if found.len() != head_dim / 2 {
        return None;
    }
    let factor = f64::from(found.iter().copied().fold(1.0, f32::max));
    let context = LLAMA3_CONTEXT as f64;
    // The converter computes in f32. Rounding the exponent puts a relative error of ln(theta) / 2 epsilons on
    // the frequency, two more roundings follow; `smooth` carries it by at most high / (high - low), and where
    // `smooth` is near zero the reciprocal of 1 / factor magnifies it by the factor.
    let frequency_error = (theta.ln().abs() / 2.0 + 2.0) * f64::from(f32::EPSILON);
    let tolerance = frequency_error * LLAMA3_HIGH / (LLAMA3_HIGH - LLAMA3_LOW) * factor;
    let matches = found.iter().enumerate().all(|(pair, &found)| {
        let frequency = theta.powf(-2.0 * pair as f64 / head_dim as f64);
        let wavelength = std::f64::consts::TAU / frequency;
        let expected = if wavelength < context / LLAMA3_HIGH {
            1.0
        } else if wavelength > context / LLAMA3_LOW {
            factor
        } else {
            let smooth = (context / wavelength - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        (f64::from(found) - expected).abs() <= tolerance * expected
    });
    (matches && factor > 1.0).then_some(factor)
}

/// The name that Hugging Face gives a tensor.
fn hugging_face_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (block, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let block: usize = block.parse().ok()?;
    let (part, suffix) = part.rsplit_once('.')?;
    let part = match (part, suffix) {
        ("attn_norm", "weight") => "input_layernorm",
        ("ffn_norm", "weight") => "post_attention_layernorm",
        ("attn_q", "weight" | "bias") => "self_attn.q_proj",
        ("attn_k", "weight" | "bias") => "self_attn.k_proj",
        ("attn_v", "weight" | "bias") => "self_attn.v_proj",
        ("attn_output", "weight" | "bias") => "self_attn.o_proj",
        ("ffn_gate", "weight" | "bias") => "mlp.gate_proj",
        ("ffn_up", "weight" | "bias") => "mlp.up_proj",
        ("ffn_down", "weight" | "bias") => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{block}.{part}.{suffix}"))
}

impl TensorSource for GgufTensors {
    fn path(&self) -> &Path {
        &self.container.path
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let place = &self.tensors.get(name)?.place;
        Some(TensorInfo {
            dtype: format!("{:?}", place.kind),
            shape: place.shape.clone(),
            bytes: place.bytes,
            path: self.container.path.clone(),
        })
    }

    fn read_floats(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.container.path.clone(),
            tensor: name.into(),
        })?;
        let mut values = tensor.place.kind.decode(&self.container.read(&tensor.place)?);
        if let Some(heads) = tensor.interleaved_heads {
            values = half_and_half(&values, heads, tensor.place.shape[0]);
        }
        refuse_not_finite(&self.container.path, name, &values)?;
        Ok(values)
    }

    fn read_integers(&self, name: &str) -> Result<Vec<i64>> {
        let info = self.info(name).ok_or_else(|| Error::MissingTensor {
            path: self.container.path.clone(),
            tensor: name.into(),
        })?;
        Err(Error::TensorType {
            path: info.path,
            tensor: name.into(),
            expected: "integers".into(),
            found: info.dtype,
        })
    }
}

/// Puts rows in the order of RoPE's rotate-half convention: pair j of a head is rows j and j + head_dim / 2,
/// where the file has them at 2 j and 2 j + 1.
fn half_and_half(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let head_dim = rows / heads;
    let width = values.len() / rows;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for side in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = head * head_dim + 2 * pair + side;
                out.extend(&values[row * width..(row + 1) * width]);
            }
        }
    }
    out
}

/// Metadata with the names that errors need.
struct Fields<'a> {
    path: &'a Path,
    metadata: &'a BTreeMap<String, Metadata>,
}

impl<'a> Fields<'a> {
    fn wrong(&self, field: &str, expected: &str) -> Error {
        Error::Field {
            path: self.path.into(),
            field: field.into(),
            expected: expected.into(),
            found: self
                .metadata
                .get(field)
                .map_or_else(|| "nothing".into(), Metadata::describe),
        }
    }

    fn unsupported(&self, field: &str, expected: &str, found: String) -> Error {
        Error::Unsupported {
            path: self.path.into(),
            field: field.into(),
            expected: expected.into(),
            found,
        }
    }

    fn optional_text(&self, field: &str) -> Result<Option<&'a str>> {
        match self.metadata.get(field) {
            None => Ok(None),
            Some(Metadata::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(field, "a text")),
        }
    }

    fn text(&self, field: &str) -> Result<&'a str> {
        self.optional_text(field)?
            .ok_or_else(|| self.wrong(field, "a text"))
    }

    fn integer(&self, field: &str) -> Result<Option<i64>> {
        match self.metadata.get(field) {
            None => Ok(None),
            Some(Metadata::Integer(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(field, "a whole number")),
        }
    }

    fn optional_size(&self, field: &str) -> Result<Option<usize>> {
        match self.integer(field)? {
            None => Ok(None),
            Some(value) if value > 0 => Ok(Some(value as usize)),
            Some(_) => Err(self.wrong(field, "a positive whole number")),
        }
    }

    fn size(&self, field: &str) -> Result<usize> {
        self.optional_size(field)?
            .ok_or_else(|| self.wrong(field, "a positive whole number"))
    }

    /// A number. An f32 becomes the decimal that it was rounded from: 1e-5 is stored as 9.99999974737875e-6.
    fn number(&self, field: &str) -> Result<Option<f64>> {
        match self.metadata.get(field) {
            None => Ok(None),
            Some(Metadata::Integer(value)) => Ok(Some(*value as f64)),
            Some(Metadata::Float(value)) => Ok(Some(*value)),
            Some(Metadata::Single(value)) => Ok(Some(value.to_string().parse().unwrap_or(f64::from(*value)))),
            Some(_) => Err(self.wrong(field, "a number")),
        }
    }

    fn required_number(&self, field: &str) -> Result<f64> {
        self.number(field)?.ok_or_else(|| self.wrong(field, "a number"))
    }
}

#[cfg(test)]
mod tests;
