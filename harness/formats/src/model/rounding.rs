use aqlm_vocabulary::{BlockWeights, LinearWeight};
use ndarray::Array1;

use super::{Model, StorageType};
use crate::{Error, Result};

impl Model {
    /// A block with every number rounded as in a checkpoint of this model: codebooks and scales to f16, norms
    /// to the type of their own tensors. Computing with this block gives what a reader of the checkpoint
    /// computes.
    ///
    /// # Errors
    /// `Layer` when a codebook or a scale is beyond the range of f16.
    pub fn rounded_for_storage(&self, block: usize, mut weights: BlockWeights) -> Result<BlockWeights> {
        let config = self.config();
        for layer in config.blocks[block].layers() {
            if let LinearWeight::Quantized(matrix) = &mut weights.layer_mut(layer).weight {
                *matrix = matrix.rounded_to_f16().map_err(|source| Error::Layer {
                    layer: config.layer_name(block, layer),
                    source,
                })?;
            }
        }
        for (name, norm) in config.norm_names(block).iter().zip(&mut weights.norms) {
            *norm = self.storage_of(name).round(norm);
        }
        Ok(weights)
    }
}

impl StorageType {
    /// The values rounded to this type.
    fn round(self, values: &Array1<f32>) -> Array1<f32> {
        match self {
            Self::F16 => values.mapv(|value| half::f16::from_f32(value).to_f32()),
            Self::BF16 => values.mapv(|value| half::bf16::from_f32(value).to_f32()),
            Self::F32 => values.clone(),
        }
    }
}
