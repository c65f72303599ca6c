//! What a machine can do: the operations below the policies.
//!
//! A policy (alternation, tuning, evaluation, generation) is written once over these traits and never sees a
//! device. What a machine computes with stays where it computes, in the traits' types; what crosses to the
//! host is visible in the signatures: token ids and parameters on the way in, quantized matrices, losses and
//! logits on the way out.
//!
//! Methods fail on what does not fit (shapes, token ids), on numbers that are not finite, and when a device
//! runs out of memory. A machine implements the traits that it has the operations for; which machines have
//! which, [`BackendKind`] answers, and refuses the others by name.

use std::ops::Range;
use std::path::Path;

use aqlm_vocabulary::{
    AdamDecay, ArchSpec, BlockWeights, LayerId, LayerSettings, ModelWeights, QuantizedMatrix, StreamKey,
    Target, Tuned, TuningState, Update,
};
use ndarray::{Array1, Array2};

use crate::backend_kind::BackendKind;
use crate::memory::Memory;
use aqlm_formats::Result;
use aqlm_formats::model::Model;

/// The steps of the alternation on one layer (paper algorithm 1, lines 4 to 12), in the order in which
/// [`alternate`](crate::alternate::alternate) takes them.
///
/// Every step optimises under H with `settings.damping` x mean(diag H) on its diagonal.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait LayerOps {
    /// a layer's weight and the H that its error is measured in
    type Problem;
    /// a quantized matrix beside what the next step needs to know of it
    type Trial;

    /// A weight, [out_features, in_features], and its H, [in_features, in_features] and symmetric.
    fn problem(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
    ) -> Result<Self::Problem>;

    /// (out_features, in_features).
    fn shape(&self, problem: &Self::Problem) -> (usize, usize);

    /// Inputs that the calibration data never excite: zeros on the diagonal of H.
    fn dead_inputs(&self, problem: &Self::Problem) -> usize;

    /// First codes and codebooks, with the random numbers of `key`.
    fn initialize(
        &self,
        problem: &Self::Problem,
        settings: &LayerSettings,
        key: StreamKey,
    ) -> Result<Self::Trial>;

    /// A quantized matrix that comes from elsewhere, as an update of one's own does.
    fn trial(&self, problem: &Self::Problem, matrix: QuantizedMatrix) -> Result<Self::Trial>;

    /// Codebooks and scales for the trial's codes.
    fn update(&self, problem: &Self::Problem, trial: Self::Trial, update: &Update) -> Result<Self::Trial>;

    /// The codes that one sweep of beam search over `order`, (input group, codebook), ends with.
    fn search(
        &self,
        problem: &Self::Problem,
        trial: Self::Trial,
        order: &[(usize, usize)],
        beam: usize,
    ) -> Result<Self::Trial>;

    /// The relative layer error, tr((W-Q) H (W-Q)^T) / tr(W H W^T), under H without damping.
    fn loss(&self, problem: &Self::Problem, trial: &Self::Trial) -> f64;

    /// The quantized matrix.
    fn matrix(&self, trial: &Self::Trial) -> QuantizedMatrix;
}

/// Sums over sequences, to which every part of the sequences adds one number an element.
///
/// So sums that are gathered from several devices and added in the order of the parts have the bits of those
/// that one device adds up itself.
pub trait PartSums {
    /// Takes the sums out and begins them anew.
    fn take(&mut self) -> Vec<f64>;

    /// Adds sums that another has taken out.
    ///
    /// # Errors
    /// When they are sums of something else.
    fn add(&mut self, sums: &[f64]) -> Result<()>;
}

impl PartSums for Vec<f64> {
    fn take(&mut self) -> Vec<f64> {
        let zeros = vec![0.0; self.len()];
        std::mem::replace(self, zeros)
    }

    fn add(&mut self, sums: &[f64]) -> Result<()> {
        for (to, part) in self.iter_mut().zip(sums) {
            *to += part;
        }
        Ok(())
    }
}

/// A block and the hidden states that pass through it.
///
/// An instance belongs to one model configuration and one longest sequence. Sequences may differ in length.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait BlockOps {
    /// what quantizes one of the block's layers
    type Layers: LayerOps;
    /// hidden states of several sequences, [tokens, hidden] each
    type Hidden;
    /// one block's parameters, resident
    type Block;
    /// the sum over samples that a layer's H is the mean of
    type Hessian: PartSums;
    /// final norm and lm_head, resident
    type Head;

    /// Which backend this is.
    fn kind(&self) -> BackendKind;

    /// The device in words, for `run.json`.
    fn device(&self) -> String;

    /// The model shape that this instance was made for.
    fn config(&self) -> &ArchSpec;

    /// What quantizes one of the block's layers.
    fn layers(&self) -> &Self::Layers;

    /// Bounds the memory of the activations that it computes from now on, hidden states of `sequences`
    /// sequences at most: what is beyond the bound lies in a file in the folder `spill`. No result depends on
    /// it.
    fn bound_memory(&mut self, memory: Memory, spill: &Path, sequences: usize) -> Result<()>;

    /// Embeds token sequences; `embedding` is [vocab, hidden].
    fn embed(&self, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<Self::Hidden>;

    /// Tokens of each sequence.
    fn lengths(&self, hidden: &Self::Hidden) -> Vec<usize>;

    /// How sequences of these lengths are cut into parts that follow each other, each of which adds one
    /// number to each element of a sum. It depends on the lengths alone.
    fn parts(&self, lengths: &[usize]) -> Vec<Range<usize>>;

    /// Makes the block of this index resident.
    fn load_block(&self, index: usize, weights: &BlockWeights) -> Result<Self::Block>;

    /// Copies a block's parameters back to the host, at the machine's own precision.
    fn store_block(&self, block: &Self::Block) -> Result<BlockWeights>;

    /// Replaces a layer of the block by its quantized form.
    fn set_layer(&self, block: &mut Self::Block, layer: LayerId, matrix: QuantizedMatrix) -> Result<()>;

    /// The block's output for every sequence.
    fn block_forward(&self, block: &Self::Block, hidden: &Self::Hidden) -> Result<Self::Hidden>;

    /// The sum of no samples, for one of the block's layers.
    fn hessian(&self, block: &Self::Block, layer: LayerId) -> Self::Hessian;

    /// Adds the inputs that `layers` get from the given sequences, whole parts, to one Hessian each.
    fn add_to_hessians(
        &self,
        block: &Self::Block,
        hidden: &Self::Hidden,
        sequences: Range<usize>,
        layers: &[LayerId],
        hessians: &mut [Self::Hessian],
    ) -> Result<()>;

    /// [`LayerOps::problem`] of a layer of the block.
    fn layer_problem(
        &self,
        block: &Self::Block,
        layer: LayerId,
        hessian: &Self::Hessian,
        settings: &LayerSettings,
    ) -> Result<<Self::Layers as LayerOps>::Problem>;

    /// Mean over all elements of (a - b)^2, and of b^2.
    fn mean_squares(&self, a: &Self::Hidden, b: &Self::Hidden) -> Result<(f64, f64)>;

    /// Makes the final norm `[hidden]` and the lm_head [vocab, hidden] resident.
    fn load_head(&self, norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Self::Head>;

    /// What the output layer is given for one of the sequences: hidden states behind the final norm, [tokens,
    /// hidden].
    fn head_input(&self, head: &Self::Head, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f32>>;

    /// Logits of one of the sequences, [tokens, vocab].
    fn logits(&self, head: &Self::Head, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f64>>;

    /// Negative log-likelihoods of each next token, [tokens - 1] per sequence.
    fn token_losses(
        &self,
        head: &Self::Head,
        hidden: &Self::Hidden,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>>;
}

/// Gradients and steps: what [`tune_block`](crate::tune_block) and [`end_to_end`](crate::end_to_end) train
/// with.
///
/// A tuner holds what is trained, Adam's moments, and sums of gradients, to which several calls may add
/// before a step uses them. Codes stay.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait TrainOps: BlockOps {
    /// a block being trained on the outputs that it should have
    type BlockTuner: PartSums;
    /// a model being trained on the logits that it should have
    type ModelTuner: PartSums;
    /// the gradient with respect to one decoded weight, [out_features, in_features]
    type WeightGradient;

    /// A block before its first step.
    fn block_tuner(&self, block: &Self::Block, tuned: Tuned, decay: AdamDecay) -> Self::BlockTuner;

    /// Whether nothing of the block is trained.
    fn is_idle(&self, tuner: &Self::BlockTuner) -> bool;

    /// The squared error of each of these sequences' outputs, summed over their elements.
    fn block_losses(
        &self,
        tuner: &Self::BlockTuner,
        inputs: &Self::Hidden,
        targets: &Self::Hidden,
        sequences: &[usize],
    ) -> Result<Vec<f64>>;

    /// [`TrainOps::block_losses`], adding `scale` times their gradients to the sums.
    fn block_accumulate(
        &self,
        tuner: &mut Self::BlockTuner,
        inputs: &Self::Hidden,
        targets: &Self::Hidden,
        sequences: &[usize],
        scale: f64,
    ) -> Result<Vec<f64>>;

    /// One step of Adam along the sums of gradients, which are then forgotten.
    fn block_step(&self, tuner: &mut Self::BlockTuner, lr: f64);

    /// The block as it is now.
    fn tuned_block(&self, tuner: &Self::BlockTuner) -> Self::Block;

    /// Bounds the memory of the activations of training a model in steps of `batch` sequences, and of the
    /// hidden states of a teacher, which beyond the bound lie in a file in the folder `spill`. No result
    /// depends on it.
    fn bound_tuning_memory(&mut self, memory: Memory, spill: &Path, batch: usize) -> Result<()>;

    /// A model before its first step.
    fn model_tuner(&self, weights: &ModelWeights, tuned: Tuned, decay: AdamDecay)
    -> Result<Self::ModelTuner>;

    /// Loss of each sequence, summed over its positions; sequences are of equal length.
    fn model_losses(
        &self,
        tuner: &mut Self::ModelTuner,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
    ) -> Result<Vec<f64>>;

    /// [`TrainOps::model_losses`], adding `scale` times their gradients to the sums. `observe` is given the
    /// gradients with respect to the decoded weights, in parts to be added up: what methods that change codes
    /// start from.
    fn model_accumulate(
        &self,
        tuner: &mut Self::ModelTuner,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        observe: &mut dyn FnMut(usize, LayerId, &Self::WeightGradient),
    ) -> Result<Vec<f64>>;

    /// One step of Adam along the sums of gradients, which are then forgotten.
    fn model_step(&self, tuner: &mut Self::ModelTuner, lr: f64);

    /// Everything that training goes on from.
    fn state(&self, tuner: &Self::ModelTuner) -> TuningState;

    /// Goes on from a state.
    fn restore(&self, tuner: &mut Self::ModelTuner, state: &TuningState) -> Result<()>;

    /// The model's weights as they are now, at the machine's own precision.
    fn weights(&self, tuner: &Self::ModelTuner) -> ModelWeights;

    /// The name of what is not finite first on these sequences: a parameter, or a layer's output.
    fn first_not_finite(&self, tuner: &mut Self::ModelTuner, sequences: &[&[u32]]) -> Result<Option<String>>;
}

/// A model's weights, one part at a time: those of a checkpoint, or some in memory.
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

    /// The output layer, [vocab, hidden]; with tied embeddings those.
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

/// Whole models, resident. This is no part of the other traits: a machine may have it alone.
pub trait ModelOps {
    /// Makes a model resident, one block after the other; `progress` hears of each.
    ///
    /// # Errors
    /// Unreadable weights, and what the machine refuses.
    fn model<'m>(
        &'m self,
        weights: &dyn Weights,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Box<dyn ResidentModel + 'm>>;
}

/// A model that is resident.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait ResidentModel {
    /// Negative log-likelihoods of each next token, [tokens - 1] a sequence; sequences may differ in length.
    fn losses(&mut self, sequences: &[&[u32]]) -> Result<Vec<Array1<f64>>>;

    /// Logits of a sequence, [tokens, vocab].
    fn logits(&mut self, tokens: &[u32]) -> Result<Array2<f64>>;

    /// A text that the model is to read and write, from its beginning.
    fn session(&mut self) -> Result<Box<dyn Session + '_>>;
}

/// A text that a model reads token by token; it says what may come next.
#[expect(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait Session {
    /// Reads the beginning of the text; the logits `[vocab]` of what follows it.
    fn prompt(&mut self, tokens: &[u32]) -> Result<Array1<f64>>;

    /// Reads one token more.
    fn next(&mut self, token: u32) -> Result<Array1<f64>>;

    /// Reads `token` and then its own likeliest continuations, `count` tokens in all; `each` gets the
    /// likeliest token after each of them and says whether to go on. Returns false, having read nothing, if
    /// this machine has no fused greedy loop.
    fn greedy(&mut self, token: u32, count: usize, each: &mut dyn FnMut(u32) -> bool) -> Result<bool>;
}

/// The processes or devices that a policy runs on. What they sum is gathered part by part and added in the
/// order of the parts, so that no byte depends on how many they are.
pub trait Ranks {
    /// Adds the parts 0 to `parts` to the sums. `add` adds the parts of a range in their order; the sums end
    /// with every part on every rank.
    ///
    /// # Errors
    /// Those of `add`, and of the way between ranks.
    fn sum_in_order<S: PartSums>(
        &self,
        sums: &mut S,
        parts: usize,
        add: &mut dyn FnMut(&mut S, Range<usize>) -> Result<()>,
    ) -> Result<()>;
}

/// The sequences of a range of parts, which follow each other.
pub(crate) fn joined(parts: &[Range<usize>], range: Range<usize>) -> Range<usize> {
    match &parts[range] {
        [] => 0..0,
        [only] => only.clone(),
        [first, .., last] => first.start..last.end,
    }
}

/// One process on one device: nothing is gathered.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Ranks for Alone {
    fn sum_in_order<S: PartSums>(
        &self,
        sums: &mut S,
        parts: usize,
        add: &mut dyn FnMut(&mut S, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        add(sums, 0..parts)
    }
}
