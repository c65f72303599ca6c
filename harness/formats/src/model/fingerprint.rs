use aqlm_vocabulary::ArchSpec;
use sha2::{Digest, Sha256};

use super::Model;
use crate::Result;
use crate::durable;

impl Model {
    /// SHA-256 over the configuration and every tensor's name, shape, type and values. Two runs are the same
    /// only if it is equal; names and sharding of files do not matter.
    ///
    /// # Errors
    /// Unreadable tensors.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(description(self.config()));
        for (name, info) in self.listed() {
            hash.update(format!("{name} {:?} {}\n", info.shape, info.dtype));
            // Codes are integers, everything else is a floating-point type.
            if name.strip_suffix(".codes").is_some() {
                for value in self.tensors.read_integers(&name)? {
                    hash.update(value.to_le_bytes());
                }
            } else {
                hash.update(bytemuck::cast_slice::<f32, u8>(&self.tensors.read_floats(&name)?));
            }
        }
        Ok(durable::hexadecimal(&hash.finalize()))
    }
}

fn description(arch: &ArchSpec) -> Vec<u8> {
    serde_json::to_vec(arch).expect("numbers and words are JSON")
}
