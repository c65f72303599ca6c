use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// Granite: factors of embeddings, scores, additions to the residual stream, and logits. An absent factor is
/// 1, but that of scores is the usual one, 1 / sqrt(width of a head).
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "granite",
    reads: &[
        "attention.scale",
        "embedding_scale",
        "logit_scale",
        "residual_scale",
        "rope.scaling.finetuned",
    ],
    interleaved: true,
    config,
    ..Architecture::PLAIN
};

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    let fields = file.fields;
    config.family("granite", "GraniteForCausalLM");
    let field = "rope.scaling.finetuned";
    if fields.flag(field)? == Some(false) {
        let expected = "true; false stands for a Granite without rotation";
        return Err(fields.unsupported(field, expected, "false".into()));
    }
    let usual = 1.0 / (file.head_dim as f64).sqrt();
    for (field, key, absent) in [
        ("attention.scale", "attention_multiplier", usual),
        ("embedding_scale", "embedding_multiplier", 1.0),
        ("logit_scale", "logits_scaling", 1.0),
        ("residual_scale", "residual_multiplier", 1.0),
    ] {
        config.set(key, json!(fields.factor(field)?.unwrap_or(absent)));
    }
    config.set("attention_bias", json!(file.has("blk.0.attn_q.bias")));
    config.set("mlp_bias", json!(file.has("blk.0.ffn_gate.bias")));
    Ok(())
}
