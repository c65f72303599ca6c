use aqlm_vocabulary::LayerId;
use faer::{Accum, Par};
use ndarray::{Array1, Array2, ArrayView2};

use super::Block;
use crate::cpu::product::{add_linear_weight_gradient, linear_input_gradient, product_into};

/// Sums of gradients with respect to the parameters of a block's linear layers.
pub(super) struct ParameterSums<'a> {
    /// of the weights, where they are wanted
    pub(super) weights: &'a mut [Option<Array2<f32>>],
    /// of the biases, where they are wanted
    pub(super) biases: &'a mut [Option<Array1<f64>>],
}

impl ParameterSums<'_> {
    /// Adds the gradients of a layer's parameters, given its input and the gradient of its output.
    pub(super) fn add(&mut self, layer: LayerId, x: ArrayView2<'_, f32>, grad: &Array2<f32>) {
        if let Some(weight) = &mut self.weights[layer.index()] {
            add_linear_weight_gradient(weight.view_mut(), grad.view(), x, Par::rayon(0));
        }
        if let Some(bias) = &mut self.biases[layer.index()] {
            for row in grad.outer_iter() {
                bias.zip_mut_with(&row, |sum, &grad| *sum += f64::from(grad));
            }
        }
    }
}

/// The gradient with respect to a layer's input, given that of its output.
pub(super) fn back(block: &Block, layer: LayerId, grad: &Array2<f32>) -> Array2<f32> {
    linear_input_gradient(grad.view(), block.weight(layer).view(), Par::rayon(0))
}

/// Adds [`back`] to `to`.
pub(super) fn add_back(block: &Block, to: &mut Array2<f32>, layer: LayerId, grad: &Array2<f32>) {
    product_into(
        to.view_mut(),
        Accum::Add,
        grad.view(),
        block.weight(layer).view(),
        1.0,
        Par::rayon(0),
    );
}

/// The gradient with respect to the input of layers that read the same.
///
/// # Panics
/// Without layers.
pub(super) fn back_all(block: &Block, gradients: &[(LayerId, Array2<f32>)]) -> Array2<f32> {
    let mut of_layers = gradients.iter();
    let (layer, grad) = of_layers.next().expect("at least one layer");
    let mut sum = back(block, *layer, grad);
    for (layer, grad) in of_layers {
        add_back(block, &mut sum, *layer, grad);
    }
    sum
}
