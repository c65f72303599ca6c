use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// GLM-4 of 2025: neighbours rotated together, which needs no reordering of rows; one layer for gate and up;
/// norms behind attention and MLP, too.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "glm4",
    parts: &[
        ("post_attention_norm", "post_self_attn_layernorm"),
        ("post_ffw_norm", "post_mlp_layernorm"),
        ("ffn_up", "mlp.gate_up_proj"),
    ],
    partial: true,
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    config.family("glm4", "Glm4ForCausalLM");
    config.set("partial_rotary_factor", json!(file.rotated_part()?));
    config.set("attention_bias", json!(file.has("blk.0.attn_q.bias")));
    Ok(())
}
