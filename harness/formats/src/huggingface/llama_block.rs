//! Fields of config.json shared by all families with the Llama block.

use aqlm_vocabulary::llama::LlamaBlock;
use aqlm_vocabulary::{ArchSpec, BlockSpec, Input};
use serde_json::Value;

use super::fields::{Fields, brief};
use super::rope::rope;
use crate::{Error, Result};

/// transformers' defaults of a family for fields absent from config.json.
pub(super) struct Defaults {
    /// number of key and value heads; `None` means as many as query heads
    pub(super) kv_heads: Option<usize>,
    /// longest context
    pub(super) max_position_embeddings: usize,
}

/// A model of plain blocks with this window. Layers whose input is in `biased` always have biases.
///
/// # Errors
/// `Field` for values that are missing, of the wrong type or contradictory; `Unsupported` for values that
/// require other arithmetic.
pub(super) fn plain(
    fields: &Fields<'_>,
    defaults: &Defaults,
    window: Option<usize>,
    biased: &[Input],
) -> Result<ArchSpec> {
    refuse_unknown_arithmetic(fields)?;
    let hidden_size = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    let kv_heads = fields.optional_size("num_key_value_heads")?;
    let kv_heads = kv_heads.or(defaults.kv_heads).unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.wrong(
            "num_key_value_heads",
            format!("a divisor of num_attention_heads = {heads}"),
        ));
    }
    let block = BlockSpec::llama(LlamaBlock {
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        heads,
        kv_heads,
        head_dim: head_dim(fields, hidden_size, heads)?,
        epsilon: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
        rotary: rope(fields)?,
        window,
    });
    let mut block = block.with_biases(biased);
    if fields.flag("attention_bias")?.unwrap_or(false) {
        block = block.with_biases(&[Input::Attention, Input::Attended]);
    }
    if fields.flag("mlp_bias")?.unwrap_or(false) {
        block = block.with_biases(&[Input::Mlp, Input::Activated]);
    }
    let vocab_size = fields.size("vocab_size")?;
    let blocks = fields.size("num_hidden_layers")?;
    let longest = fields.optional_size("max_position_embeddings")?;
    let longest = longest.unwrap_or(defaults.max_position_embeddings);
    Ok(ArchSpec {
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        ..ArchSpec::llama(vocab_size, longest, blocks, block)
    })
}

fn head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    let head_dim = match fields.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(fields.wrong(
                "hidden_size",
                format!("a multiple of num_attention_heads = {heads}, as head_dim is not given"),
            ));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(Error::Field {
            path: fields.path.into(),
            field: "head_dim".into(),
            expected: "an even number (RoPE rotates pairs)".into(),
            found: head_dim.to_string(),
        });
    }
    Ok(head_dim)
}

/// `sliding_window` for families with a default of 4096 in transformers.
pub(super) fn window(fields: &Fields<'_>) -> Result<Option<usize>> {
    if fields.map.contains_key("sliding_window") {
        fields.optional_size("sliding_window")
    } else {
        Ok(Some(4096))
    }
}

/// Whether `layer_types` makes all blocks use the window, or none. A mixture is rejected.
pub(super) fn layer_types(fields: &Fields<'_>) -> Result<Option<bool>> {
    let Some(value) = fields.get("layer_types") else {
        return Ok(None);
    };
    let blocks = fields.size("num_hidden_layers")?;
    let types: Option<Vec<&str>> = value
        .as_array()
        .and_then(|list| list.iter().map(Value::as_str).collect());
    let types = types
        .filter(|types| types.len() == blocks)
        .ok_or_else(|| fields.wrong("layer_types", format!("a list of {blocks} names")))?;
    if types.iter().all(|&name| name == "full_attention") {
        Ok(Some(false))
    } else if types.iter().all(|&name| name == "sliding_attention") {
        Ok(Some(true))
    } else {
        Err(fields.unsupported(
            "layer_types",
            "full_attention for all blocks or sliding_attention for all blocks",
            brief(value),
        ))
    }
}

/// Rejects fields that would change the arithmetic; each is listed with the only value that changes nothing
/// here.
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
