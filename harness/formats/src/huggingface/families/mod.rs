//! One file per model family. To add a family whose parts exist: a file here and an entry in `FAMILIES`.

mod family;
mod gemma;
mod gemma2;
mod gemma3;
mod glm;
mod glm4;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod smollm3;
mod stablelm;

use super::fields::Fields;
use crate::Result;

pub use family::Family;

/// All families that can be read.
const FAMILIES: [&Family; 17] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &olmo2::FAMILY,
    &granite::FAMILY,
    &smollm3::FAMILY,
    &stablelm::FAMILY,
    &glm::FAMILY,
    &glm4::FAMILY,
    &mixtral::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
];

/// Families that are known but cannot be read yet, each with what it needs that is missing.
const LACKING: [(&str, &str); 4] = [
    ("cohere", "attention and MLP side by side behind one norm"),
    ("cohere2", "attention and MLP side by side behind one norm"),
    ("gemma3", "a vision tower; the text model alone is gemma3_text"),
    ("olmo", "norms without weights"),
];

impl Family {
    /// The family of a config.json.
    ///
    /// # Errors
    /// `Field` without a `model_type`, `Unsupported` when this list does not have the family.
    pub(super) fn of(fields: &Fields<'_>) -> Result<&'static Self> {
        let name = fields.required_str("model_type")?;
        // checkpoints of AQLM's first months, whose own code added the ending
        let name = name.strip_suffix("_aqlm").unwrap_or(name);
        let known = FAMILIES.into_iter().find(|family| family.name == name);
        known.ok_or_else(|| {
            let [others @ .., last] = FAMILIES.map(|family| family.name);
            let expected = format!("{} or {last}", others.join(", "));
            let lacking = LACKING.iter().find(|(family, _)| *family == name);
            let why = lacking.map_or(String::new(), |(_, parts)| format!(", which needs {parts}"));
            fields.unsupported("model_type", &expected, format!("{name:?}{why}"))
        })
    }
}

#[cfg(test)]
mod tests;
