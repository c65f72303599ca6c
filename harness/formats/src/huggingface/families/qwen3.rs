use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::parts::add_head_norms;
use super::super::windows::switched_windows;
use super::family::Family;
use crate::Result;

/// Llama with norms of each head's queries and keys, and an optional sliding window.
pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    architecture: "Qwen3ForCausalLM",
    reads: &[
        "attention_bias",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
    ],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(32),
        head_dim: Some(128),
        max_position_embeddings: 32_768,
        mlp_bias: false,
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    add_head_norms(&mut arch);
    switched_windows(fields, &mut arch)?;
    Ok(arch)
}
