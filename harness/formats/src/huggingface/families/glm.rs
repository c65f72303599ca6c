use aqlm_vocabulary::{ArchSpec, Input};

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::parts::fuse_gate_and_up;
use super::super::rope::Rotation;
use super::family::Family;
use crate::Result;

/// GLM: Llama with a rotation of neighbours in a part of each head, one layer for gate and up, and biases of
/// q, k and v.
pub(super) const FAMILY: Family = Family {
    name: "glm",
    architecture: "GlmForCausalLM",
    reads: &["attention_bias"],
    arch,
};

/// What all GLMs share.
pub(super) fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(2),
        head_dim: Some(128),
        max_position_embeddings: 131_072,
        epsilon: 1.5625e-7,
        attention_bias: false,
        mlp_bias: false,
        rotation: Rotation {
            part: Some(0.5),
            ..Rotation::PLAIN
        },
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    // not on attention's output, unlike in a Llama
    let biases = fields.flag("attention_bias")?.unwrap_or(true);
    for block in &mut arch.blocks {
        block.attention.neighbours = true;
        fuse_gate_and_up(block);
        if biases {
            *block = block.clone().with_biases(&[Input::Attention]);
        }
    }
    Ok(arch)
}
