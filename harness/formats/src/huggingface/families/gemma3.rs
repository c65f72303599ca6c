use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::parts::{AROUND, OF_HEADS, set_norms};
use super::super::rope::{Rotation, rope_of_type};
use super::super::windows::{layer_types, set_windows, window};
use super::family::Family;
use super::{gemma, gemma2};
use crate::Result;

/// Gemma 3, text only: Gemma 2 without a cap of scores, with norms of each head's queries and keys, and with
/// other rotations in the blocks that have a window.
pub(super) const FAMILY: Family = Family {
    name: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    reads: &[
        "attention_bias",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "layer_types",
    ],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(4),
        max_position_embeddings: 131_072,
        rotation: Rotation {
            theta: 1e6,
            by_type: true,
            ..Rotation::PLAIN
        },
        ..gemma::DEFAULTS
    };
    let mut arch = plain(fields, &defaults)?;
    set_norms(&mut arch, &[&AROUND[..], &OF_HEADS].concat(), false);
    gemma::set_shared(&mut arch);
    arch.logits.cap = fields.positive("final_logit_softcapping")?;
    let slides = if let Some(slides) = layer_types(fields)? {
        slides
    } else {
        // each block whose number, counted from 1, is a multiple of it, sees everything
        let pattern = fields.optional_size("_sliding_window_pattern")?;
        let pattern = pattern.or(fields.optional_size("sliding_window_pattern")?);
        let blocks = 1..=arch.blocks.len();
        blocks
            .map(|block| !block.is_multiple_of(pattern.unwrap_or(6)))
            .collect()
    };
    set_windows(&mut arch, window(fields)?, &slides);
    let local = rope_of_type(fields, "sliding_attention", "rope_local_base_freq", 1e4, &arch)?;
    let scale = gemma2::scale(fields)?;
    for (block, slides) in arch.blocks.iter_mut().zip(slides) {
        block.attention.scale = scale;
        if slides {
            block.attention.rotary = Some(local.clone());
        }
    }
    Ok(arch)
}
