use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// SmolLM3: every fourth block rotates nothing. Its files do not say which blocks do; llama.cpp has the 4 in
/// its code.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "smollm3",
    interleaved: true,
    config,
    ..Architecture::PLAIN
};

/// Each block whose number, counted from 1, is a multiple of it, rotates nothing.
const STILL: usize = 4;

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    config.family("smollm3", "SmolLM3ForCausalLM");
    let rotates = (1..=file.blocks).map(|block| u8::from(!block.is_multiple_of(STILL)));
    config.set("no_rope_layers", json!(rotates.collect::<Vec<_>>()));
    config.set("no_rope_layer_interval", json!(STILL));
    config.set("use_sliding_window", json!(false));
    config.set("attention_bias", json!(file.has("blk.0.attn_q.bias")));
    config.set("mlp_bias", json!(file.has("blk.0.ffn_gate.bias")));
    Ok(())
}
