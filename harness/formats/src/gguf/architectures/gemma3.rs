use serde_json::{Value, json};

use super::super::file::{Config, File};
use super::architecture::Architecture;
use super::gemma::set_shared;
use super::gemma2::{AROUND, score_scalar};
use crate::Result;

/// Gemma 3, text only: as Gemma 2 without capped scores, with norms of each head's queries and keys, and with
/// another rotation in the blocks that have a window.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma3",
    reads: &[
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "final_logit_softcapping",
        "rope.freq_base_swa",
    ],
    parts: &AROUND,
    one_plus: true,
    config,
    ..Architecture::PLAIN
};

/// Number of blocks of the model of 27B, whose scores have a factor of their own.
const BLOCKS_OF_27B: usize = 62;

fn config(file: &File<'_>, config: &mut Config) -> Result<()> {
    let fields = file.fields;
    config.family("gemma3_text", "Gemma3ForCausalLM");
    set_shared(file, config);
    let cap = fields.factor("final_logit_softcapping")?;
    config.set(
        "final_logit_softcapping",
        cap.map_or(Value::Null, |cap| json!(cap)),
    );
    let local = fields.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    config.set("rope_local_base_freq", json!(local));
    let window = fields.size_or_none("attention.sliding_window")?;
    if let Some(window) = window {
        config.set("sliding_window", json!(window));
        config.layer_types(&file.windows(6)?);
    } else {
        config.layer_types(&vec![false; file.blocks]);
    }
    config.set("query_pre_attn_scalar", json!(score_scalar(file, BLOCKS_OF_27B)));
    Ok(())
}
