use aqlm_vocabulary::{Activation, ArchSpec};

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::family::Family;
use crate::Result;

/// Gemma 1: Llama with GeGLU, norms by 1 + w, and embeddings times the root of their width.
pub(super) const FAMILY: Family = Family {
    name: "gemma",
    architecture: "GemmaForCausalLM",
    reads: &["attention_bias"],
    arch,
};

/// What all Gemmas share.
pub(super) const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(16),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    activation: Activation::GeluTanh,
    tied: true,
    mlp_bias: false,
    ..Defaults::LLAMA
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let mut arch = plain(fields, &DEFAULTS)?;
    set_shared(&mut arch);
    Ok(arch)
}

/// Gives a model what all Gemmas share beyond a block's parts.
pub(super) fn set_shared(arch: &mut ArchSpec) {
    arch.embedding_scale = (arch.hidden_size as f64).sqrt();
    arch.final_norm.one_plus = true;
    for norm in arch.blocks.iter_mut().flat_map(|block| &mut block.norms) {
        norm.norm.one_plus = true;
    }
}
