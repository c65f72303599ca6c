use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// Gemma 1: GeGLU, scaled embeddings, norms whose weights have a 1 added.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma",
    one_plus: true,
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    config.family("gemma", "GemmaForCausalLM");
    set_shared(file, config);
    Ok(())
}

/// What all Gemmas share.
pub(super) fn set_shared(file: &File<'_>, config: &mut Config) {
    config.set("hidden_act", json!("gelu_pytorch_tanh"));
    config.set("hidden_activation", json!("gelu_pytorch_tanh"));
    config.set("attention_bias", json!(file.has("blk.0.attn_q.bias")));
}
