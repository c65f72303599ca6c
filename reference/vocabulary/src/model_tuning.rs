use ndarray::{Array1, Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::{
    AdamDecay, AqlmError, ArchSpec, BlockSpec, CodeSettings, FinetuneSettings, LayerId, NormPlace, Optimizer,
    Result,
};

/// The training objective of a whole model (paper appendix A uses the first).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// the Kullback-Leibler divergence of the student's next-token distribution from the teacher's
    KullbackLeibler,
    /// the negative log-likelihood of the text itself; requires no teacher
    CrossEntropy,
}

impl Objective {
    /// All objectives.
    pub const ALL: [Self; 2] = [Self::KullbackLeibler, Self::CrossEntropy];

    /// Name on a command line, and a short description.
    pub fn named(self) -> (&'static str, &'static str) {
        match self {
            Self::KullbackLeibler => ("kl", "divergence from the teacher's next-token distributions"),
            Self::CrossEntropy => (
                "cross-entropy",
                "negative log-likelihood of the text; needs no teacher",
            ),
        }
    }

    /// Whether the objective requires a teacher.
    pub fn needs_teacher(self) -> bool {
        match self {
            Self::KullbackLeibler => true,
            Self::CrossEntropy => false,
        }
    }
}

/// Selects the continuous parameters that are trained. Biases and dense layers never are;
/// [`ModelTuning::codes`] decides on codes.
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
    /// the output layer; the same array as `embedding` if tied
    pub head: bool,
}

impl Tuned {
    /// Everything.
    pub const ALL: Self = Self {
        codebooks: true,
        scales: true,
        norms: true,
        embedding: true,
        head: true,
    };

    /// Nothing.
    pub const NONE: Self = Self {
        codebooks: false,
        scales: false,
        norms: false,
        embedding: false,
        head: false,
    };
}

impl From<&FinetuneSettings> for Tuned {
    /// What fine-tuning trains of a block.
    fn from(settings: &FinetuneSettings) -> Self {
        Self {
            codebooks: settings.codebooks,
            scales: settings.scales,
            norms: settings.norms,
            ..Self::NONE
        }
    }
}

/// What of a whole model is tuned, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelTuning {
    /// the continuous parameters that are trained
    pub tuned: Tuned,
    /// how these move
    pub optimizer: Optimizer,
    /// how codes change; `None` for fixed codes
    pub codes: Option<CodeSettings>,
    /// seed of the order in which a step visits the codebooks
    pub seed: u64,
}

impl ModelTuning {
    /// Fixed codes, and PyTorch's Adam for the parameters that `tuned` selects (paper appendix A).
    pub fn of_parameters(tuned: Tuned, decay: AdamDecay) -> Self {
        Self {
            tuned,
            optimizer: decay.into(),
            codes: None,
            seed: 0,
        }
    }

    /// Rejects settings of codes for which the rules have no meaning, also beside what else is tuned.
    ///
    /// # Errors
    /// As [`CodeSettings::check`].
    pub fn check_codes(&self) -> Result<()> {
        let Some(codes) = &self.codes else {
            return Ok(());
        };
        codes.check()?;
        if codes.refit > 0.0 && !self.tuned.codebooks {
            let expected = "0 where codebooks are not trained";
            return Err(AqlmError::argument("refit of codebooks", expected, codes.refit));
        }
        Ok(())
    }
}

/// Learning rates of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// of the continuous parameters
    pub lr: f64,
    /// of the buffers from which codes follow
    pub code_lr: f64,
}

impl Rates {
    /// A step that leaves the buffers of codes where they are.
    pub fn of_parameters(lr: f64) -> Self {
        Self { lr, code_lr: 0.0 }
    }
}

/// One trainable array of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Parameter {
    /// codebooks of a quantized layer, [M, 2^B, out_group, in_group]
    Codebooks(usize, LayerId),
    /// scales of a quantized layer, `[out_groups]`
    Scales(usize, LayerId),
    /// an RMSNorm of a block, `[width]`
    Norm(usize, NormPlace),
    /// the RMSNorm before the head, `[hidden]`
    FinalNorm,
    /// token embeddings, [vocab, hidden]
    Embedding,
    /// the output layer, [vocab, hidden], if not tied to the embedding
    Head,
}

impl Parameter {
    /// The parameters of a model that `tuned` selects, block by block. `quantized` lists the quantized layers
    /// of each block. If `tied`, head and embedding are one array, [`Parameter::Embedding`].
    pub fn selected(blocks: &[BlockSpec], quantized: &[Vec<LayerId>], tied: bool, tuned: Tuned) -> Vec<Self> {
        let mut parameters = Vec::new();
        for (block, (spec, layers)) in blocks.iter().zip(quantized).enumerate() {
            for &layer in layers {
                parameters.extend(tuned.codebooks.then_some(Self::Codebooks(block, layer)));
                parameters.extend(tuned.scales.then_some(Self::Scales(block, layer)));
            }
            if tuned.norms {
                let places = spec.norm_places().into_iter();
                parameters.extend(places.map(|place| Self::Norm(block, place)));
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
            Self::Norm(block, place) => arch.norm_name(block, place),
            Self::FinalNorm => "model.norm.weight".into(),
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::Head => "lm_head.weight".into(),
        }
    }
}

/// Training state of one array of parameters: all that a run needs to continue exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterState {
    /// which parameter
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

/// The most likely tokens of a distribution over the vocabulary, at every position of a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct TopTokens {
    /// the k most likely tokens, in descending order, [positions, k]
    pub tokens: Array2<u32>,
    /// their log-probabilities, [positions, k]
    pub log_probabilities: Array2<f32>,
    /// total probability of all other tokens, `[positions]`
    pub rest: Array1<f32>,
}

/// Target of the logits of one sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target<'a> {
    /// the sequence's own next tokens; the last position has no target
    NextTokens,
    /// the softmax of a teacher's logits, states head^T, at every position
    Teacher {
        /// the teacher's hidden states after its final norm, [positions, hidden]
        states: ArrayView2<'a, f32>,
        /// the teacher's output layer, [vocab, hidden]
        head: ArrayView2<'a, f32>,
    },
    /// a teacher's most likely tokens at every position, with one outcome for all others
    Top(&'a TopTokens),
}

impl Target<'_> {
    /// Number of positions with a loss in a sequence of this many tokens.
    pub fn positions(&self, tokens: usize) -> usize {
        match self {
            Self::NextTokens => tokens.saturating_sub(1),
            Self::Teacher { .. } | Self::Top(_) => tokens,
        }
    }
}
