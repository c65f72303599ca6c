use aqlm_vocabulary::{FinetuneReport, LayerReport, Scheme};
use serde::{Deserialize, Serialize};

use crate::EndToEndReport;

/// Most inputs of a layer whose eigenvalues are computed for its rate-distortion limit: a few seconds on one
/// core. The work grows with the third power.
pub const LARGEST_SPECTRUM: usize = 2048;

/// One quantized layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// full name, as in `model.layers.0.self_attn.q_proj`
    pub name: String,
    /// layer error relative to tr(W H W^T), before fine-tuning, with codebooks and scales as f16 stores them
    pub relative_layer_error: f64,
    /// distance of that error from the rate-distortion limit at the layer's bits, in dB; `None` where H is too
    /// large for its eigenvalues ([`LARGEST_SPECTRUM`]), or the error is zero
    pub limit_db: Option<f64>,
    /// number of calibration tokens that an expert met, if fewer than the layer's inputs: its H was then
    /// completed with the mean of all experts of the block
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_tokens: Option<usize>,
    /// seconds it took
    pub seconds: f64,
    /// bits per parameter
    pub bits_per_parameter: f64,
    /// number of weights
    pub parameters: usize,
    /// the layer's full report
    pub report: LayerReport,
}

/// One quantized block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockReport {
    /// index of the block
    pub block: usize,
    /// its layers
    pub layers: Vec<LayerSummary>,
    /// how fine-tuning went; `None` when switched off
    pub finetune: Option<FinetuneReport>,
    /// squared error of the stored block's outputs over all calibration sequences, relative to the outputs'
    /// squares
    pub relative_output_error: f64,
    /// seconds it took
    pub seconds: f64,
}

/// A whole quantized model.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeReport {
    /// the scheme
    pub scheme: Scheme,
    /// over all quantized weights
    pub bits_per_parameter: f64,
    /// mean of the layers' distances from their limits, weighted by their numbers of weights; `None` unless
    /// every layer has one
    pub limit_db: Option<f64>,
    /// seconds of all blocks, including earlier attempts
    pub seconds: f64,
    /// every block
    pub blocks: Vec<BlockReport>,
    /// the largest absolute value of any hidden state between blocks, over the calibration sequences
    pub largest_hidden_state: f64,
}

/// Summary of one quantized layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizedLayer {
    /// full name, as in `model.layers.0.self_attn.q_proj`
    pub name: String,
    /// layer error relative to tr(W H W^T), before fine-tuning, with codebooks and scales as f16 stores them
    pub relative_layer_error: f64,
    /// distance from the rate-distortion limit in dB, as in [`LayerSummary`]
    pub limit_db: Option<f64>,
    /// codes, codebooks and scales
    pub bits_per_parameter: f64,
    /// seconds it took
    pub seconds: f64,
}

/// How a model was quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizeRecord {
    /// the scheme
    pub scheme: Scheme,
    /// over all quantized weights: codes, codebooks and scales
    pub bits_per_parameter: f64,
    /// mean of the layers' distances from their limits in dB, weighted by their numbers of weights
    pub limit_db: Option<f64>,
    /// seconds of all blocks, including earlier attempts
    pub seconds: f64,
    /// bytes of the dense model's tensors
    pub bytes_before: u64,
    /// bytes of the quantized model's tensors
    pub bytes_after: u64,
    /// a summary of every layer of every block
    pub layers: Vec<QuantizedLayer>,
    /// every block
    pub blocks: Vec<BlockReport>,
    /// report of the end-to-end step, if taken; the model before that step is in `block-tuned` inside `out`
    pub end_to_end: Option<EndToEndReport>,
    /// run folder and quantized model
    pub out: String,
}

impl QuantizeRecord {
    /// The record of a quantized model in the folder `out`.
    pub fn new(
        report: QuantizeReport,
        end_to_end: Option<EndToEndReport>,
        [bytes_before, bytes_after]: [u64; 2],
        out: String,
    ) -> Self {
        let layers = report.blocks.iter().flat_map(|block| &block.layers);
        let layers = layers.map(|layer| QuantizedLayer {
            name: layer.name.clone(),
            relative_layer_error: layer.relative_layer_error,
            limit_db: layer.limit_db,
            bits_per_parameter: layer.bits_per_parameter,
            seconds: layer.seconds,
        });
        Self {
            scheme: report.scheme,
            bits_per_parameter: report.bits_per_parameter,
            limit_db: report.limit_db,
            seconds: report.seconds,
            bytes_before,
            bytes_after,
            layers: layers.collect(),
            blocks: report.blocks,
            end_to_end,
            out,
        }
    }
}
