use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use super::gemma::set_shared;
use crate::Result;

/// Gemma 2: norms before and behind attention and MLP, caps, a window in every other block.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma2",
    reads: &[
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ],
    parts: &AROUND,
    one_plus: true,
    config,
    ..Architecture::PLAIN
};

/// Norms before and behind attention and MLP, as far as a plain Llama's name means another norm.
pub(super) const AROUND: [(&str, &str); 2] = [
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
];

/// Number of blocks of the model of 27B, whose scores have a factor of their own.
const BLOCKS_OF_27B: usize = 46;

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    let fields = file.fields;
    config.family("gemma2", "Gemma2ForCausalLM");
    set_shared(file, config);
    // the defaults are llama.cpp's, which are those of the published models
    for (field, key, usual) in [
        ("attn_logit_softcapping", "attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", "final_logit_softcapping", 30.0),
    ] {
        let cap = fields.number(field)?.unwrap_or(usual);
        if cap <= 0.0 {
            return Err(fields.wrong(field, "a positive number"));
        }
        config.set(key, json!(cap));
    }
    let window = fields.optional_size("attention.sliding_window")?;
    config.set("sliding_window", json!(window.unwrap_or(4096)));
    config.layer_types(&file.windows(2)?);
    config.set("query_pre_attn_scalar", json!(score_scalar(file, BLOCKS_OF_27B)));
    Ok(())
}

/// The number whose reciprocal root multiplies scores. No field has it: llama.cpp takes the width of a head,
/// but for the largest model, which it knows by its number of blocks.
pub(super) fn score_scalar(file: &File<'_>, blocks_of_largest: usize) -> usize {
    if file.blocks == blocks_of_largest {
        file.hidden / file.heads
    } else {
        file.head_dim
    }
}
