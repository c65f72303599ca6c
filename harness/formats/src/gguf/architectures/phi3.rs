use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// Phi-3 and Phi-4: one layer for q, k and v, one for gate and up, LongRoPE, partial rotation. A window of 0
/// is none. llama.cpp leaves the window out; here it counts, as in transformers.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "phi3",
    reads: &["attention.sliding_window"],
    parts: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
    partial: true,
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    let fields = file.fields;
    config.family("phi3", "Phi3ForCausalLM");
    let window = fields.size_or_none("attention.sliding_window")?;
    config.set("sliding_window", json!(window));
    config.set("partial_rotary_factor", json!(file.rotated_part()?));
    let original = fields.optional_size("rope.scaling.original_context_length")?;
    if let Some(original) = original {
        config.set("original_max_position_embeddings", json!(original));
    }
    Ok(())
}
