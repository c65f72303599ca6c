use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// OLMo 2: norms behind attention and MLP only, and norms over all queries and over all keys. OLMo 3, which
/// has a window under the same name, is refused.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "olmo2",
    parts: &[("post_attention_norm", "post_attention_layernorm")],
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    config.family("olmo2", "Olmo2ForCausalLM");
    config.set("attention_bias", json!(file.has("blk.0.attn_q.bias")));
    Ok(())
}
