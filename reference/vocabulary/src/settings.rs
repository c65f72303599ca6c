use serde::{Deserialize, Serialize};

use crate::{AdamDecay, Scheme};

/// Method that computes a layer's first codes and codebooks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initialization {
    /// residual k-means: k-means, subtract, repeat M times (paper section 3.1, algorithm 1 line 4)
    Residual,
    /// residual k-means, then each codebook is refined by output-aware EM: codes and codewords of minimum
    /// error under the H of their input group
    Em {
        /// rounds of (assignment, exact M-step) per codebook
        rounds: usize,
    },
    /// codebooks by residual k-means, then codes by a tree search with error feedback, one input group after
    /// the other
    Feedback(FeedbackSettings),
}

/// How error feedback initializes a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackSettings {
    /// partial codings of an output group that survive each input group
    pub hypotheses: usize,
    /// searches over all input groups; codebooks and scales are updated between them
    pub passes: usize,
    /// the order in which input groups are decided
    pub order: GroupOrder,
}

/// Four hypotheses and one pass in natural order, which measured best for their time before sweeps that
/// choose codes in pairs (docs/quantizer.md).
impl Default for FeedbackSettings {
    fn default() -> Self {
        Self {
            hypotheses: 4,
            passes: 1,
            order: GroupOrder::Natural,
        }
    }
}

/// The order in which a search with error feedback decides input groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupOrder {
    /// from the last to the first
    Natural,
    /// the largest conditional variance, given the inputs of all undecided groups, first
    Variance,
    /// the largest trace of H_jj first
    Diagonal,
}

/// Method that updates codebooks for fixed codes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Update {
    /// least squares. Up to `max_unknowns` unknowns, the reference solves the normal equations by Cholesky;
    /// above that, it takes conjugate-gradient steps. The CPU backend always takes conjugate-gradient steps:
    /// to the minimum up to `max_unknowns` unknowns, at most `cg_steps` above that
    ClosedForm {
        /// largest M 2^B g for which the minimum is computed
        max_unknowns: usize,
        /// conjugate-gradient steps above that size
        cg_steps: usize,
        /// number of alternations between codebooks and scales
        scale_rounds: usize,
    },
    /// Adam on codebooks and scales (paper section 3.3). The paper's betas are (0.90, 0.95), the official
    /// engine's (0.0, 0.95) with amsgrad
    Adam {
        /// learning rate
        lr: f64,
        /// decay of the first moment
        beta1: f64,
        /// decay of the second moment
        beta2: f64,
        /// divide by the largest second moment so far
        amsgrad: bool,
        /// full-batch steps per round
        steps: usize,
    },
}

/// Everything that decides how one layer is quantized, apart from its weight, its Hessian and its random
/// streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSettings {
    /// the weight's scheme
    pub scheme: Scheme,
    /// how the first codes and codebooks are computed
    pub init: Initialization,
    /// maximum number of Lloyd iterations
    pub kmeans_iterations: usize,
    /// how codebooks are updated for fixed codes
    pub update: Update,
    /// number of hypotheses kept per row
    pub beam: usize,
    /// whether a sweep chooses the codes of two codebooks together, if their sums are few enough
    /// ([`Scheme::sums_fit`])
    pub pairs: bool,
    /// minimum relative improvement of the loss per round; the alternation stops below it
    pub relative_tolerance: f64,
    /// maximum number of rounds of (update, beam search)
    pub max_rounds: usize,
    /// added to H's diagonal, as a share of the diagonal's mean; keeps dead inputs harmless
    pub damping: f64,
    /// accept codebooks with more codewords than the layer has groups
    pub allow_degenerate: bool,
}

impl LayerSettings {
    /// Whether a sweep chooses codes two by two.
    pub fn searches_pairs(&self) -> bool {
        self.pairs && self.scheme.has_pairs()
    }
}

/// How a block is tuned on its own outputs (paper section 3.4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneSettings {
    /// Adam's learning rate
    pub lr: f64,
    /// decay of the first moment
    pub beta1: f64,
    /// decay of the second moment
    pub beta2: f64,
    /// Adam's epsilon
    pub eps: f64,
    /// maximum number of passes over the training sequences; 0 switches fine-tuning off
    pub epochs: usize,
    /// sequences per step
    pub batch: usize,
    /// stop after this many epochs without a better validation loss; the best state is kept
    pub patience: usize,
    /// train codebooks
    pub codebooks: bool,
    /// train scales
    pub scales: bool,
    /// train RMSNorm weights
    pub norms: bool,
}

impl FinetuneSettings {
    /// Adam's constants in every step.
    pub fn decay(&self) -> AdamDecay {
        AdamDecay {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
        }
    }
}

/// Progress inside a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LayerEvent {
    /// codes and codebooks have been initialized
    Initialized {
        /// relative layer error
        loss: f64,
    },
    /// codebooks and scales were updated
    Updated {
        /// round, from 0
        round: usize,
        /// relative layer error
        loss: f64,
    },
    /// a beam-search sweep is done
    Searched {
        /// round, from 0
        round: usize,
        /// relative layer error
        loss: f64,
    },
}

/// How the quantization of a layer went. Errors are those of the run's objective and H; under a two-sided one
/// they are tr(H_O E H E^T) / tr(H_O W H W^T) with both metrics damped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// relative layer error after initialisation
    pub initial_error: f64,
    /// relative layer error of the result: tr((W-Q) H (W-Q)^T) / tr(W H W^T), H without damping
    pub relative_error: f64,
    /// relative layer error after each round, each at most the one before
    pub trace: Vec<f64>,
    /// number of inputs that are zero in all calibration data (zero diagonal of H)
    pub dead_inputs: usize,
}

/// How the fine-tuning of a block went. Losses are mean squared errors per output element.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneReport {
    /// validation loss before the first step (training loss when there is no validation set)
    pub loss_before: f64,
    /// the same loss for the state that was kept
    pub loss_after: f64,
    /// mean training loss of each epoch
    pub train_losses: Vec<f64>,
    /// validation loss after each epoch; empty without a validation set
    pub validation_losses: Vec<f64>,
    /// epoch whose end state was kept; 0 is the state before the first step
    pub best_epoch: usize,
}

/// Progress of tuning a block. Losses are mean squared errors per output element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FinetuneEvent {
    /// a minibatch was used
    Step {
        /// epoch, from 1
        epoch: usize,
        /// step within the epoch, from 1
        step: usize,
        /// steps in each epoch
        steps: usize,
        /// loss on the minibatch before the step
        loss: f64,
    },
    /// an epoch is done
    Epoch {
        /// epoch, from 1
        epoch: usize,
        /// mean of the losses before each step
        train_loss: f64,
        /// loss on the validation sequences after the epoch, if there are any
        validation_loss: Option<f64>,
    },
}
