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
