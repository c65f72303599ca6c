//! Backends as the check sees them: one method an operation, on plain host arrays.

mod cpu;
mod cuda;

use aqlm_vocabulary::{
    AqlmError, BlockWeights, FinetuneReport, LayerReport, LayerSettings, QuantizedMatrix, StreamKey, Update,
};
use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayViewMut2};

use super::limits::Number;
use crate::cases::{Case, LlamaCase, LlamaData, Operation};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::Result;

pub use cpu::CpuSubject;
pub use cuda::CudaSubject;

/// Clusters of points.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// [k, coordinates]
    pub centroids: Array2<f64>,
    /// `[points]`
    pub assignments: Vec<usize>,
    /// mean squared distance
    pub inertia: f64,
}

/// The gradients of a block, summed over sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// [sequences, tokens, hidden]
    pub x: Array3<f64>,
    /// [out_features, in_features] each
    pub layers: Vec<Array2<f64>>,
    /// `[out_features]`, where there is a bias
    pub biases: Vec<Option<Array1<f64>>>,
    /// `[hidden]` each
    pub norms: [Array1<f64>; 2],
}

/// One way in which a backend computes. Operations that it does not do answer `Unsupported`, the default.
///
/// To add an operation: a method here with that default, its implementation in cpu.rs or cuda.rs, and a file
/// in `ops/`.
#[expect(
    clippy::missing_errors_doc,
    reason = "what the backend refuses, for all methods"
)]
pub trait Subject: Sync {
    /// The backend's name.
    fn backend(&self) -> &'static str;

    /// Which of its ways: instructions, form, storage.
    fn variant(&self) -> String;

    /// The arithmetic, which decides the limits.
    fn number(&self) -> Number;

    /// The dense weight into `weight`, [out_features, in_features].
    fn decode(&self, _matrix: &QuantizedMatrix, _weight: &mut [f32]) -> Result<()> {
        no(self.backend(), Operation::Decode)
    }

    /// W x into `y`, `[out_features]`.
    fn matvec(&self, _matrix: &QuantizedMatrix, _x: &[f32], _y: &mut [f32]) -> Result<()> {
        no(self.backend(), Operation::Matvec)
    }

    /// x W^T into `y`, [batch, out_features].
    fn matmul(
        &self,
        _matrix: &QuantizedMatrix,
        _x: ArrayView2<'_, f32>,
        _y: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        no(self.backend(), Operation::Matmul)
    }

    /// Bytes of a fixed-point table entry, where products of this operation go through such tables.
    fn table_bytes(&self, _operation: Operation, _batch: usize) -> Option<u32> {
        None
    }

    /// How far such tables may move an element of W x before its scale, as the backend itself says.
    fn table_error(&self, _matrix: &QuantizedMatrix, _x: &[f32]) -> Result<f64> {
        Ok(0.0)
    }

    /// H of samples that arrive in parts.
    fn hessian(&self, _parts: &[ArrayView2<'_, f32>]) -> Result<Array2<f64>> {
        no(self.backend(), Operation::Hessian)
    }

    /// Lloyd's iterations from `start`, [k, coordinates].
    fn kmeans(&self, _points: &Array2<f32>, _start: &Array2<f32>, _iterations: usize) -> Result<Clusters> {
        no(self.backend(), Operation::Kmeans)
    }

    /// First codes and codebooks.
    fn residual_init(
        &self,
        _weight: &Array2<f32>,
        _settings: &LayerSettings,
        _key: StreamKey,
    ) -> Result<QuantizedMatrix> {
        no(self.backend(), Operation::ResidualInit)
    }

    /// The same, refined under H.
    fn em_init(
        &self,
        _weight: &Array2<f32>,
        _hessian: &Array2<f64>,
        _settings: &LayerSettings,
        _rounds: usize,
        _key: StreamKey,
    ) -> Result<QuantizedMatrix> {
        no(self.backend(), Operation::EmInit)
    }

    /// The matrix with the codes that one sweep over `order` ends with.
    fn beam_search(
        &self,
        _weight: &Array2<f32>,
        _hessian: &Array2<f64>,
        _matrix: &QuantizedMatrix,
        _order: &[(usize, usize)],
        _beam: usize,
    ) -> Result<QuantizedMatrix> {
        no(self.backend(), Operation::BeamSearch)
    }

    /// The matrix with updated codebooks and scales.
    fn codebook_update(
        &self,
        _weight: &Array2<f32>,
        _hessian: &Array2<f64>,
        _matrix: &QuantizedMatrix,
        _update: &Update,
    ) -> Result<QuantizedMatrix> {
        no(self.backend(), Operation::CodebookUpdate)
    }

    /// The alternation.
    fn layer_quantize(
        &self,
        _weight: &Array2<f32>,
        _hessian: &Array2<f64>,
        _settings: &LayerSettings,
        _key: StreamKey,
    ) -> Result<(QuantizedMatrix, LayerReport)> {
        no(self.backend(), Operation::LayerQuantize)
    }

    /// The first block's output, [sequences, tokens, hidden].
    fn block_forward(&self, _data: &LlamaData) -> Result<Array3<f64>> {
        no(self.backend(), Operation::BlockForward)
    }

    /// The first block's gradients.
    fn block_backward(&self, _data: &LlamaData) -> Result<Gradients> {
        no(self.backend(), Operation::BlockBackward)
    }

    /// The first block tuned towards `targets`.
    fn block_finetune(
        &self,
        _case: &LlamaCase,
        _data: &LlamaData,
        _targets: &Array3<f32>,
        _key: StreamKey,
    ) -> Result<(BlockWeights, FinetuneReport)> {
        no(self.backend(), Operation::BlockFinetune)
    }

    /// Logits of all sequences, [tokens, vocabulary] each; and those of the first sequence computed token by
    /// token.
    fn model_forward(&self, _data: &LlamaData) -> Result<(Vec<Array2<f64>>, Array2<f64>)> {
        no(self.backend(), Operation::ModelForward)
    }

    /// Losses of each next token, [tokens - 1] a sequence.
    fn perplexity(&self, _data: &LlamaData) -> Result<Vec<Array1<f64>>> {
        no(self.backend(), Operation::Perplexity)
    }
}

/// The answer to what a backend does not do.
fn no<T>(backend: &str, operation: Operation) -> Result<T> {
    Err(AqlmError::Unsupported(format!("{backend} has no {operation} yet")).into())
}

/// Every way in which a backend computes a case, or why there is nothing to run it on.
pub type Subjects = std::result::Result<Vec<Box<dyn Subject>>, String>;

/// Every way in which a backend computes a case.
///
/// # Errors
/// Why there is nothing to run it on.
pub(crate) fn subjects(backend: BackendKind, case: &Case) -> Subjects {
    match backend {
        BackendKind::Reference => Ok(Vec::new()),
        BackendKind::Cpu => Ok(CpuSubject::all(case)),
        BackendKind::Cuda => CudaSubject::all(case),
    }
}
