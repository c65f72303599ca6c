use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::{Architecture, Experts};
use crate::Result;

/// Llama; Mistral, which is a Llama with a window; Mixtral, which is one with experts.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    reads: &["attention.sliding_window", "expert_count", "expert_used_count"],
    experts: Experts {
        router: "block_sparse_moe.gate",
        module: "block_sparse_moe.experts",
        layers: ["w1", "w3", "w2"],
    },
    interleaved: true,
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    let fields = file.fields;
    let window = fields.optional_size("attention.sliding_window")?;
    if let Some(window) = window {
        config.set("sliding_window", json!(window));
    }
    if let Some(count) = fields.size_or_none("expert_count")? {
        config.family("mixtral", "MixtralForCausalLM");
        config.set("num_local_experts", json!(count));
        config.set("num_experts_per_tok", json!(fields.size("expert_used_count")?));
        return Ok(());
    }
    if window.is_some() {
        config.family("mistral", "MistralForCausalLM");
    } else {
        config.family("llama", "LlamaForCausalLM");
        config.set("attention_bias", json!(file.has("blk.0.attn_q.bias")));
        config.set("mlp_bias", json!(file.has("blk.0.ffn_gate.bias")));
    }
    Ok(())
}
