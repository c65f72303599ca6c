use ndarray::{Array1, Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::{ArchSpec, LayerId};

/// What the whole model is trained to do (paper appendix A uses the first).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// the Kullback-Leibler divergence of the student's next-token distribution from the teacher's
    KullbackLeibler,
    /// the negative log-likelihood of the text itself; needs no teacher
    CrossEntropy,
}

impl Objective {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::KullbackLeibler, Self::CrossEntropy];

    /// Its name on a command line, and what it is in a few words.
    pub fn named(self) -> (&'static str, &'static str) {
        match self {
            Self::KullbackLeibler => ("kl", "divergence from the teacher's next-token distributions"),
            Self::CrossEntropy => (
                "cross-entropy",
                "negative log-likelihood of the text; needs no teacher",
            ),
        }
    }

    /// Whether it compares with a teacher.
    pub fn needs_teacher(self) -> bool {
        match self {
            Self::KullbackLeibler => true,
            Self::CrossEntropy => false,
        }
    }
}

/// Which parameters are trained. Codes, biases and dense layers never are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "five switches that are independent of each other"
)]
pub struct Tuned {
    /// codebooks of the quantized layers
    pub codebooks: bool,
    /// scales of the quantized layers
    pub scales: bool,
    /// weights of all RMSNorms
    pub norms: bool,
    /// token embeddings
    pub embedding: bool,
    /// the output layer; with tied embeddings the same as `embedding`
    pub head: bool,
}

/// One array of parameters that can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Parameter {
    /// codebooks of a quantized layer, [M, 2^B, out_group, in_group]
    Codebooks(usize, LayerId),
    /// scales of a quantized layer, `[out_groups]`
    Scales(usize, LayerId),
    /// the RMSNorm before a block's attention, `[hidden]`
    InputNorm(usize),
    /// the RMSNorm before a block's MLP, `[hidden]`
    PostAttentionNorm(usize),
    /// the RMSNorm before the head, `[hidden]`
    FinalNorm,
    /// token embeddings, [vocab, hidden]
    Embedding,
    /// the output layer, [vocab, hidden], where it is not the embedding
    Head,
}

impl Parameter {
    /// The parameters that `tuned` selects of a model, block by block. `quantized` are the quantized layers
    /// of each block. If `tied`, head and embedding are one array, [`Parameter::Embedding`].
    pub fn selected(quantized: &[Vec<LayerId>], tied: bool, tuned: Tuned) -> Vec<Self> {
        let mut parameters = Vec::new();
        for (block, layers) in quantized.iter().enumerate() {
            for &layer in layers {
                parameters.extend(tuned.codebooks.then_some(Self::Codebooks(block, layer)));
                parameters.extend(tuned.scales.then_some(Self::Scales(block, layer)));
            }
            if tuned.norms {
                parameters.extend([Self::InputNorm(block), Self::PostAttentionNorm(block)]);
            }
        }
        parameters.extend(tuned.norms.then_some(Self::FinalNorm));
        parameters.extend((tuned.embedding || tied && tuned.head).then_some(Self::Embedding));
        parameters.extend((tuned.head && !tied).then_some(Self::Head));
        parameters
    }

    /// Its name in a Hugging Face checkpoint of this model.
    pub fn name(self, arch: &ArchSpec) -> String {
        match self {
            Self::Codebooks(block, layer) => format!("{}.codebooks", arch.layer_name(block, layer)),
            Self::Scales(block, layer) => format!("{}.scales", arch.layer_name(block, layer)),
            Self::InputNorm(block) => {
                let [name, _] = arch.norm_names(block);
                name
            }
            Self::PostAttentionNorm(block) => {
                let [_, name] = arch.norm_names(block);
                name
            }
            Self::FinalNorm => "model.norm.weight".into(),
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::Head => "lm_head.weight".into(),
        }
    }
}

/// One array of parameters on its way through training: what a run needs to go on exactly where it was.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterState {
    /// which one
    pub parameter: Parameter,
    /// its name in a Hugging Face checkpoint
    pub name: String,
    /// its values, row-major
    pub values: Vec<f64>,
    /// Adam's first moments
    pub first: Vec<f64>,
    /// Adam's second moments
    pub second: Vec<f64>,
}

/// All trained parameters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TuningState {
    /// steps taken
    pub steps: u32,
    /// in the order of [`Parameter::selected`]
    pub parameters: Vec<ParameterState>,
}

/// A distribution over the vocabulary at every position of a sequence, of which only the likeliest tokens are
/// kept.
#[derive(Debug, Clone, PartialEq)]
pub struct TopTokens {
    /// the likeliest tokens, likeliest first, [positions, k]
    pub tokens: Array2<u32>,
    /// their log-probabilities, [positions, k]
    pub log_probabilities: Array2<f32>,
    /// probability of all other tokens together, `[positions]`
    pub rest: Array1<f32>,
}

/// What the logits of one sequence are to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target<'a> {
    /// the sequence's own next tokens; its last position predicts nothing
    NextTokens,
    /// the softmax of a teacher's logits, states head^T, at every position
    Teacher {
        /// the teacher's hidden states behind its final norm, [positions, hidden]
        states: ArrayView2<'a, f32>,
        /// its output layer, [vocab, hidden]
        head: ArrayView2<'a, f32>,
    },
    /// a teacher's likeliest tokens at every position, and one outcome for all others
    Top(&'a TopTokens),
}

impl Target<'_> {
    /// Positions of a sequence of so many tokens that have a loss.
    pub fn positions(&self, tokens: usize) -> usize {
        match self {
            Self::NextTokens => tokens.saturating_sub(1),
            Self::Teacher { .. } | Self::Top(_) => tokens,
        }
    }
}
