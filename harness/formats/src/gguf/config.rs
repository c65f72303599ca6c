use serde_json::{Map, Value, json};

use super::architectures::Architecture;
use super::container::Container;
use super::fields::Fields;
use super::file::{Config, File};
use super::rope::rope_scaling;
use crate::{Error, Result};

/// The configuration under Hugging Face's field names.
pub(super) fn config(
    container: &Container,
    fields: &Fields<'_>,
    architecture: &Architecture,
) -> Result<Map<String, Value>> {
    let embedding = container.tensors.get("token_embd.weight");
    let rows = embedding.and_then(|place| place.shape.first().copied());
    let rows = rows.ok_or_else(|| Error::MissingTensor {
        path: fields.path.into(),
        tensor: "token_embd.weight".into(),
    })?;
    let hidden = fields.size("embedding_length")?;
    let heads = fields.size("attention.head_count")?;
    let head_dim = match fields.optional_size("attention.key_length")? {
        Some(length) => length,
        None => hidden / heads,
    };
    let same = |field: &str, why: &str| match fields.optional_size(field)? {
        Some(found) if found != head_dim => {
            Err(fields.unsupported(field, &format!("{head_dim}, {why}"), found.to_string()))
        }
        _ => Ok(()),
    };
    same("attention.value_length", "the same as attention.key_length")?;
    if !architecture.partial {
        same("rope.dimension_count", "all dimensions of a head")?;
    }
    let rotated = fields.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
    let file = File {
        container,
        fields,
        hidden,
        heads,
        head_dim,
        blocks: fields.size("block_count")?,
    };
    let theta = fields.number("rope.freq_base")?.unwrap_or(10_000.0);
    let mut config = Config::default();
    config.set("vocab_size", json!(rows));
    config.set("hidden_size", json!(hidden));
    config.set("intermediate_size", json!(fields.size("feed_forward_length")?));
    config.set("num_hidden_layers", json!(file.blocks));
    config.set("num_attention_heads", json!(heads));
    let kv_heads = fields.optional_size("attention.head_count_kv")?;
    config.set("num_key_value_heads", json!(kv_heads.unwrap_or(heads)));
    config.set("head_dim", json!(head_dim));
    config.set("hidden_act", json!("silu"));
    let context = fields.size("context_length")?;
    config.set("max_position_embeddings", json!(context));
    let (field, key) = architecture.epsilon;
    config.set(key, json!(fields.required_number(field)?));
    config.set("rope_theta", json!(theta));
    config.set("rope_scaling", rope_scaling(container, fields, theta, rotated)?);
    config.set("tie_word_embeddings", json!(!file.has("output.weight")));
    if let Some(bos) = fields.token_id("tokenizer.ggml.bos_token_id")? {
        config.set("bos_token_id", json!(bos));
    }
    let mut ends: Vec<i64> = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let id = fields.token_id(&format!("tokenizer.ggml.{key}_token_id"))?;
        ends.extend(id.filter(|id| !ends.contains(id)));
    }
    match ends.as_slice() {
        [] => {}
        [one] => config.set("eos_token_id", json!(one)),
        several => config.set("eos_token_id", json!(several)),
    }
    (architecture.config)(&file, &mut config)?;
    Ok(config.into_map())
}
