use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use super::super::llama_block::{Defaults, plain};
use super::super::windows::layer_types;
use super::family::Family;
use crate::Result;

/// Llama 1, 2, 3 and the many models that share their code.
pub(super) const FAMILY: Family = Family {
    name: "llama",
    architecture: "LlamaForCausalLM",
    reads: &["attention_bias", "mlp_bias", "sliding_window", "layer_types"],
    arch,
};

fn arch(fields: &Fields<'_>) -> Result<ArchSpec> {
    if let Some(window) = fields.optional_size("sliding_window")? {
        let expected = "nothing for model_type llama";
        return Err(fields.unsupported("sliding_window", expected, window.to_string()));
    }
    if layer_types(fields)?.is_some_and(|types| types.contains(&true)) {
        return Err(fields.wrong("layer_types", "full_attention for model_type llama"));
    }
    plain(fields, &Defaults::LLAMA)
}
