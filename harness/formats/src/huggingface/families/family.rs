use std::fmt;

use aqlm_vocabulary::ArchSpec;

use super::super::fields::Fields;
use crate::Result;

/// A model family: its names in transformers, and how its config.json is interpreted.
pub struct Family {
    /// `model_type` in config.json
    pub name: &'static str,
    /// the class that transformers builds for the family
    pub architecture: &'static str,
    /// keys of config.json that this family reads and others do not
    pub(in crate::huggingface) reads: &'static [&'static str],
    /// builds the model described by a config.json, or rejects it
    pub(in crate::huggingface) arch: fn(&Fields<'_>) -> Result<ArchSpec>,
}

impl Family {
    /// Whether config.json has one rotation for each type of layer.
    pub(in crate::huggingface) fn rotates_by_type(&self) -> bool {
        self.reads.contains(&"rope_local_base_freq")
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
