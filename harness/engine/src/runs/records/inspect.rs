use aqlm_vocabulary::LlamaConfig;
use serde::{Deserialize, Serialize};

use aqlm_formats::model::{LayerEntry, TensorEntry};

/// What a model's files hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InspectRecord {
    /// the model, as it was named
    pub model: String,
    /// its family, for example `llama`
    pub family: String,
    /// its shape
    pub config: LlamaConfig,
    /// all tensors, by name
    pub tensors: Vec<TensorEntry>,
    /// all linear layers of all blocks, in order
    pub layers: Vec<LayerEntry>,
    /// parameters of the model; a tied head counts once
    pub parameters: u64,
    /// bytes of all tensors
    pub bytes: u64,
    /// parameters in AQLM-quantized layers
    pub quantized_parameters: u64,
    /// average bits per parameter over the AQLM-quantized layers (codes, codebooks, scales); `None` without
    /// any
    pub quantized_bits_per_parameter: Option<f64>,
}
