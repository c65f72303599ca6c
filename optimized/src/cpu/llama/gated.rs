use aqlm_vocabulary::Activation;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::geglu::{geglu_backward_slice, geglu_slice};
use super::swiglu::{swiglu_backward_slice, swiglu_slice};
use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::zeroed::zeroed;

/// Values of one task.
const LEN: usize = 1 << 14;

/// activation(gate) up, all of one shape, standard layout.
pub(super) fn gated(
    activation: Activation,
    gate: ArrayView2<'_, f32>,
    up: ArrayView2<'_, f32>,
) -> Array2<f32> {
    let mut y = zeroed(gate.dim());
    elements_mut(&mut y)
        .par_chunks_mut(LEN)
        .zip(elements(&gate).par_chunks(LEN))
        .zip(elements(&up).par_chunks(LEN))
        .for_each(|((y, gate), up)| gated_slice(activation, y, gate, up));
    y
}

/// [`gated`] of slices.
pub(super) fn gated_slice(activation: Activation, y: &mut [f32], gate: &[f32], up: &[f32]) {
    match activation {
        Activation::Silu => swiglu_slice(y, gate, up),
        Activation::GeluTanh => geglu_slice(y, gate, up),
    }
}

/// Gradients of [`gated`], given the gradient of its result. The gradient of up replaces `grad_y`, the
/// gradient of gate is returned.
pub(super) fn gated_backward(
    activation: Activation,
    gate: ArrayView2<'_, f32>,
    up: ArrayView2<'_, f32>,
    grad_y: &mut Array2<f32>,
) -> Array2<f32> {
    let of_slice = match activation {
        Activation::Silu => swiglu_backward_slice,
        Activation::GeluTanh => geglu_backward_slice,
    };
    let mut grad_gate = zeroed(gate.dim());
    elements_mut(&mut grad_gate)
        .par_chunks_mut(LEN)
        .zip(elements_mut(grad_y).par_chunks_mut(LEN))
        .zip(elements(&gate).par_chunks(LEN).zip(elements(&up).par_chunks(LEN)))
        .for_each(|((grad_gate, grad_y), (gate, up))| of_slice(grad_gate, grad_y, gate, up));
    grad_gate
}
