use serde::{Deserialize, Serialize};

use crate::LayerId;

/// The MLP of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// one gated MLP for all tokens
    Dense(GatedMlp),
    /// experts, of which a router chooses some for each token
    Routed(RoutedMlp),
}

impl Mlp {
    /// The MLP that all tokens pass; `None` for experts.
    pub fn dense(&self) -> Option<&GatedMlp> {
        match self {
            Self::Dense(mlp) => Some(mlp),
            Self::Routed(_) => None,
        }
    }

    /// The experts and their router; `None` for a dense MLP.
    pub fn routed(&self) -> Option<&RoutedMlp> {
        match self {
            Self::Dense(_) => None,
            Self::Routed(mlp) => Some(mlp),
        }
    }

    /// All gated MLPs: the dense one, or the shared expert and then the others.
    pub fn gated(&self) -> Vec<&GatedMlp> {
        match self {
            Self::Dense(mlp) => vec![mlp],
            Self::Routed(RoutedMlp { experts, shared, .. }) => {
                let shared = shared.iter().map(|shared| &shared.mlp);
                shared.chain(experts).collect()
            }
        }
    }

    /// Linear layers that are never quantized: the router, and the gate of a shared expert.
    pub fn kept_dense(&self) -> Vec<LayerId> {
        match self {
            Self::Dense(_) => Vec::new(),
            Self::Routed(RoutedMlp { router, shared, .. }) => {
                let gate = shared.iter().map(|shared| shared.gate);
                std::iter::once(*router).chain(gate).collect()
            }
        }
    }

    /// Gives every gate this activation function.
    pub fn set_activation(&mut self, activation: Activation) {
        match self {
            Self::Dense(mlp) => mlp.activation = activation,
            Self::Routed(RoutedMlp { experts, shared, .. }) => {
                let shared = shared.iter_mut().map(|shared| &mut shared.mlp);
                shared.chain(experts).for_each(|mlp| mlp.activation = activation);
            }
        }
    }
}

/// down(activation(gate x) * up x).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatedMlp {
    /// the gate's activation function
    pub activation: Activation,
    /// the gate, [intermediate, hidden]; the same layer as up where one layer computes both, the gate's rows
    /// first
    pub gate: LayerId,
    /// multiplied by the activated gate, [intermediate, hidden]
    pub up: LayerId,
    /// the MLP's output, [hidden, intermediate]
    pub down: LayerId,
}

/// A mixture of experts (Shazeer et al. 2017): sum of w_e expert_e(x) over the `used` experts with the
/// largest scores in router x. Of equal scores, the expert with the lower index is chosen. The weight w_e is
/// the expert's probability in the softmax of all scores, divided by the sum of the chosen ones if
/// `normalized`. A shared expert adds sigmoid(gate x) shared(x) for every token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedMlp {
    /// scores of the experts, [experts, hidden]
    pub router: LayerId,
    /// the experts; all of one width
    pub experts: Vec<GatedMlp>,
    /// number of experts that a token passes
    pub used: usize,
    /// whether the weights of a token's experts add up to 1
    pub normalized: bool,
    /// the expert that every token passes
    pub shared: Option<SharedExpert>,
}

/// An expert that every token passes, next to the routed ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedExpert {
    /// sigmoid of its output is the expert's factor, [1, hidden]
    pub gate: LayerId,
    /// the expert; its width may differ from that of the others
    pub mlp: GatedMlp,
}

/// The activation function of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x / (1 + e^-x); the MLP is then SwiGLU (Shazeer 2020)
    Silu,
    /// GELU in its tanh approximation (Hendrycks and Gimpel 2016)
    GeluTanh,
}
