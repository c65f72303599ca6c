use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use super::qwen2moe::set_experts;
use crate::Result;

/// Qwen3 with experts in all blocks. The weights of a token's experts add up to 1.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3moe",
    reads: &["expert_count", "expert_used_count", "expert_feed_forward_length"],
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    config.family("qwen3_moe", "Qwen3MoeForCausalLM");
    set_experts(file, config)?;
    config.set("norm_topk_prob", json!(true));
    config.set("attention_bias", json!(file.has("blk.0.attn_q.bias")));
    Ok(())
}
