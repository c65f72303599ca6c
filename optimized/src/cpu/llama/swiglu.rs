use crate::cpu::vectorize::{exp, vectorized};

#[inline(always)]
fn swiglu_body<const FUSED: bool>(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
        *y = g / (1.0 + exp::<FUSED>(-g)) * u;
    }
}

vectorized! {
    /// SwiGLU: silu(gate) up (Shazeer 2020); silu(g) = g / (1 + e^-g).
    pub(super) fn swiglu_slice(y: &mut [f32], gate: &[f32], up: &[f32]) = swiglu_body
}

/// d silu/dg = s (1 + g (1 - s)) with s the sigmoid of g.
#[inline(always)]
fn backward_body<const FUSED: bool>(grad_gate: &mut [f32], grad_y: &mut [f32], gate: &[f32], up: &[f32]) {
    for (((grad_gate, grad), &g), &u) in grad_gate.iter_mut().zip(grad_y).zip(gate).zip(up) {
        let s = 1.0 / (1.0 + exp::<FUSED>(-g));
        *grad_gate = *grad * u * s * (1.0 + g * (1.0 - s));
        *grad = *grad * g * s;
    }
}

vectorized! {
    /// The gradient of gate, and in place of `grad_y` that of up.
    pub(super) fn swiglu_backward_slice(grad_gate: &mut [f32], grad_y: &mut [f32], gate: &[f32], up: &[f32]) = backward_body
}
