use aqlm_vocabulary::{BlockSpec, GatedMlp, LayerId};
use ndarray::{Array2, ArrayView2};

use super::Block;
use super::fused::{apply_each, gradients_of_each};
use super::gated::{gated, gated_backward};
use super::linear_backward::{ParameterSums, back_all};

/// The values inside a gated MLP, [rows, features].
#[derive(Debug, Clone)]
pub(super) struct Gated {
    /// the gate
    gate: Array2<f32>,
    /// what the activated gate multiplies
    up: Array2<f32>,
    /// the product of both
    pub(super) activated: Array2<f32>,
}

impl Gated {
    /// From the MLP's input. Without rows, no weight is decoded.
    pub(super) fn of(block: &Block, mlp: &GatedMlp, x: ArrayView2<'_, f32>) -> Self {
        let inner = block.spec().shape(mlp.down).1;
        let [gate, up] = if x.nrows() == 0 {
            [0, 1].map(|_| Array2::zeros((0, inner)))
        } else {
            apply_each(block, [mlp.gate, mlp.up], [inner; 2], x)
        };
        Self {
            activated: gated(mlp.activation, gate.view(), up.view()),
            gate,
            up,
        }
    }

    /// Adds the gradients of the layers, given that of the output and the one it gives to the activated gate;
    /// returns that of the input x.
    pub(super) fn backward(
        &self,
        block: &Block,
        mlp: &GatedMlp,
        x: ArrayView2<'_, f32>,
        grad_out: &Array2<f32>,
        mut grad_activated: Array2<f32>,
        sums: &mut ParameterSums<'_>,
    ) -> Array2<f32> {
        sums.add(mlp.down, self.activated.view(), grad_out);
        let grad_gate = gated_backward(
            mlp.activation,
            self.gate.view(),
            self.up.view(),
            &mut grad_activated,
        );
        let gradients = gradients_of_each([mlp.gate, mlp.up], [grad_gate, grad_activated]);
        for (layer, grad) in &gradients {
            sums.add(*layer, x, grad);
        }
        back_all(block, &gradients)
    }

    /// The parts in the order of computation, each with the layer or module whose output it is.
    pub(super) fn parts<'a>(
        &self,
        spec: &'a BlockSpec,
        mlp: &GatedMlp,
    ) -> Vec<(&'a str, ArrayView2<'_, f32>)> {
        let name = |layer: LayerId| spec.linear(layer).name.as_str();
        vec![
            (name(mlp.gate), self.gate.view()),
            (name(mlp.up), self.up.view()),
            (spec.linear(mlp.down).module(), self.activated.view()),
        ]
    }
}
