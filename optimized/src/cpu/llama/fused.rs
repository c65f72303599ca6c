//! Linear layers that read the same input, each with its own weight, or as parts of one layer whose outputs
//! stand one after another.

use aqlm_vocabulary::LayerId;
use faer::Par;
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use super::Block;
use crate::cpu::product::linear;

/// Whether these are parts of one layer.
pub(super) fn is_one(layers: &[LayerId]) -> bool {
    layers.len() > 1 && layers.iter().all(|layer| layer == &layers[0])
}

/// The outputs of the layers, [rows, width] each, standard layout.
pub(super) fn apply_each<const N: usize>(
    block: &Block,
    layers: [LayerId; N],
    widths: [usize; N],
    x: ArrayView2<'_, f32>,
) -> [Array2<f32>; N] {
    if !is_one(&layers) {
        return layers.map(|layer| apply(block, layer, x));
    }
    let all = apply(block, layers[0], x);
    let mut start = 0;
    widths.map(|width| {
        start += width;
        all.slice(s![.., start - width..start])
            .as_standard_layout()
            .into_owned()
    })
}

/// The different layers, each with the gradient of its outputs, from the gradients of the outputs of
/// [`apply_each`].
pub(super) fn gradients_of_each<const N: usize>(
    layers: [LayerId; N],
    grads: [Array2<f32>; N],
) -> Vec<(LayerId, Array2<f32>)> {
    if !is_one(&layers) {
        return layers.into_iter().zip(grads).collect();
    }
    let parts = grads.each_ref().map(|grad| grad.view());
    let all = concatenate(Axis(1), &parts).expect("gradients of the same rows");
    vec![(layers[0], all.as_standard_layout().into_owned())]
}

/// One of the block's linear layers: x W^T + b.
pub(super) fn apply(block: &Block, layer: LayerId, x: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut y = linear(x, block.weight(layer).view(), Par::rayon(0));
    if let Some(bias) = &block.layer(layer).bias {
        y += bias;
    }
    y
}
