use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// StableLM: LayerNorms, and of each head only a part rotated. Its flag for attention and MLP side by side is
/// not read, as in llama.cpp: such a block is one without a norm before its MLP.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "stablelm",
    reads: &["attention.layer_norm_epsilon", "use_parallel_residual"],
    epsilon: ("attention.layer_norm_epsilon", "layer_norm_eps"),
    partial: true,
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    let fields = file.fields;
    config.family("stablelm", "StableLmForCausalLM");
    if !file.has("blk.0.ffn_norm.weight") {
        let expected = "a norm before the MLP: attention and MLP side by side are not built";
        return Err(fields.unsupported("use_parallel_residual", expected, "no blk.0.ffn_norm".into()));
    }
    config.set("partial_rotary_factor", json!(file.rotated_part()?));
    config.set("use_qkv_bias", json!(file.has("blk.0.attn_q.bias")));
    Ok(())
}
