use ndarray::Array3;
use serde::{Deserialize, Serialize};

use crate::{AdamDecay, AqlmError, LayerId, Optimizer, Result, StepRule};

/// Which groups share a budget of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeBudget {
    /// those of one matrix; every matrix has a budget of its own (official)
    Matrix,
    /// those of all matrices; the largest differences of the model win
    Model,
}

/// Which residual a hypothesis goes on with when a beam search has kept the best ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residuals {
    /// that of its own codes
    Own,
    /// that of the hypothesis which stood at its place in the beam before, minus the new codeword: what the
    /// official code does (`src/beam_search_l2.py` reorders codes and not residuals). It differs from `Own`
    /// for three codebooks and more, and a beam of two and more.
    Place,
}

/// Which codes are nearest to a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeMetric {
    /// those whose sum of codewords has the least squared distance (official)
    #[default]
    Euclid,
    /// those for which sum over rows r of e_r^T A_j e_r is least, e_r the rows of a group's difference and
    /// A_j a matrix [in_group, in_group] of the group's place j in the row. A_j is the mean of g_r^T g_r over
    /// the matrix's rows, g_r the gradient's part at that place, averaged over the steps with the second
    /// decay of the buffers' moments. Where gradients of tokens are independent, this estimates the diagonal
    /// blocks of the input Hessian weighted by squared output gradients (GuidedQuant), or of E\[G^T G\]
    /// (YAQA, sketch B).
    ///
    /// A_j is divided by its mean diagonal, and [`CodeMetric::DAMPING`] of it replaced by the identity.
    /// Without any gradient it is the identity.
    Gradients,
}

impl CodeMetric {
    /// All metrics.
    pub const ALL: [Self; 2] = [Self::Euclid, Self::Gradients];

    /// The identity's share of a metric, as in YAQA.
    pub const DAMPING: f64 = 0.01;
}

/// How codes are tuned together with a model's continuous parameters (PV-Tuning, Malinovskii et al. 2024; the
/// names are those of the official code, Vahe1994/AQLM `finetune.py`).
///
/// Every quantized matrix has a buffer B of the weight's shape, which starts as the decoded weight. In a step
/// the optimizer moves B along the gradient with respect to the decoded weight. Then the groups in which B
/// differs most from the decoded weight get the codes nearest to B.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CodeSettings {
    /// learning rate of the buffers in the first step (`code_lr`)
    pub lr: f64,
    /// how the buffers move (`code_betas`, `lamb`, `debias`)
    pub optimizer: Optimizer,
    /// the share of the groups that may change in a step, 0 to 1, rounded up to whole groups
    /// (`max_code_change`)
    pub max_change: f64,
    /// which groups share that budget
    pub budget: ChangeBudget,
    /// the norm of a matrix's change in a step, as a share of the matrix's norm, after which only one more
    /// group changes (`code_trust_ratio`); `None` for no bound
    pub trust_ratio: Option<f64>,
    /// hypotheses kept while the codes of a group are searched (`beam_size`)
    pub beam: usize,
    /// the residuals of these hypotheses
    pub residuals: Residuals,
    /// after a step B becomes (1 - d) B + d times the decoded weight (`delta_decay`)
    pub delta_decay: f64,
    /// which codes are nearest
    #[serde(default)]
    pub metric: CodeMetric,
    /// after the choice of codes, codebooks go this share of the way to the least squares fit of the buffer,
    /// 0 to 1; 0 leaves them to the optimizer (official). The fit minimises |B - W|^2 + R s |C - C0|^2, where
    /// C0 are the codebooks before it, s is the sum of the squared scales of a codeword's groups, in the mean
    /// over codewords, and R is [`CodeSettings::REFIT_RIDGE`]
    #[serde(default)]
    pub refit: f64,
}

impl CodeSettings {
    /// As the README of the official repository runs it (Vahe1994/AQLM at e79a896).
    pub const README: Self = Self {
        lr: 1e-2,
        optimizer: OFFICIAL_CODES,
        max_change: 1e-2,
        budget: ChangeBudget::Matrix,
        trust_ratio: None,
        beam: 5,
        residuals: Residuals::Place,
        delta_decay: 0.0,
        metric: CodeMetric::Euclid,
        refit: 0.0,
    };

    /// What holds codewords that few groups use, and the differences that codebooks share, when codebooks
    /// are fitted.
    pub const REFIT_RIDGE: f64 = 1e-3;

    /// As the README of the repository's branch pv-tuning runs it, on which the published checkpoints rest
    /// (a35bcf1).
    pub const BRANCH: Self = Self {
        lr: 3e-3,
        trust_ratio: Some(1e-2),
        beam: 1,
        ..Self::README
    };

    /// Rejects numbers for which the rules have no meaning.
    ///
    /// # Errors
    /// `Argument` naming the setting.
    pub fn check(&self) -> Result<()> {
        let decay = &self.optimizer.decay;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let checks = [
            (
                "code rate",
                self.lr,
                self.lr.is_finite() && self.lr >= 0.0,
                "a finite number of at least 0",
            ),
            (
                "first beta of codes",
                decay.beta1,
                (0.0..1.0).contains(&decay.beta1),
                "at least 0 and below 1",
            ),
            (
                "second beta of codes",
                decay.beta2,
                (0.0..1.0).contains(&decay.beta2),
                "at least 0 and below 1",
            ),
            (
                "share of groups that change",
                self.max_change,
                share(self.max_change),
                "0 to 1",
            ),
            (
                "trust ratio",
                self.trust_ratio.unwrap_or(1.0),
                self.trust_ratio.is_none_or(|ratio| ratio > 0.0),
                "above 0",
            ),
            ("beam", self.beam as f64, self.beam > 0, "1 or more"),
            ("delta decay", self.delta_decay, share(self.delta_decay), "0 to 1"),
            ("refit of codebooks", self.refit, share(self.refit), "0 to 1"),
        ];
        for (what, found, fits, expected) in checks {
            if !fits {
                return Err(AqlmError::argument(what, expected, found));
            }
        }
        Ok(())
    }
}

/// LAMB with corrections and without first moments: both READMEs of the official repository.
const OFFICIAL_CODES: Optimizer = Optimizer {
    decay: AdamDecay {
        beta1: 0.0,
        beta2: 0.95,
        eps: AdamDecay::OFFICIAL_EPS,
    },
    rule: StepRule::Official {
        lamb: true,
        debias: true,
    },
};

/// State of the codes of one matrix: all that tuning needs to continue exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct CodeState {
    /// the block
    pub block: usize,
    /// the layer
    pub layer: LayerId,
    /// the layer's name in a Hugging Face checkpoint
    pub name: String,
    /// [out_groups, in_groups, M]
    pub codes: Array3<u16>,
    /// the buffer, row-major [out_features, in_features]
    pub buffer: Vec<f64>,
    /// the buffer's first moments; empty when their decay is 0, for then they are the gradient
    pub first: Vec<f64>,
    /// the buffer's second moments
    pub second: Vec<f64>,
    /// averages of the gradients' products, [in_groups, in_group, in_group]; empty for
    /// [`CodeMetric::Euclid`]
    pub metric: Vec<f64>,
}

/// What a step did to the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CodeChange {
    /// groups of which at least one code changed
    pub changed: usize,
    /// groups whose codes can change
    pub groups: usize,
}

impl std::ops::AddAssign for CodeChange {
    fn add_assign(&mut self, other: Self) {
        self.changed += other.changed;
        self.groups += other.groups;
    }
}
