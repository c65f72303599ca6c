use aqlm_vocabulary::{ArchSpec, Rope};
use serde::{Deserialize, Serialize};

use super::{QuantizeRecord, QuantizedLayer};

use aqlm_formats::model::{LayerEntry, Model, TensorEntry};

/// Contents of a model's files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InspectRecord {
    /// the model, as named on the command line
    pub model: String,
    /// its family, for example `llama`
    pub family: String,
    /// its shape
    pub config: Shape,
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
    /// errors of the layers, from the record that `quantize` left in the model's folder; `None` without one
    pub quantization: Option<LayerErrors>,
}

/// Errors of a model's layers, as `quantize` measured them before fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerErrors {
    /// mean of the layers' distances from their rate-distortion limits in dB, weighted by their numbers of
    /// weights; `None` unless every layer has one
    pub limit_db: Option<f64>,
    /// every layer of every block
    pub layers: Vec<QuantizedLayer>,
}

impl From<QuantizeRecord> for LayerErrors {
    fn from(record: QuantizeRecord) -> Self {
        Self {
            limit_db: record.limit_db,
            layers: record.layers,
        }
    }
}

impl InspectRecord {
    /// The contents of `model`, from its files' headers only; `name` is its name on the command line.
    pub fn new(name: String, model: &Model, quantization: Option<LayerErrors>) -> Self {
        let inventory = model.inventory();
        Self {
            model: name,
            family: model.details().family.name.to_owned(),
            config: model.config().into(),
            tensors: inventory.tensors,
            layers: inventory.layers,
            parameters: inventory.parameters,
            bytes: inventory.bytes,
            quantized_parameters: inventory.quantized_parameters,
            quantized_bits_per_parameter: inventory.quantized_bits_per_parameter,
            quantization,
        }
    }
}

/// The dimensions of a model, under their names in config.json; block dimensions are those of the first
/// block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// tokens in the vocabulary
    pub vocab_size: usize,
    /// width of the residual stream
    pub hidden_size: usize,
    /// width inside the MLP
    pub intermediate_size: usize,
    /// number of blocks
    pub num_hidden_layers: usize,
    /// query heads
    pub num_attention_heads: usize,
    /// key and value heads
    pub num_key_value_heads: usize,
    /// width of one head
    pub head_dim: usize,
    /// epsilon inside the root of RMSNorm
    pub rms_norm_eps: f64,
    /// rotary position embedding of the first block; `None` without one
    pub rope: Option<Rope>,
    /// number of positions that a position of the first block attends to, itself included; `None` for all
    /// earlier ones
    pub sliding_window: Option<usize>,
    /// whether the head shares the embedding's weights
    pub tie_word_embeddings: bool,
    /// longest context of the model's training
    pub max_position_embeddings: usize,
}

impl From<&ArchSpec> for Shape {
    fn from(arch: &ArchSpec) -> Self {
        let attention = arch.attention();
        Self {
            vocab_size: arch.vocab_size,
            hidden_size: arch.hidden_size,
            intermediate_size: arch.blocks[0].intermediate_size(),
            num_hidden_layers: arch.blocks.len(),
            num_attention_heads: attention.heads,
            num_key_value_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            rms_norm_eps: arch.final_norm.epsilon,
            rope: attention.rotary.clone(),
            sliding_window: attention.window,
            tie_word_embeddings: arch.tied,
            max_position_embeddings: arch.max_position_embeddings,
        }
    }
}
