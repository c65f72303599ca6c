//! Operations of a machine, on which the policies are built.
//!
//! A policy (alternation, tuning, evaluation, generation) is written once over these traits and never sees a
//! device. A machine's data stays on the machine, in the traits' associated types. Signatures show all that
//! crosses to or from the host: token ids and parameters go in, quantized matrices, losses and logits come
//! out.
//!
//! Methods fail on shapes or token ids that do not fit, on numbers that are not finite, and when a device
//! runs out of memory. A machine implements only the traits for which it has the operations. [`BackendKind`]
//! knows which machine implements which traits and rejects the others by name.

use std::ops::Range;
use std::path::Path;

use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, BlockWeights, ComparedPosition, LayerId, LayerSettings, ModelTuning,
    ModelWeights, Position, QuantizedMatrix, StreamKey, Tuned, Update,
};
pub use aqlm_vocabulary::{BlockTraining, GradientSums, ModelTraining, PartSums};
use ndarray::{Array1, Array2, Axis, s};

use crate::backend_kind::BackendKind;
use crate::likelihood::{Continuation, Likelihood};
use crate::memory::Memory;
use crate::position::{compare_all, log_softmax};
use crate::spectrum::Spectrum;
use crate::two_sided_host;
pub use crate::two_sided_host::{Proposal, TwoSidedLayer};
use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};

/// The steps of the alternation on one layer (paper algorithm 1, lines 4 to 12), in the order in which
/// [`alternate`](crate::alternate::alternate) takes them.
///
/// Every step optimises under H with `settings.damping` x mean(diag H) on its diagonal.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait LayerOps {
    /// a layer's weight and the H that weights its error
    type Problem;
    /// a quantized matrix and the state that the next step needs
    type Trial;
    /// H_O of a two-sided objective
    type Outer;

    /// Takes a weight, [out_features, in_features], and its symmetric H, [in_features, in_features].
    fn problem(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
    ) -> Result<Self::Problem>;

    /// (out_features, in_features).
    fn shape(&self, problem: &Self::Problem) -> (usize, usize);

    /// Number of inputs that are zero in all calibration data: zeros on the diagonal of H.
    fn dead_inputs(&self, problem: &Self::Problem) -> usize;

    /// Initial codes and codebooks, with random numbers from `key`.
    fn initialize(
        &self,
        problem: &Self::Problem,
        settings: &LayerSettings,
        key: StreamKey,
    ) -> Result<Self::Trial>;

    /// A trial from a quantized matrix of other origin, such as a user-defined update.
    fn trial(&self, problem: &Self::Problem, matrix: QuantizedMatrix) -> Result<Self::Trial>;

    /// Updates codebooks and scales; the trial's codes stay fixed.
    fn update(&self, problem: &Self::Problem, trial: Self::Trial, update: &Update) -> Result<Self::Trial>;

    /// Runs one sweep of beam search over the steps of `order` and returns the new codes.
    fn search(
        &self,
        problem: &Self::Problem,
        trial: Self::Trial,
        order: &[Position],
        beam: usize,
    ) -> Result<Self::Trial>;

    /// The relative layer error, tr((W-Q) H (W-Q)^T) / tr(W H W^T), under H without damping.
    fn loss(&self, problem: &Self::Problem, trial: &Self::Trial) -> f64;

    /// The quantized matrix, on the host.
    fn matrix(&self, problem: &Self::Problem, trial: &Self::Trial) -> Result<QuantizedMatrix>;

    /// Some rows with a target of their own, [rows, in_features], under the problem's damped H, which is
    /// shared.
    fn retargeted(&self, problem: &Self::Problem, target: &Array2<f32>) -> Result<Self::Problem>;

    /// Takes a symmetric H_O, [out_features, out_features].
    fn outer(&self, outer: &Array2<f64>) -> Result<Self::Outer>;

    /// H_O D H for D [out_features, in_features], with the damped H, at the machine's precision; D H for any
    /// number of rows without an H_O.
    fn image(
        &self,
        problem: &Self::Problem,
        outer: Option<&Self::Outer>,
        dense: &Array2<f64>,
    ) -> Result<Array2<f64>>;
}

/// The steps of the alternation under the two-sided objective tr(H_O E H E^T), in the order in which
/// [`alternate_two_sided`](crate::two_sided::alternate_two_sided) takes them.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait TwoSidedOps: LayerOps {
    /// errors of rows
    type Errors;

    /// tr(H_O E H E^T), E = W - Q, with the damped H.
    fn loss_two_sided(
        &self,
        problem: &Self::Problem,
        outer: &Self::Outer,
        layer: &TwoSidedLayer,
        matrix: &QuantizedMatrix,
    ) -> Result<f64>;

    /// Codebooks and scales in turn under that loss, for the matrix's codes. It does not rise.
    fn update_two_sided(
        &self,
        problem: &Self::Problem,
        outer: &Self::Outer,
        layer: &TwoSidedLayer,
        matrix: &QuantizedMatrix,
        update: &Update,
    ) -> Result<QuantizedMatrix>;

    /// E of a quantized matrix.
    fn errors(
        &self,
        problem: &Self::Problem,
        layer: &TwoSidedLayer,
        matrix: &QuantizedMatrix,
    ) -> Result<Self::Errors>;

    /// What these rows of the matrix find in one sweep over `order`, each as if it were the only one to move:
    /// its target is w_i + sum over j != i of H_O\[i,j\] / H_O\[i,i\] e_j.
    fn propose(
        &self,
        problem: &Self::Problem,
        outer: &Self::Outer,
        layer: &TwoSidedLayer,
        from: (&Self::Errors, &QuantizedMatrix, &[usize]),
        order: &[Position],
        beam: usize,
    ) -> Result<Proposal<Self::Errors>>;

    /// Takes over what the accepted ones among the rows of a proposal have found.
    fn accept(
        &self,
        errors: &mut Self::Errors,
        proposal: &Proposal<Self::Errors>,
        rows: &[usize],
        accepted: &[usize],
    ) -> Result<()>;
}

/// A machine whose two-sided steps the host takes in f64, over the machine's products and one-sided searches.
pub trait StepsOnHost: LayerOps {}

impl<O: StepsOnHost> TwoSidedOps for O {
    type Errors = Array2<f64>;

    fn loss_two_sided(
        &self,
        problem: &O::Problem,
        outer: &O::Outer,
        layer: &TwoSidedLayer,
        matrix: &QuantizedMatrix,
    ) -> Result<f64> {
        two_sided_host::loss(&images(self, problem, outer), layer, matrix)
    }

    fn update_two_sided(
        &self,
        problem: &O::Problem,
        outer: &O::Outer,
        layer: &TwoSidedLayer,
        matrix: &QuantizedMatrix,
        update: &Update,
    ) -> Result<QuantizedMatrix> {
        two_sided_host::update(&images(self, problem, outer), layer, matrix, update)
    }

    fn errors(
        &self,
        _problem: &O::Problem,
        layer: &TwoSidedLayer,
        matrix: &QuantizedMatrix,
    ) -> Result<Array2<f64>> {
        Ok(two_sided_host::errors(layer, matrix))
    }

    fn propose(
        &self,
        problem: &O::Problem,
        outer: &O::Outer,
        layer: &TwoSidedLayer,
        from: (&Array2<f64>, &QuantizedMatrix, &[usize]),
        order: &[Position],
        beam: usize,
    ) -> Result<Proposal<Array2<f64>>> {
        let search = |target: &Array2<f32>, rows| {
            let part = self.retargeted(problem, target)?;
            let trial = self.search(&part, self.trial(&part, rows)?, order, beam)?;
            self.matrix(&part, &trial)
        };
        two_sided_host::propose(&images(self, problem, outer), &search, layer, from)
    }

    fn accept(
        &self,
        errors: &mut Array2<f64>,
        proposal: &Proposal<Array2<f64>>,
        rows: &[usize],
        accepted: &[usize],
    ) -> Result<()> {
        two_sided_host::accept(errors, proposal, rows, accepted);
        Ok(())
    }
}

/// Products under both metrics, as the steps on the host take them.
fn images<'a, O: LayerOps>(
    ops: &'a O,
    problem: &'a O::Problem,
    outer: &'a O::Outer,
) -> impl Fn(bool, &Array2<f64>) -> Result<Array2<f64>> + 'a {
    move |both, dense| ops.image(problem, Some(outer).filter(|_| both), dense)
}

/// A sequence's squared distance of a from b, and squared norm of b.
pub type Squares = (f64, f64);

/// A block and the hidden states that pass through it.
///
/// An instance is built for one model configuration and a maximum sequence length. Sequences may differ in
/// length.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait BlockOps: Sync {
    /// operations that quantize one of the block's layers
    type Layers: TwoSidedOps + Sync;
    /// hidden states of several sequences, [tokens, hidden] each
    type Hidden;
    /// one block's parameters, resident
    type Block: Clone + Sync;
    /// running sum over samples; a layer's H is its mean
    type Hessian: PartSums + Sync;
    /// final norm and lm_head, resident
    type Head;

    /// Which backend this is.
    fn kind(&self) -> BackendKind;

    /// The device in words, for `run.json`.
    fn device(&self) -> String;

    /// Bytes of free memory of a device with memory of its own.
    fn free_memory(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    /// The model shape that this instance was made for.
    fn config(&self) -> &ArchSpec;

    /// The operations that quantize one of the block's layers.
    fn layers(&self) -> &Self::Layers;

    /// Bounds the memory of activations computed from now on, for hidden states of at most `sequences`
    /// sequences. Activations beyond the bound are stored in a file in the folder `spill`. The bound changes
    /// no result.
    fn bound_memory(&mut self, memory: Memory, spill: &Path, sequences: usize) -> Result<()>;

    /// Embeds token sequences; `embedding` is [vocab, hidden].
    fn embed(&self, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<Self::Hidden>;

    /// Number of tokens of each sequence.
    fn lengths(&self, hidden: &Self::Hidden) -> Vec<usize>;

    /// Divides sequences of these lengths into consecutive parts; each part adds one number to each element
    /// of a sum. The division depends on the lengths alone.
    fn parts(&self, lengths: &[usize]) -> Vec<Range<usize>>;

    /// Makes block `index` resident.
    fn load_block(&self, index: usize, weights: &BlockWeights) -> Result<Self::Block>;

    /// Copies a block's parameters back to the host, at the machine's own precision.
    fn store_block(&self, block: &Self::Block) -> Result<BlockWeights>;

    /// Replaces a layer of the block by its quantized form.
    fn set_layer(&self, block: &mut Self::Block, layer: LayerId, matrix: QuantizedMatrix) -> Result<()>;

    /// Room for hidden states of the same sequences, to be written before they are read.
    fn room_like(&self, hidden: &Self::Hidden) -> Result<Self::Hidden>;

    /// Writes the block's output for these consecutive sequences into `outputs`. The sequences must be whole
    /// parts.
    fn forward_into(
        &self,
        block: &Self::Block,
        hidden: &Self::Hidden,
        sequences: Range<usize>,
        outputs: &mut Self::Hidden,
    ) -> Result<()>;

    /// The block's output for every sequence.
    fn block_forward(&self, block: &Self::Block, hidden: &Self::Hidden) -> Result<Self::Hidden> {
        let mut outputs = self.room_like(hidden)?;
        self.forward_into(block, hidden, 0..self.lengths(hidden).len(), &mut outputs)?;
        Ok(outputs)
    }

    /// The block's output for every sequence, and [`BlockOps::squares`] of these and the targets, whose
    /// memory they may take.
    fn forward_over(
        &self,
        block: &Self::Block,
        hidden: &Self::Hidden,
        targets: Self::Hidden,
    ) -> Result<(Self::Hidden, Vec<Squares>)> {
        let outputs = self.block_forward(block, hidden)?;
        let squares = self.squares(&outputs, &targets)?;
        Ok((outputs, squares))
    }

    /// The hidden states with every number rounded to bf16, to the nearest, ties to even.
    fn rounded_to_bf16(&self, hidden: Self::Hidden) -> Result<Self::Hidden>;

    /// An empty sum for one of the block's layers.
    fn hessian(&self, block: &Self::Block, layer: LayerId) -> Self::Hessian;

    /// Adds the inputs of `layers` on the given sequences to one Hessian per layer. The sequences must be
    /// whole parts. The same pass writes the block's outputs for them, where these are wanted.
    fn add_to_hessians(
        &self,
        block: &Self::Block,
        hidden: &Self::Hidden,
        sequences: Range<usize>,
        layers: &[LayerId],
        hessians: &mut [Self::Hessian],
        outputs: Option<&mut Self::Hidden>,
    ) -> Result<()>;

    /// Number of samples that were added to a Hessian.
    fn samples(&self, hessian: &Self::Hessian) -> usize;

    /// Adds as many samples to a Hessian as if each were the mean of `pool`.
    fn add_mean_of(&self, hessian: &mut Self::Hessian, pool: &Self::Hessian, samples: usize) -> Result<()>;

    /// Operations that quantize layers at the same time, each on a thread of its own; none where one layer
    /// keeps the machine busy. There are `layers` of them to quantize, of at most `weights` numbers each.
    fn workers(&self, layers: usize, weights: usize) -> Result<Vec<Self::Layers>> {
        let _ = (layers, weights);
        Ok(Vec::new())
    }

    /// [`LayerOps::problem`] of a layer of the block, for these operations of the machine.
    fn layer_problem(
        &self,
        layers: &Self::Layers,
        block: &Self::Block,
        layer: LayerId,
        hessian: &Self::Hessian,
        settings: &LayerSettings,
    ) -> Result<<Self::Layers as LayerOps>::Problem>;

    /// H of a layer on the host, [in_features, in_features].
    fn mean(&self, hessian: &Self::Hessian) -> Result<Array2<f64>>;

    /// Starts to compute the eigenvalues of a layer's H.
    fn spectrum(&self, hessian: &Self::Hessian) -> Result<Spectrum>;

    /// Sums of (a - b)^2 and of b^2 over each sequence.
    fn squares(&self, a: &Self::Hidden, b: &Self::Hidden) -> Result<Vec<Squares>>;

    /// The largest absolute value. Fails with the place of a number that is not finite.
    fn largest(&self, hidden: &Self::Hidden) -> Result<f64>;

    /// Makes the final norm `[hidden]` and the lm_head [vocab, hidden] resident.
    fn load_head(&self, norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Self::Head>;

    /// Input of the output layer for one sequence: hidden states after the final norm, [tokens, hidden].
    fn head_input(&self, head: &Self::Head, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f32>>;

    /// Logits of one of the sequences, [tokens, vocab].
    fn logits(&self, head: &Self::Head, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f64>>;

    /// Logits of positions of some of the sequences, one after another, [positions, vocab].
    fn logits_at(
        &self,
        head: &Self::Head,
        hidden: &Self::Hidden,
        positions: &[(usize, Range<usize>)],
    ) -> Result<Array2<f64>> {
        let mut rows = Array2::zeros((0, self.config().vocab_size));
        for (sequence, positions) in positions {
            let all = self.logits(head, hidden, *sequence)?;
            // both have a row of the vocabulary a position
            rows.append(Axis(0), all.slice(s![positions.clone(), ..]))
                .map_err(|error| Error::Internal(format!("logits that do not fit together: {error}")))?;
        }
        Ok(rows)
    }

    /// Negative log-likelihoods of each next token, [tokens - 1] per sequence.
    fn token_losses(
        &self,
        head: &Self::Head,
        hidden: &Self::Hidden,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>>;

    /// The same device for a model of another shape, and sequences of at most `positions` tokens.
    fn for_shape(&self, config: &ArchSpec, positions: usize) -> Result<Self>
    where
        Self: Sized;

    /// Compares the next-token distributions of this machine's model with those of a dense model at the
    /// positions of one sequence from `first` on. `tokens` are the tokens after them.
    fn compare(
        &self,
        (head, hidden): (&Self::Head, &Self::Hidden),
        dense: &DenseStates<'_, Self>,
        sequence: usize,
        first: usize,
        tokens: &[u32],
    ) -> Result<Vec<ComparedPosition>>
    where
        Self: Sized,
    {
        let rows = |mut logits: Array2<f64>| {
            logits = logits.slice(s![first..first + tokens.len(), ..]).to_owned();
            log_softmax(&mut logits);
            logits
        };
        let model = rows(self.logits(head, hidden, sequence)?);
        let dense = rows(dense.machine.logits(dense.head, dense.hidden, sequence)?);
        Ok(compare_all(&dense, &model, tokens, None))
    }
}

/// A dense model's last hidden states, and the machine that computed them.
pub struct DenseStates<'a, M: BlockOps> {
    /// the machine of the dense model's shape
    pub machine: &'a M,
    /// the dense model's head
    pub head: &'a M::Head,
    /// its hidden states behind the last block
    pub hidden: &'a M::Hidden,
}

/// The part of a teacher that stays in memory while its student is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResidentTeacher {
    /// none
    Nothing,
    /// its output layer
    Head,
    /// all of it
    Whole,
}

/// Gradients and optimizer steps: the operations under [`tune_block`](crate::tune_block) and
/// [`end_to_end`](crate::end_to_end).
///
/// A tuner holds the trained parameters, their moments, and sums of gradients. Several calls may add to the
/// sums before one step uses them. A block's codes stay fixed; a model's may be tuned with the rest.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait TrainOps: BlockOps {
    /// a block being trained on target outputs
    type BlockTuner: BlockTraining<Block = Self::Block>;
    /// a model being trained on target logits
    type ModelTuner: ModelTraining;

    /// A tuner for a block before its first step.
    fn block_tuner(&self, block: &Self::Block, tuned: Tuned, decay: AdamDecay) -> Self::BlockTuner;

    /// Squared error of the block's output for each of these sequences, summed over elements.
    fn block_losses(
        &self,
        tuner: &Self::BlockTuner,
        inputs: &Self::Hidden,
        targets: &Self::Hidden,
        sequences: &[usize],
    ) -> Result<Vec<f64>>;

    /// [`TrainOps::block_losses`]; also adds `scale` times the gradients to the sums.
    fn block_accumulate(
        &self,
        tuner: &mut Self::BlockTuner,
        inputs: &Self::Hidden,
        targets: &Self::Hidden,
        sequences: &[usize],
        scale: f64,
    ) -> Result<Vec<f64>>;

    /// Bounds the memory of two things: the activations of training a model in steps of `batch` sequences,
    /// and the hidden states of a teacher. Hidden states beyond the bound are stored in a file in the folder
    /// `spill`. The bound changes no result.
    fn bound_tuning_memory(&mut self, memory: Memory, spill: &Path, batch: usize) -> Result<()>;

    /// Rejects settings that this machine cannot follow, before anything is computed or written.
    fn check_tuning(&self, tuning: &ModelTuning) -> Result<()> {
        let _ = tuning;
        Ok(())
    }

    /// The memory that tuning takes on a machine whose memory is not the host's, in words; `None` elsewhere.
    /// `weights` reads the model that is tuned, `batch` is the number of sequences of a step.
    ///
    /// Fails with advice when it is more than what is free, and on settings of codes that the machine cannot
    /// follow for these weights.
    fn tuning_memory(
        &self,
        weights: &dyn Fn() -> Result<ModelWeights>,
        tuning: &ModelTuning,
        teacher: ResidentTeacher,
        batch: usize,
    ) -> Result<Option<String>> {
        let _ = (weights, tuning, teacher, batch);
        Ok(None)
    }

    /// The gradients of -ln p(label), summed over positions, with respect to the last block's outputs; one
    /// label a position.
    fn label_gradients(
        &self,
        head: &Self::Head,
        hidden: &Self::Hidden,
        labels: &[Vec<u32>],
    ) -> Result<Self::Hidden>;

    /// Takes several gradients of a block's outputs back through it. Returns those of its inputs, and for
    /// each layer the sums of G G^T and G^T G over sequences and gradients. G [out_features, in_features] is
    /// the gradient of one sequence's loss with respect to the layer's weight. One sequence's numbers are
    /// added after another's, in order.
    fn block_sketch(
        &self,
        block: &Self::Block,
        inputs: &Self::Hidden,
        gradients: &[Self::Hidden],
    ) -> Result<(Vec<Self::Hidden>, Vec<GradientSums>)>;

    /// A tuner for a model before its first step.
    fn model_tuner(&self, weights: &ModelWeights, tuning: &ModelTuning) -> Result<Self::ModelTuner>;
}

/// A model's weights, one part at a time, from a checkpoint or from memory.
#[expect(clippy::missing_errors_doc, reason = "what reading them fails with")]
pub trait Weights {
    /// The model's shape.
    fn config(&self) -> &ArchSpec;

    /// Token embeddings, [vocab, hidden].
    fn embedding(&self) -> Result<Array2<f32>>;

    /// One of the blocks.
    fn block(&self, index: usize) -> Result<BlockWeights>;

    /// The norm before the head, `[hidden]`.
    fn final_norm(&self) -> Result<Array1<f32>>;

    /// The output layer, [vocab, hidden]; the embeddings if tied.
    fn lm_head(&self) -> Result<Array2<f32>>;
}

impl Weights for Model {
    fn config(&self) -> &ArchSpec {
        Self::config(self)
    }

    fn embedding(&self) -> Result<Array2<f32>> {
        Self::embedding(self)
    }

    fn block(&self, index: usize) -> Result<BlockWeights> {
        Self::block(self, index)
    }

    fn final_norm(&self) -> Result<Array1<f32>> {
        Self::final_norm(self)
    }

    fn lm_head(&self) -> Result<Array2<f32>> {
        Self::lm_head(self)
    }
}

/// Whole resident models. Independent of the other traits: a machine may implement this one alone.
pub trait ModelOps {
    /// Makes a model resident, block by block; `progress` is called after each block.
    ///
    /// # Errors
    /// Unreadable weights, and errors of the machine.
    fn model<'m>(
        &'m self,
        weights: &dyn Weights,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Box<dyn ResidentModel + 'm>>;
}

/// A resident model.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait ResidentModel {
    /// Negative log-likelihoods of each next token, [tokens - 1] per sequence; sequences may differ in
    /// length.
    fn losses(&mut self, sequences: &[&[u32]]) -> Result<Vec<Array1<f64>>>;

    /// Logits of a sequence, [tokens, vocab].
    fn logits(&mut self, tokens: &[u32]) -> Result<Array2<f64>>;

    /// Likelihoods of continuations of the sequences. Continuations of one sequence follow each other.
    fn likelihoods(
        &mut self,
        sequences: &[&[u32]],
        continuations: &[Continuation<'_>],
    ) -> Result<Vec<Likelihood>> {
        let mut result = Vec::with_capacity(continuations.len());
        for group in continuations.chunk_by(|a, b| a.sequence == b.sequence) {
            let sequence = sequences[group[0].sequence];
            let logits = self.logits(sequence)?;
            for continuation in group {
                let positions = continuation.positions(sequence.len())?;
                let rows = logits.slice(s![positions, ..]);
                result.push(Likelihood::of(&rows, continuation.tokens)?);
            }
        }
        Ok(result)
    }

    /// Starts an empty text for the model to read and continue.
    fn session(&mut self) -> Result<Box<dyn Session + '_>>;

    /// Calls `write` for the texts 0 to `count`, each with a session of its own, and returns what it returns,
    /// in order. A machine may work on several texts at once, which changes none of them.
    fn write_texts(&mut self, count: usize, write: &WriteText<'_>) -> Result<Vec<Vec<u32>>> {
        (0..count)
            .map(|text| write(text, self.session()?.as_mut()))
            .collect()
    }
}

/// Writes a text, given its number, with a session; returns its tokens.
pub type WriteText<'a> = dyn Fn(usize, &mut dyn Session) -> Result<Vec<u32>> + Sync + 'a;

/// A text that a model reads token by token, returning the logits of the next token.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait Session {
    /// Reads the prompt; returns the logits `[vocab]` of the token after it.
    fn prompt(&mut self, tokens: &[u32]) -> Result<Array1<f64>>;

    /// Reads one more token.
    fn next(&mut self, token: u32) -> Result<Array1<f64>>;

    /// Reads `token` and then its own most likely continuations, `count` tokens in all. `each` receives the
    /// most likely token after each of them and returns whether to continue. Returns false, having read
    /// nothing, if this machine has no fused greedy loop.
    fn greedy(&mut self, token: u32, count: usize, each: &mut dyn FnMut(u32) -> bool) -> Result<bool>;
}

/// The sequences of a range of consecutive parts.
pub(crate) fn joined(parts: &[Range<usize>], range: Range<usize>) -> Range<usize> {
    match &parts[range] {
        [] => 0..0,
        [only] => only.clone(),
        [first, .., last] => first.start..last.end,
    }
}

/// Refuses labels that are not one for each position of every sequence.
///
/// # Errors
/// `Shape`.
pub(crate) fn check_labels(lengths: &[usize], labels: &[Vec<u32>]) -> Result<()> {
    let found: Vec<usize> = labels.iter().map(Vec::len).collect();
    if found == lengths {
        return Ok(());
    }
    Err(AqlmError::Shape {
        what: "labels of sequences".into(),
        expected: lengths.to_vec(),
        found,
    }
    .into())
}
