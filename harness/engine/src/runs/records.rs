//! What runs report, as types that are written to run folders and to standard output, and read back.

use aqlm_vocabulary::{FinetuneReport, LayerReport, Scheme};
use serde::{Deserialize, Serialize};

/// One quantized layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// full name, as in `model.layers.0.self_attn.q_proj`
    pub name: String,
    /// layer error relative to tr(W H W^T), before fine-tuning
    pub relative_layer_error: f64,
    /// seconds it took
    pub seconds: f64,
    /// bits per parameter
    pub bits_per_parameter: f64,
    /// weights in it
    pub parameters: usize,
    /// the rest
    pub report: LayerReport,
}

/// One quantized block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockReport {
    /// index of the block
    pub block: usize,
    /// its layers
    pub layers: Vec<LayerSummary>,
    /// how fine-tuning went; `None` when it is switched off
    pub finetune: Option<FinetuneReport>,
    /// squared error of the stored block's outputs over all calibration sequences, relative to the outputs'
    /// squares
    pub relative_output_error: f64,
    /// seconds it took
    pub seconds: f64,
}

/// A whole quantized model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizeReport {
    /// the scheme
    pub scheme: Scheme,
    /// over all quantized weights
    pub bits_per_parameter: f64,
    /// seconds of all blocks, those of an earlier attempt included
    pub seconds: f64,
    /// every block
    pub blocks: Vec<BlockReport>,
}
