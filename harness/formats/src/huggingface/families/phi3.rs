use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::parts::fuse;
use super::super::rope::Rotation;
use super::super::windows::set_windows;
use super::family::Family;
use crate::Result;

/// Phi-3: Llama with one layer for q, k and v and one for gate and up, LongRoPE, partial rotation, and an
/// optional sliding window. A fused layer is one layer here, too: AQLM's converter gives it one set of
/// codebooks, and transformers loads it as one.
pub(super) const FAMILY: Family = Family {
    name: "phi3",
    architecture: "Phi3ForCausalLM",
    reads: &["sliding_window"],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        max_position_embeddings: 4096,
        epsilon: 1e-5,
        attention_bias: false,
        mlp_bias: false,
        rotation: Rotation {
            part: Some(1.0),
            long: true,
            ..Rotation::PLAIN
        },
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    arch.blocks.iter_mut().for_each(fuse);
    let all = vec![true; arch.blocks.len()];
    set_windows(&mut arch, fields.optional_size("sliding_window")?, &all);
    Ok(arch)
}
