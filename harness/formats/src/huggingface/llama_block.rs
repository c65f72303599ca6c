//! Fields of config.json shared by all families with the Llama block.

use aqlm_vocabulary::llama::LlamaBlock;
use aqlm_vocabulary::{ArchSpec, BlockSpec, Input};
use serde_json::Value;

use super::fields::{Fields, brief};
use super::rope::rope;
use crate::{Error, Result};

/// What transformers does for a family with fields absent from config.json, and with flags for biases.
pub(super) struct Defaults {
    /// number of key and value heads; `None` means as many as query heads
    pub(super) kv_heads: Option<usize>,
    /// longest context
    pub(super) max_position_embeddings: usize,
    /// whether the family reads `attention_bias` and `mlp_bias`
    pub(super) bias_flags: bool,
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
    // only an absent key has the family's default; null means as many as query heads
    let kv_heads = if fields.map.contains_key("num_key_value_heads") {
        fields.optional_size("num_key_value_heads")?
    } else {
        defaults.kv_heads
    };
    let kv_heads = kv_heads.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.wrong(
            "num_key_value_heads",
            format!("a divisor of num_attention_heads = {heads}"),
        ));
    }
    let head_dim = head_dim(fields, hidden_size, heads)?;
    let longest = fields.optional_size("max_position_embeddings")?;
    let longest = longest.unwrap_or(defaults.max_position_embeddings);
    let block = BlockSpec::llama(LlamaBlock {
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        heads,
        kv_heads,
        head_dim,
        epsilon: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
        rotary: rope(fields, head_dim, longest)?,
        window,
    });
    let mut block = block.with_biases(biased);
    if defaults.bias_flags && fields.flag("attention_bias")?.unwrap_or(false) {
        block = block.with_biases(&[Input::Attention, Input::Attended]);
    }
    if defaults.bias_flags && fields.flag("mlp_bias")?.unwrap_or(false) {
        block = block.with_biases(&[Input::Mlp, Input::Activated]);
    }
    let vocab_size = fields.size("vocab_size")?;
    let blocks = fields.size("num_hidden_layers")?;
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

/// Rejects activations and rotations that are not implemented. [`super::keys`] lists keys that no family here
/// has.
fn refuse_unknown_arithmetic(fields: &Fields<'_>) -> Result<()> {
    for key in ["hidden_act", "hidden_activation"] {
        // two names of one function
        if let Some(activation) = fields.optional_str(key)?
            && !["silu", "swish"].contains(&activation)
        {
            return Err(fields.unsupported(key, "silu", format!("{activation:?}")));
        }
    }
    if let Some(factor) = fields.number("partial_rotary_factor")?
        && factor != 1.0
    {
        return Err(fields.unsupported("partial_rotary_factor", "1 or nothing", factor.to_string()));
    }
    Ok(())
}
