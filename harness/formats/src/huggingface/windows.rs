//! Which blocks have a sliding window.

use aqlm_vocabulary::ArchSpec;

use super::fields::Fields;
use crate::Result;

/// `sliding_window` for families with a default of 4096 in transformers.
pub(super) fn window(fields: &Fields<'_>) -> Result<Option<usize>> {
    if fields.map.contains_key("sliding_window") {
        fields.optional_size("sliding_window")
    } else {
        Ok(Some(4096))
    }
}

/// For each block, whether `layer_types` gives it the window; `None` without that key.
pub(super) fn layer_types(fields: &Fields<'_>) -> Result<Option<Vec<bool>>> {
    let Some(value) = fields.get("layer_types") else {
        return Ok(None);
    };
    let blocks = fields.size("num_hidden_layers")?;
    let expected = || {
        let names = "full_attention or sliding_attention";
        fields.wrong("layer_types", format!("a list of {blocks} names, each {names}"))
    };
    let list = value.as_array().filter(|list| list.len() == blocks);
    let types = list.ok_or_else(expected)?.iter().map(|name| match name.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(expected()),
    });
    Ok(Some(types.collect::<Result<_>>()?))
}

/// Gives the window to the blocks for which `slides` says so.
pub(super) fn set_windows(arch: &mut ArchSpec, window: Option<usize>, slides: &[bool]) {
    for (block, &slides) in arch.blocks.iter_mut().zip(slides) {
        block.attention.window = window.filter(|_| slides);
    }
}

/// The windows of Qwen2 and Qwen3: `use_sliding_window` switches them on, and `layer_types` or
/// `max_window_layers` says for which blocks.
pub(super) fn switched_windows(fields: &Fields<'_>, arch: &mut ArchSpec) -> Result<()> {
    let (window, by_type) = (window(fields)?, layer_types(fields)?);
    if !fields.flag("use_sliding_window")?.unwrap_or(false) {
        if by_type.is_some_and(|types| types.contains(&true)) {
            return Err(fields.wrong("layer_types", "full_attention, as use_sliding_window is false"));
        }
        return Ok(());
    }
    // in transformers, blocks from max_window_layers on use the window; the default is 28
    let first = fields.count("max_window_layers")?.unwrap_or(28);
    let late = || (0..arch.blocks.len()).map(|block| block >= first).collect();
    let slides = by_type.unwrap_or_else(late);
    set_windows(arch, window, &slides);
    Ok(())
}
