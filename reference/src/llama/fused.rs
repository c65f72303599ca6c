//! Linear layers that read the same input, each with its own weight, or as parts of one layer whose outputs
//! stand one after another.

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use super::Block;
use super::linear::{LinearGradients, linear, linear_backward};
use aqlm_vocabulary::LayerId;

/// Whether these are parts of one layer.
fn is_one(layers: &[LayerId]) -> bool {
    layers.len() > 1 && layers.iter().all(|layer| layer == &layers[0])
}

/// The outputs of the layers, [tokens, width] each.
pub(super) fn apply_each<const N: usize>(
    block: &Block,
    layers: [LayerId; N],
    widths: [usize; N],
    x: ArrayView2<f64>,
) -> [Array2<f64>; N] {
    if !is_one(&layers) {
        return layers.map(|layer| apply(block, layer, x));
    }
    let all = apply(block, layers[0], x);
    let mut start = 0;
    widths.map(|width| {
        start += width;
        all.slice(s![.., start - width..start]).to_owned()
    })
}

/// Given the gradients of the outputs of [`apply_each`], the gradient with respect to x, and those with
/// respect to the parameters of each different layer.
pub(super) fn each_backward<const N: usize>(
    block: &Block,
    layers: [LayerId; N],
    x: ArrayView2<f64>,
    grads: [ArrayView2<f64>; N],
) -> (Array2<f64>, Vec<(LayerId, LinearGradients)>) {
    let one =
        |layer: LayerId, grad: ArrayView2<f64>| (layer, linear_backward(x, block.weight(layer).view(), grad));
    let gradients: Vec<_> = if is_one(&layers) {
        let all = concatenate(Axis(1), &grads).expect("gradients of the same rows");
        vec![one(layers[0], all.view())]
    } else {
        layers
            .into_iter()
            .zip(grads)
            .map(|(layer, grad)| one(layer, grad))
            .collect()
    };
    let mut sum = Array2::zeros(x.dim());
    for (_, gradients) in &gradients {
        sum += &gradients.x;
    }
    (sum, gradients)
}

/// Applies one of the block's linear layers.
pub(super) fn apply(block: &Block, layer: LayerId, x: ArrayView2<f64>) -> Array2<f64> {
    linear(
        x,
        block.weight(layer).view(),
        block.layer(layer).bias.as_ref().map(|bias| bias.view()),
    )
}
