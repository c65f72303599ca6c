use aqlm_vocabulary::{ArchSpec, ExpertNames};

use super::super::experts::{ExpertDefaults, experts, set_experts};
use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::rope::Rotation;
use super::super::windows::set_windows;
use super::family::Family;
use crate::Result;

/// Mistral with experts instead of an MLP in every block. The weights of a token's experts add up to 1.
pub(super) const FAMILY: Family = Family {
    name: "mixtral",
    architecture: "MixtralForCausalLM",
    reads: &[
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "sliding_window",
    ],
    arch,
};

const EXPERTS: ExpertDefaults = ExpertDefaults {
    count: 8,
    used: 2,
    width: ("intermediate_size", None),
    names: ExpertNames::Mixtral,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(8),
        max_position_embeddings: 131_072,
        epsilon: 1e-5,
        attention_bias: false,
        mlp_bias: false,
        rotation: Rotation {
            theta: 1e6,
            ..Rotation::PLAIN
        },
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    let all = vec![true; arch.blocks.len()];
    set_windows(&mut arch, fields.optional_size("sliding_window")?, &all);
    set_experts(&mut arch, &experts(fields, &EXPERTS)?, &all);
    Ok(arch)
}
