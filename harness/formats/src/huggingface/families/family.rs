use std::fmt;

use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use crate::Result;

/// A model family: the names by which transformers knows it, and what its config.json means.
pub struct Family {
    /// `model_type` in config.json
    pub name: &'static str,
    /// the class that transformers builds for it
    pub architecture: &'static str,
    /// the model that a config.json describes, or what of it is refused
    pub(in crate::huggingface) arch: fn(&Fields<'_>) -> Result<ArchSpec>,
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
