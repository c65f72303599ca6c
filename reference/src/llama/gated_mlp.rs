use ndarray::{Array2, ArrayView2};

use super::Block;
use super::fused::{apply, apply_each, each_backward};
use super::gated::{gated, gated_backward};
use super::linear::{LinearGradients, linear_backward};
use aqlm_vocabulary::{GatedMlp, LayerId};

/// Gradients with respect to the parameters of linear layers.
pub(super) type LayerGradients = Vec<(LayerId, LinearGradients)>;

/// The values inside a gated MLP, [tokens, features].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gated {
    /// the gate
    gate: Array2<f64>,
    /// what the activated gate multiplies
    up: Array2<f64>,
    /// the product of both
    pub(super) activated: Array2<f64>,
    /// the MLP's output
    pub(super) out: Array2<f64>,
}

impl Gated {
    /// down(activation(gate x) * up x).
    pub(super) fn of(block: &Block, mlp: &GatedMlp, x: ArrayView2<f64>) -> Self {
        let inner = block.spec().shape(mlp.down).1;
        let [gate, up] = apply_each(block, [mlp.gate, mlp.up], [inner; 2], x);
        let activated = gated(mlp.activation, gate.view(), up.view());
        Self {
            out: apply(block, mlp.down, activated.view()),
            gate,
            up,
            activated,
        }
    }

    /// Given the gradient of the output, the gradient with respect to x and those of the layers.
    pub(super) fn backward(
        &self,
        block: &Block,
        mlp: &GatedMlp,
        x: ArrayView2<f64>,
        grad_out: ArrayView2<f64>,
    ) -> (Array2<f64>, LayerGradients) {
        let down = linear_backward(self.activated.view(), block.weight(mlp.down).view(), grad_out);
        let (grad_gate, grad_up) =
            gated_backward(mlp.activation, self.gate.view(), self.up.view(), down.x.view());
        let grads = [grad_gate.view(), grad_up.view()];
        let (grad_x, mut gradients) = each_backward(block, [mlp.gate, mlp.up], x, grads);
        gradients.push((mlp.down, down));
        (grad_x, gradients)
    }
}
