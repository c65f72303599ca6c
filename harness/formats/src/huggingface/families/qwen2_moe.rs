use aqlm_vocabulary::{ArchSpec, ExpertNames, Input};

use super::super::experts::{ExpertDefaults, experts, set_experts, sparse_blocks};
use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::windows::{layer_types, set_windows, window};
use super::family::Family;
use crate::Result;

/// Qwen2 with experts, one of them shared by all tokens, in some or all blocks.
pub(super) const FAMILY: Family = Family {
    name: "qwen2_moe",
    architecture: "Qwen2MoeForCausalLM",
    reads: &[
        "qkv_bias",
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
    ],
    arch,
};

const EXPERTS: ExpertDefaults = ExpertDefaults {
    count: 60,
    used: 4,
    width: ("moe_intermediate_size", Some(1408)),
    names: ExpertNames::Qwen,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(16),
        max_position_embeddings: 32_768,
        attention_bias: false,
        mlp_bias: false,
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    if fields.flag("qkv_bias")?.unwrap_or(true) {
        for block in &mut arch.blocks {
            *block = block.clone().with_biases(&[Input::Attention]);
        }
    }
    windows(fields, &mut arch)?;
    let mut experts = experts(fields, &EXPERTS)?;
    experts.normalized = fields.flag("norm_topk_prob")?.unwrap_or(false);
    let shared = fields.optional_size("shared_expert_intermediate_size")?;
    experts.shared = Some(shared.unwrap_or(5632));
    let sparse = sparse_blocks(fields, arch.blocks.len())?;
    set_experts(&mut arch, &experts, &sparse);
    Ok(arch)
}

/// Every other of the first `max_window_layers` blocks has the window, unless `layer_types` says which: other
/// blocks than those of Qwen2.
fn windows(fields: &Fields<'_>, arch: &mut ArchSpec) -> Result<()> {
    let by_type = layer_types(fields)?;
    if !fields.flag("use_sliding_window")?.unwrap_or(false) {
        // transformers 5 writes a window of 0 then
        fields.count("sliding_window")?;
        if by_type.is_some_and(|types| types.contains(&true)) {
            return Err(fields.wrong("layer_types", "full_attention, as use_sliding_window is false"));
        }
        return Ok(());
    }
    let first = fields.count("max_window_layers")?.unwrap_or(28);
    let early = || {
        (0..arch.blocks.len())
            .map(|block| block.is_multiple_of(2) && block < first)
            .collect()
    };
    let slides = by_type.unwrap_or_else(early);
    set_windows(arch, window(fields)?, &slides);
    Ok(())
}
