use serde::{Deserialize, Serialize};

/// Parameters of an Adam step besides the gradient (Kingma and Ba 2015, algorithm 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamSettings {
    /// learning rate
    pub lr: f64,
    /// decay of the first moment
    pub beta1: f64,
    /// decay of the second moment
    pub beta2: f64,
    /// added to the root of the second moment
    pub eps: f64,
    /// divide by the largest second moment so far instead of the latest
    pub amsgrad: bool,
}

impl AdamSettings {
    /// The epsilon of the paper that introduced Adam; PyTorch's default.
    pub const USUAL_EPS: f64 = 1e-8;
}

/// Adam's constants when the learning rate follows a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamDecay {
    /// decay of the first moment
    pub beta1: f64,
    /// decay of the second moment
    pub beta2: f64,
    /// added to the root of the second moment
    pub eps: f64,
}

impl AdamDecay {
    /// Constants of fine-tuning in the paper (appendix A).
    pub const PAPER: Self = Self {
        beta1: 0.9,
        beta2: 0.95,
        eps: AdamSettings::USUAL_EPS,
    };

    /// The epsilon of the official code's own Adam (Vahe1994/AQLM, `src/configurable_adam.py`).
    pub const OFFICIAL_EPS: f64 = 1e-6;

    /// The settings of a step with learning rate `lr`, without amsgrad.
    pub fn at(self, lr: f64) -> AdamSettings {
        AdamSettings {
            lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            amsgrad: false,
        }
    }
}

/// How a step follows from the moments m and v of the gradient, at step t (from 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepRule {
    /// p -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps): Adam as PyTorch computes it
    #[default]
    Adam,
    /// The rule of the official PV-Tuning code (Vahe1994/AQLM, `src/configurable_adam.py`): u = m / (sqrt(v)
    /// + eps) without corrections, then p -= c u with c = lr. Both options multiply c.
    Official {
        /// c by the norm of p over the norm of u, unless one of them is zero (LAMB, You et al. 2020, without
        /// a bound). The norms are those of the whole array, before the step.
        lamb: bool,
        /// c by sqrt(1 - beta2^t) / (1 - beta1^t)
        debias: bool,
    },
}

/// An optimizer whose learning rate follows a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// decays and epsilon
    pub decay: AdamDecay,
    /// how a step follows from the moments
    pub rule: StepRule,
}

impl From<AdamDecay> for Optimizer {
    /// PyTorch's Adam.
    fn from(decay: AdamDecay) -> Self {
        Self {
            decay,
            rule: StepRule::Adam,
        }
    }
}
