use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// Qwen3: norms of each head's queries and keys. llama.cpp gives it no window.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3",
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    config.family("qwen3", "Qwen3ForCausalLM");
    config.set("use_sliding_window", json!(false));
    config.set("attention_bias", json!(file.has("blk.0.attn_q.bias")));
    Ok(())
}
