use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::vectorize::{exp, vectorized};
use crate::cpu::zeroed::zeroed;

/// Values of one task.
const LEN: usize = 1 << 14;

/// SwiGLU: silu(gate) up, all of one shape (Shazeer 2020); silu(g) = g / (1 + e^-g).
pub(super) fn swiglu(gate: ArrayView2<'_, f32>, up: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut y = zeroed(gate.dim());
    elements_mut(&mut y)
        .par_chunks_mut(LEN)
        .zip(elements(&gate).par_chunks(LEN))
        .zip(elements(&up).par_chunks(LEN))
        .for_each(|((y, gate), up)| swiglu_slice(y, gate, up));
    y
}

/// Gradients of [`swiglu`], given the gradient of its result. The gradient of up replaces `grad_y`, the
/// gradient of gate is returned. d silu/dg = s (1 + g (1 - s)) with s the sigmoid of g.
pub(super) fn swiglu_backward(
    gate: ArrayView2<'_, f32>,
    up: ArrayView2<'_, f32>,
    grad_y: &mut Array2<f32>,
) -> Array2<f32> {
    let mut grad_gate = zeroed(gate.dim());
    elements_mut(&mut grad_gate)
        .par_chunks_mut(LEN)
        .zip(elements_mut(grad_y).par_chunks_mut(LEN))
        .zip(elements(&gate).par_chunks(LEN).zip(elements(&up).par_chunks(LEN)))
        .for_each(|((grad_gate, grad_y), (gate, up))| swiglu_backward_slice(grad_gate, grad_y, gate, up));
    grad_gate
}

#[inline(always)]
fn swiglu_body<const FUSED: bool>(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
        *y = g / (1.0 + exp::<FUSED>(-g)) * u;
    }
}

vectorized! {
    /// silu(gate) up.
    pub(super) fn swiglu_slice(y: &mut [f32], gate: &[f32], up: &[f32]) = swiglu_body
}

#[inline(always)]
fn backward_body<const FUSED: bool>(grad_gate: &mut [f32], grad_y: &mut [f32], gate: &[f32], up: &[f32]) {
    for (((grad_gate, grad), &g), &u) in grad_gate.iter_mut().zip(grad_y).zip(gate).zip(up) {
        let s = 1.0 / (1.0 + exp::<FUSED>(-g));
        *grad_gate = *grad * u * s * (1.0 + g * (1.0 - s));
        *grad = *grad * g * s;
    }
}

vectorized! {
    fn swiglu_backward_slice(grad_gate: &mut [f32], grad_y: &mut [f32], gate: &[f32], up: &[f32]) = backward_body
}
