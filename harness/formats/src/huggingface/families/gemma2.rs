use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::parts::{AROUND, set_norms};
use super::super::windows::{layer_types, set_windows, window};
use super::family::Family;
use super::gemma;
use crate::Result;

/// Gemma 2: norms before and behind attention and MLP, capped scores and logits, a window in every other
/// block.
pub(super) const FAMILY: Family = Family {
    name: "gemma2",
    architecture: "Gemma2ForCausalLM",
    reads: &[
        "attention_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
        "sliding_window",
        "layer_types",
    ],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(4),
        ..gemma::DEFAULTS
    };
    let mut arch = plain(fields, &defaults)?;
    set_norms(&mut arch, &AROUND, false);
    gemma::set_shared(&mut arch);
    arch.logits.cap = or_default(fields, "final_logit_softcapping", Some(30.0))?;
    let cap = or_default(fields, "attn_logit_softcapping", Some(50.0))?;
    let scale = scale(fields)?;
    for block in &mut arch.blocks {
        (block.attention.cap, block.attention.scale) = (cap, scale);
    }
    let alternate = || (0..arch.blocks.len()).map(|block| block % 2 == 0).collect();
    let slides = layer_types(fields)?.unwrap_or_else(alternate);
    set_windows(&mut arch, window(fields)?, &slides);
    Ok(arch)
}

/// The factor of attention scores: 1 / sqrt(query_pre_attn_scalar).
pub(super) fn scale(fields: &Fields<'_>) -> Result<f64> {
    let scalar = fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(1.0 / scalar.sqrt())
}

/// A cap: null means none, and an absent key the default.
pub(super) fn or_default(fields: &Fields<'_>, key: &str, default: Option<f64>) -> Result<Option<f64>> {
    if fields.map.contains_key(key) {
        fields.positive(key)
    } else {
        Ok(default)
    }
}
