use aqlm_vocabulary::{ArchSpec, Input};

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::windows::switched_windows;
use super::family::Family;
use crate::Result;

/// Llama with biases on q, k and v, and an optional sliding window.
pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    architecture: "Qwen2ForCausalLM",
    reads: &[
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
        max_position_embeddings: 32_768,
        attention_bias: false,
        mlp_bias: false,
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    for block in &mut arch.blocks {
        *block = block.clone().with_biases(&[Input::Attention]);
    }
    switched_windows(fields, &mut arch)?;
    Ok(arch)
}
