use crate::cpu::vectorize::{exp, vectorized};

/// 2 sqrt(2/pi).
const TWICE_ROOT: f32 = 1.595_769_2;

/// The cubic term of GELU's approximation.
const CUBIC: f32 = 0.044_715;

/// The GELU of tanh (Hendrycks and Gimpel 2016), g/2 (1 + tanh(z)), is g s with s the sigmoid of 2z, in which
/// nothing cancels; z = sqrt(2/pi) (g + 0.044715 g^3).
#[inline(always)]
fn share<const FUSED: bool>(g: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-TWICE_ROOT * (g + CUBIC * g * g * g)))
}

#[inline(always)]
fn geglu_body<const FUSED: bool>(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
        *y = g * share::<FUSED>(g) * u;
    }
}

vectorized! {
    /// GeGLU: gelu(gate) up (Shazeer 2020).
    pub(super) fn geglu_slice(y: &mut [f32], gate: &[f32], up: &[f32]) = geglu_body
}

/// d gelu/dg = s + g s (1 - s) d2z/dg.
#[inline(always)]
fn backward_body<const FUSED: bool>(grad_gate: &mut [f32], grad_y: &mut [f32], gate: &[f32], up: &[f32]) {
    for (((grad_gate, grad), &g), &u) in grad_gate.iter_mut().zip(grad_y).zip(gate).zip(up) {
        let s = share::<FUSED>(g);
        let rise = TWICE_ROOT * (1.0 + 3.0 * CUBIC * g * g);
        *grad_gate = *grad * u * (s + g * s * (1.0 - s) * rise);
        *grad = *grad * g * s;
    }
}

vectorized! {
    /// The gradient of gate, and in place of `grad_y` that of up.
    pub(super) fn geglu_backward_slice(grad_gate: &mut [f32], grad_y: &mut [f32], gate: &[f32], up: &[f32]) = backward_body
}
