//! One file per model family. To add a family with a Llama block: a file here and an entry in `FAMILIES`.

mod family;
mod llama;
mod mistral;
mod qwen2;

use super::fields::Fields;
use crate::Result;

pub use family::Family;

/// All families that can be read.
const FAMILIES: [&Family; 3] = [&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY];

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
            fields.unsupported("model_type", &expected, format!("{name:?}"))
        })
    }
}
