use ndarray::{Array2, ArrayView2};

use super::Block;
use super::experts::Routed;
use super::gated_mlp::{Gated, LayerGradients};
use aqlm_vocabulary::{Input, Mlp};

/// The values inside a block's MLP.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one to a trace, whose arrays are far larger"
)]
pub(super) enum Inside {
    /// of a dense MLP
    Dense(Gated),
    /// of experts and their router
    Routed(Routed),
}

impl Inside {
    /// From the MLP's input, [tokens, hidden].
    pub(super) fn of(block: &Block, x: ArrayView2<f64>) -> Self {
        match &block.spec().mlp {
            Mlp::Dense(mlp) => Self::Dense(Gated::of(block, mlp, x)),
            Mlp::Routed(mlp) => Self::Routed(Routed::of(block, mlp, x)),
        }
    }

    /// The MLP's output, [tokens, hidden].
    pub(super) fn out(&self) -> &Array2<f64> {
        match self {
            Self::Dense(inside) => &inside.out,
            Self::Routed(inside) => &inside.out,
        }
    }

    /// The input of linear layers inside the MLP.
    pub(super) fn input(&self, read: Input) -> Option<ArrayView2<'_, f64>> {
        match self {
            Self::Dense(inside) => (read == Input::Activated).then(|| inside.activated.view()),
            Self::Routed(inside) => inside.input(read),
        }
    }

    /// Given the gradient of the output, the gradient with respect to the input x and those of the layers.
    pub(super) fn backward(
        &self,
        block: &Block,
        x: ArrayView2<f64>,
        grad_out: ArrayView2<f64>,
    ) -> (Array2<f64>, LayerGradients) {
        match (self, &block.spec().mlp) {
            (Self::Dense(inside), Mlp::Dense(mlp)) => inside.backward(block, mlp, x, grad_out),
            (Self::Routed(inside), Mlp::Routed(mlp)) => inside.backward(block, mlp, x, grad_out),
            _ => panic!("a trace of another block"),
        }
    }
}
