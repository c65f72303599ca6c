use ndarray::{Array2, ArrayView2};

use super::geglu::{geglu, geglu_backward};
use super::swiglu::{swiglu, swiglu_backward};
use aqlm_vocabulary::Activation;

/// activation(gate) * up, all [tokens, intermediate].
pub(super) fn gated(activation: Activation, gate: ArrayView2<f64>, up: ArrayView2<f64>) -> Array2<f64> {
    match activation {
        Activation::Silu => swiglu(gate, up),
        Activation::GeluTanh => geglu(gate, up),
    }
}

/// Gradients of [`gated`] with respect to gate and up, given the gradient with respect to its result.
pub(super) fn gated_backward(
    activation: Activation,
    gate: ArrayView2<f64>,
    up: ArrayView2<f64>,
    grad_y: ArrayView2<f64>,
) -> (Array2<f64>, Array2<f64>) {
    match activation {
        Activation::Silu => swiglu_backward(gate, up, grad_y),
        Activation::GeluTanh => geglu_backward(gate, up, grad_y),
    }
}
