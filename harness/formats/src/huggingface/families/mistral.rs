use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::windows::{layer_types, set_windows, window};
use super::family::Family;
use crate::Result;

/// Llama with an optional sliding window.
pub(super) const FAMILY: Family = Family {
    name: "mistral",
    architecture: "MistralForCausalLM",
    reads: &["sliding_window", "layer_types"],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let window = window(fields)?;
    let full = layer_types(fields)?.is_some_and(|types| types.contains(&false));
    if full && window.is_some() {
        return Err(fields.wrong("layer_types", "sliding_attention, as sliding_window is given"));
    }
    let defaults = Defaults {
        kv_heads: Some(8),
        max_position_embeddings: 131_072,
        attention_bias: false,
        mlp_bias: false,
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    let all = vec![true; arch.blocks.len()];
    set_windows(&mut arch, window, &all);
    Ok(arch)
}
