use serde_json::json;

use super::super::file::{Config, File};
use super::architecture::Architecture;
use crate::Result;

/// Qwen2 and Qwen2.5: biases of q, k and v. llama.cpp gives them no window.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    config,
    ..Architecture::PLAIN
};

fn config(_: &File<'_>, config: &mut Config) -> Result<()> {
    config.family("qwen2", "Qwen2ForCausalLM");
    config.set("use_sliding_window", json!(false));
    Ok(())
}
