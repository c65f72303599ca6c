use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// Qwen2 with experts and one that every token passes, in all blocks.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2moe",
    reads: &[
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
    ],
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    config.family("qwen2_moe", "Qwen2MoeForCausalLM");
    set_experts(file, config)?;
    config.set("norm_topk_prob", json!(false));
    let fields = file.fields;
    let shared = fields.size_or_none("expert_shared_feed_forward_length")?;
    let shared = shared.map_or_else(|| fields.size("feed_forward_length"), Ok)?;
    config.set("shared_expert_intermediate_size", json!(shared));
    config.set("qkv_bias", json!(file.has("blk.0.attn_q.bias")));
    Ok(())
}

/// What Qwen's mixtures share: experts in all blocks, and no window.
pub(super) fn set_experts(file: &File<'_>, config: &mut Config) -> Result<()> {
    let fields = file.fields;
    let used = fields.size("expert_used_count")?;
    config.set("num_experts", json!(fields.size("expert_count")?));
    config.set("num_experts_per_tok", json!(used));
    let width = fields.size_or_none("expert_feed_forward_length")?;
    let width = match width {
        Some(width) => width,
        None => fields.size("feed_forward_length")? / used,
    };
    config.set("moe_intermediate_size", json!(width));
    config.set("decoder_sparse_step", json!(1));
    config.set("mlp_only_layers", json!([]));
    config.set("use_sliding_window", json!(false));
    Ok(())
}
