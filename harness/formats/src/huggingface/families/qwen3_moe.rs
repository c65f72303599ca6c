use aqlm_vocabulary::{ArchSpec, ExpertNames};

use super::super::experts::{ExpertDefaults, experts, set_experts, sparse_blocks};
use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::parts::add_head_norms;
use super::super::windows::{set_windows, window};
use super::family::Family;
use crate::Result;

/// Qwen3 with experts in some or all blocks.
pub(super) const FAMILY: Family = Family {
    name: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    reads: &[
        "attention_bias",
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
        "sliding_window",
        "use_sliding_window",
        // stands in checkpoints, but the window is that of all blocks
        "max_window_layers",
    ],
    arch,
};

const EXPERTS: ExpertDefaults = ExpertDefaults {
    count: 128,
    used: 8,
    width: ("moe_intermediate_size", Some(768)),
    names: ExpertNames::Qwen,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(4),
        max_position_embeddings: 32_768,
        mlp_bias: false,
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    add_head_norms(&mut arch);
    if fields.flag("use_sliding_window")?.unwrap_or(false) {
        let all = vec![true; arch.blocks.len()];
        set_windows(&mut arch, window(fields)?, &all);
    }
    let mut experts = experts(fields, &EXPERTS)?;
    experts.normalized = fields.flag("norm_topk_prob")?.unwrap_or(false);
    let sparse = sparse_blocks(fields, arch.blocks.len())?;
    set_experts(&mut arch, &experts, &sparse);
    Ok(arch)
}
