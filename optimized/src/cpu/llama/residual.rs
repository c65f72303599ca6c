//! What attention and MLP read of the residual stream, and what they add to it.

use aqlm_vocabulary::{LayerId, NormPlace};
use faer::{Accum, Par};
use ndarray::{Array2, ArrayView2};

use super::Block;
use super::fused::apply;
use crate::cpu::product::product_into;

/// The block's norm at this place applied to x, or x where there is none.
pub(super) fn normed_or_same(block: &Block, place: NormPlace, x: &Array2<f32>) -> Array2<f32> {
    block.normed(place, x.view()).unwrap_or_else(|| x.clone())
}

/// `residual` + r n(x W^T + b), with r the block's factor and n the norm at this place; also n's input.
/// Without a norm, `residual` + r (x W^T + b).
pub(super) fn add_branch(
    block: &Block,
    layer: LayerId,
    x: ArrayView2<'_, f32>,
    residual: &Array2<f32>,
    place: NormPlace,
) -> (Array2<f32>, Option<Array2<f32>>) {
    if block.spec().norm(place).is_some() {
        return add_output(block, apply(block, layer, x), residual, place);
    }
    let factor = block.spec().residual_scale as f32;
    let mut y = residual.clone();
    let weight = block.weight(layer).t();
    product_into(y.view_mut(), Accum::Add, x, weight, factor, Par::rayon(0));
    match &block.layer(layer).bias {
        Some(bias) if factor == 1.0 => y += bias,
        Some(bias) => y += &(factor * bias),
        None => {}
    }
    (y, None)
}

/// `residual` + r n(out), with r the block's factor and n the norm at this place; also n's input. Without a
/// norm, `residual` + r out.
pub(super) fn add_output(
    block: &Block,
    out: Array2<f32>,
    residual: &Array2<f32>,
    place: NormPlace,
) -> (Array2<f32>, Option<Array2<f32>>) {
    let factor = block.spec().residual_scale as f32;
    let mut y = residual.clone();
    if let Some(normed) = block.normed(place, out.view()) {
        y.scaled_add(factor, &normed);
        return (y, Some(out));
    }
    y.scaled_add(factor, &out);
    (y, None)
}
