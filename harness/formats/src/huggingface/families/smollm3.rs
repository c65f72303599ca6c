use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::rope::Rotation;
use super::super::windows::{layer_types, set_windows};
use super::family::Family;
use crate::Result;

/// Llama in which some blocks rotate nothing, with an optional sliding window in these.
pub(super) const FAMILY: Family = Family {
    name: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    reads: &[
        "attention_bias",
        "mlp_bias",
        "no_rope_layers",
        "no_rope_layer_interval",
        "sliding_window",
        "use_sliding_window",
        "layer_types",
    ],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    let defaults = Defaults {
        kv_heads: Some(4),
        max_position_embeddings: 32_768,
        tied: true,
        rotation: Rotation {
            theta: 2e6,
            ..Rotation::PLAIN
        },
        ..Defaults::LLAMA
    };
    let mut arch = plain(fields, &defaults)?;
    let rotates = rotating(fields, arch.blocks.len())?;
    for (block, &rotates) in arch.blocks.iter_mut().zip(&rotates) {
        if !rotates {
            block.attention.rotary = None;
        }
    }
    let used = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = fields.optional_size("sliding_window")?.filter(|_| used);
    let by_default = || rotates.iter().map(|rotates| !rotates).collect();
    let by_type = layer_types(fields)?;
    if window.is_none() && by_type.as_ref().is_some_and(|types| types.contains(&true)) {
        let expected = "full_attention, as use_sliding_window is false or sliding_window absent";
        return Err(fields.wrong("layer_types", expected));
    }
    set_windows(&mut arch, window, &by_type.unwrap_or_else(by_default));
    Ok(arch)
}

/// For each block, whether it rotates: `no_rope_layers` has a 1 for those that do. Without it, each
/// `no_rope_layer_interval`-th does not.
fn rotating(fields: &Fields<'_>, blocks: usize) -> Result<Vec<bool>> {
    let Some(value) = fields.get("no_rope_layers") else {
        let interval = fields.optional_size("no_rope_layer_interval")?.unwrap_or(4);
        return Ok((1..=blocks)
            .map(|block| !block.is_multiple_of(interval))
            .collect());
    };
    let list: Option<Vec<bool>> = value.as_array().and_then(|list| {
        let flags = list.iter().take(blocks).map(|flag| match flag.as_u64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        });
        flags.collect()
    });
    list.filter(|list| list.len() == blocks).ok_or_else(|| {
        fields.wrong(
            "no_rope_layers",
            format!("a list of {blocks} numbers, each 0 or 1"),
        )
    })
}
