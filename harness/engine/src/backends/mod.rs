//! One trait over the machines that can do the work, so that the pipeline and the evaluation are written
//! once.
//!
//! Hidden states stay where a backend computes them, in its associated type; what crosses to the host is
//! visible in the signatures: token ids and block parameters on the way in, quantized layers, losses and
//! logits on the way out.

mod cpu;
pub mod cuda;
mod hidden_states;
mod memory;
mod reference;
mod tuning;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use aqlm_vocabulary::{
    ArchSpec, BlockWeights, FinetuneEvent, FinetuneReport, FinetuneSettings, LayerEvent, LayerId,
    LayerReport, LayerSettings, QuantizedMatrix, StreamKey,
};
use clap::ValueEnum;
use ndarray::{Array1, Array2};
use serde::{Deserialize, Serialize};

pub use cpu::CpuBackend;
pub use hidden_states::HiddenStates;
pub use memory::Memory;
pub use reference::ReferenceBackend;
pub use tuning::ModelTuning;

use aqlm_formats::Result;

/// The machines that can run the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// f64 on ndarray: slow, readable, the ground truth
    Reference,
    /// f32 on all cores, with the vector instructions at hand
    Cpu,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference => f.write_str("reference"),
            Self::Cpu => f.write_str("cpu"),
        }
    }
}

/// The machines that can run a finished model: evaluation and generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ModelBackend {
    /// f64 on ndarray: slow, readable, the ground truth
    Reference,
    /// f32 on all cores, with the vector instructions at hand
    Cpu,
    /// the first NVIDIA GPU: products in f16, the rest in f32
    Cuda,
}

impl ModelBackend {
    /// The backend of all operations that this is, or `None` for a GPU.
    pub fn host(self) -> Option<BackendKind> {
        match self {
            Self::Reference => Some(BackendKind::Reference),
            Self::Cpu => Some(BackendKind::Cpu),
            Self::Cuda => None,
        }
    }
}

impl From<BackendKind> for ModelBackend {
    fn from(kind: BackendKind) -> Self {
        match kind {
            BackendKind::Reference => Self::Reference,
            BackendKind::Cpu => Self::Cpu,
        }
    }
}

/// Runs `$body` with `$backend` bound to the backend of a [`BackendKind`], made for a configuration and a
/// longest sequence; returns early with what that backend refuses of the configuration. A macro, because the
/// trait's associated types keep it from being an object.
#[macro_export]
macro_rules! with_backend {
    ($kind:expr, $config:expr, $positions:expr, |$backend:ident| $body:expr) => {
        match $kind {
            $crate::backends::BackendKind::Reference => {
                let $backend = $crate::backends::ReferenceBackend::new($config, $positions)?;
                $body
            }
            $crate::backends::BackendKind::Cpu => {
                let $backend = $crate::backends::CpuBackend::new($config, $positions)?;
                $body
            }
        }
    };
}

/// What the pipeline, the evaluation and the generator need of a machine (design.md 4).
///
/// An instance belongs to one model configuration and one longest sequence. Methods fail on what does not fit
/// those two (shapes, token ids), on numbers that are not finite, and when a device runs out of memory.
#[allow(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait Backend {
    /// hidden states of several sequences of equal length, each [tokens, hidden]
    type Hidden;
    /// one block's parameters, resident
    type Block;
    /// one layer's Hessian, [in_features, in_features]
    type Hessian;
    /// final norm and lm_head, resident
    type Head;
    /// keys and values of one block for the tokens seen so far
    type Cache;

    /// Which backend this is.
    fn kind(&self) -> BackendKind;

    /// The device in words, for `run.json`.
    fn device(&self) -> String;

    /// The model shape that this instance was made for.
    fn config(&self) -> &ArchSpec;

    /// Bounds the memory of the activations that it computes from now on, hidden states of `sequences`
    /// sequences at most: what is beyond the bound lies in a file in the folder `spill`. No result depends on
    /// it.
    fn bound_memory(&mut self, memory: Memory, spill: &Path, sequences: usize) -> Result<()>;

    /// Embeds token sequences of equal length; `embedding` is [vocab, hidden].
    fn embed(&self, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<Self::Hidden>;

    /// Makes the block of this index resident.
    fn load_block(&self, index: usize, weights: &BlockWeights) -> Result<Self::Block>;

    /// Copies a block's parameters back to the host, at the backend's own precision.
    fn store_block(&self, block: &Self::Block) -> Result<BlockWeights>;

    /// The block's output for every sequence.
    fn block_forward(&self, block: &Self::Block, hidden: &Self::Hidden) -> Result<Self::Hidden>;

    /// Hessians of the inputs of `layers`, over the given sequences only, all from one pass through the
    /// block.
    fn hessians(
        &self,
        block: &Self::Block,
        hidden: &Self::Hidden,
        sequences: Range<usize>,
        layers: &[LayerId],
    ) -> Result<Vec<Self::Hessian>>;

    /// Quantizes one dense layer of the block against its Hessian.
    fn layer_quantize(
        &self,
        block: &Self::Block,
        layer: LayerId,
        hessian: &Self::Hessian,
        settings: &LayerSettings,
        key: StreamKey,
        observe: &mut dyn FnMut(LayerEvent),
    ) -> Result<(QuantizedMatrix, LayerReport)>;

    /// Replaces a layer of the block by its quantized form.
    fn set_layer(&self, block: &mut Self::Block, layer: LayerId, matrix: QuantizedMatrix) -> Result<()>;

    /// Tunes codebooks, scales and norms of a quantized block so that its outputs on `inputs` come close to
    /// `targets`; the last `validation` sequences decide when to stop and what to keep.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a different thing, and a struct would only rename them"
    )]
    fn block_finetune(
        &self,
        block: &mut Self::Block,
        inputs: &Self::Hidden,
        targets: &Self::Hidden,
        validation: usize,
        settings: &FinetuneSettings,
        key: StreamKey,
        observe: &mut dyn FnMut(FinetuneEvent),
    ) -> Result<FinetuneReport>;

    /// Mean over all elements of (a - b)^2, and of b^2.
    fn mean_squares(&self, a: &Self::Hidden, b: &Self::Hidden) -> Result<(f64, f64)>;

    /// Makes the final norm `[hidden]` and the lm_head [vocab, hidden] resident.
    fn load_head(&self, norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Self::Head>;

    /// Logits of one of the sequences, [tokens, vocab].
    fn logits(&self, head: &Self::Head, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f64>>;

    /// Negative log-likelihoods of each next token, [tokens - 1] per sequence.
    fn token_losses(
        &self,
        head: &Self::Head,
        hidden: &Self::Hidden,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>>;

    /// An empty cache for one block.
    fn new_cache(&self, block: &Self::Block) -> Self::Cache;

    /// Feeds one token through all blocks: its embedding row in, its logits `[vocab]` out.
    fn decode_step(
        &self,
        blocks: &[Self::Block],
        head: &Self::Head,
        caches: &mut [Self::Cache],
        embedding_row: &Array1<f32>,
        position: usize,
    ) -> Result<Array1<f64>>;
}
