use aqlm_vocabulary::{ArchSpec, Input};

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, layer_types, plain, window};
use super::family::Family;
use crate::Result;

/// Llama with biases on q, k and v, and an optional sliding window.
pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    architecture: "Qwen2ForCausalLM",
    reads: &[
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
    ],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(32),
        max_position_embeddings: 32_768,
        bias_flags: false,
    };
    plain(fields, &defaults, used_window(fields)?, &[Input::Attention])
}

/// The sliding window that every block uses, or none.
fn used_window(fields: &Fields<'_>) -> Result<Option<usize>> {
    let (window, by_type) = (window(fields)?, layer_types(fields)?);
    if !fields.flag("use_sliding_window")?.unwrap_or(false) {
        if by_type == Some(true) {
            return Err(fields.wrong("layer_types", "full_attention, as use_sliding_window is false"));
        }
        return Ok(None);
    }
    if let Some(all) = by_type {
        return Ok(window.filter(|_| all));
    }
    // in transformers, blocks from max_window_layers on use the window; the default is 28
    let first = fields.count("max_window_layers")?.unwrap_or(28);
    let blocks = fields.size("num_hidden_layers")?;
    if first >= blocks {
        Ok(None)
    } else if first == 0 {
        Ok(window)
    } else {
        Err(fields.unsupported(
            "max_window_layers",
            &format!("0 or at least {blocks}: one window for all blocks"),
            first.to_string(),
        ))
    }
}
