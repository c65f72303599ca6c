use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, layer_types, plain, window};
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
    if layer_types(fields)? == Some(false) && window.is_some() {
        return Err(fields.wrong("layer_types", "sliding_attention, as sliding_window is given"));
    }
    let defaults = Defaults {
        kv_heads: Some(8),
        max_position_embeddings: 131_072,
        bias_flags: false,
    };
    plain(fields, &defaults, window, &[])
}
