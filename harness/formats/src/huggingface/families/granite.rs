use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::family::Family;
use crate::Result;

/// Llama with factors of embeddings, attention scores, additions to the residual stream, and logits.
pub(super) const FAMILY: Family = Family {
    name: "granite",
    architecture: "GraniteForCausalLM",
    reads: &[
        "attention_bias",
        "mlp_bias",
        "attention_multiplier",
        "embedding_multiplier",
        "logits_scaling",
        "residual_multiplier",
    ],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let mut arch = plain(fields, &Defaults::LLAMA)?;
    // each is 1 where it is absent, that of the scores, too
    let factor = |key: &str| Ok::<_, crate::Error>(fields.positive(key)?.unwrap_or(1.0));
    arch.embedding_scale = factor("embedding_multiplier")?;
    arch.logits.scale = 1.0 / factor("logits_scaling")?;
    for block in &mut arch.blocks {
        block.residual_scale = factor("residual_multiplier")?;
        block.attention.scale = factor("attention_multiplier")?;
    }
    Ok(arch)
}
