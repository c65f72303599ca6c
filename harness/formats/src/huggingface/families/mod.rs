//! One file a model family. A family whose block is a Llama block is a file here and its place in
//! `FAMILIES`.

mod llama;
mod mistral;
mod qwen2;

use std::fmt;

use aqlm_vocabulary::ArchSpec;

use super::fields::Fields;
use crate::Result;

/// All families that can be read.
const FAMILIES: [&Family; 3] = [&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY];

/// A model family: the names by which transformers knows it, and what its config.json means.
pub struct Family {
    /// `model_type` in config.json
    pub name: &'static str,
    /// the class that transformers builds for it
    pub architecture: &'static str,
    /// the model that a config.json describes, or what of it is refused
    pub(super) arch: fn(&Fields<'_>) -> Result<ArchSpec>,
}

impl Family {
    /// The family of a config.json.
    ///
    /// # Errors
    /// `Field` without a `model_type`, `Unsupported` when it is no family of this list.
    pub(super) fn of(fields: &Fields<'_>) -> Result<&'static Self> {
        let name = fields.required_str("model_type")?;
        let known = FAMILIES.into_iter().find(|family| family.name == name);
        known.ok_or_else(|| {
            let [others @ .., last] = FAMILIES.map(|family| family.name);
            let expected = format!("{} or {last}", others.join(", "));
            fields.unsupported("model_type", &expected, format!("{name:?}"))
        })
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
