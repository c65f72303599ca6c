use serde_json::{Map, Value, json};

use super::container::Container;
use super::fields::Fields;
use super::rope::rope_scaling;
use crate::{Error, Result};

/// The configuration under Hugging Face's field names.
pub(super) fn config(container: &Container, fields: &Fields<'_>) -> Result<Map<String, Value>> {
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
    if let Some(bos) = fields.token_id("tokenizer.ggml.bos_token_id")? {
        set("bos_token_id", json!(bos));
    }
    let mut ends: Vec<i64> = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let id = fields.token_id(&format!("tokenizer.ggml.{key}_token_id"))?;
        ends.extend(id.filter(|id| !ends.contains(id)));
    }
    match ends.as_slice() {
        [] => {}
        [one] => _ = set("eos_token_id", json!(one)),
        several => _ = set("eos_token_id", json!(several)),
    }
    Ok(config)
}
