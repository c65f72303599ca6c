use aqlm_vocabulary::{LayerKind, LlamaConfig};
use faer::{Accum, Par};
use ndarray::{Array1, Array2, Array3, ArrayView3};

use super::attention::attention_backward;
use super::forward::rows_of;
use super::rms_norm::rms_norm_backward;
use super::rotary::Turn;
use super::swiglu::swiglu_backward;
use super::{Block, BlockTrace, Rotary};
use crate::cpu::product::{add_linear_weight_gradient, linear_input_gradient, product_into};

/// Which gradients are to be computed; those that nobody reads cost up to two thirds of a backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// with respect to the block's input
    pub x: bool,
    /// with respect to the weights, in the order of [`LayerKind::ALL`]
    pub weights: [bool; 7],
    /// with respect to the biases, where there are any
    pub biases: bool,
    /// with respect to the weights of the norms
    pub norms: bool,
}

impl Wanted {
    /// Everything.
    pub fn all() -> Self {
        Self {
            x: true,
            weights: [true; 7],
            biases: true,
            norms: true,
        }
    }
}

/// The gradients of a loss with respect to the parameters of a block, summed over the sequences that were
/// added.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGradients {
    /// with respect to the (decoded) weights, [out_features, in_features], in the order of
    /// [`LayerKind::ALL`]; `None` where not wanted
    pub weights: [Option<Array2<f32>>; 7],
    /// with respect to the biases, `[out_features]`, where wanted and the layer has one
    pub biases: [Option<Array1<f64>>; 7],
    /// with respect to the first norm's weight, `[hidden]`; zero where not wanted
    pub input_layernorm: Array1<f64>,
    /// with respect to the second norm's weight, `[hidden]`; zero where not wanted
    pub post_attention_layernorm: Array1<f64>,
}

impl BlockGradients {
    /// Nothing added yet.
    pub fn zeros(block: &Block, wanted: Wanted) -> Self {
        Self {
            weights: LayerKind::ALL
                .map(|kind| wanted.weights[kind as usize].then(|| Array2::zeros(block.weight(kind).dim()))),
            biases: LayerKind::ALL.map(|kind| {
                let bias = block.layer(kind).bias.as_ref().filter(|_| wanted.biases);
                bias.map(|bias| Array1::zeros(bias.len()))
            }),
            input_layernorm: Array1::zeros(block.input_layernorm.len()),
            post_attention_layernorm: Array1::zeros(block.post_attention_layernorm.len()),
        }
    }
}

/// Adds the gradients of [`block_forward`](super::block_forward) to `sum`, given the one with respect to its
/// result, [sequences, tokens, hidden], and the trace of the same pass; returns the one with respect to its
/// input if wanted.
///
/// # Panics
/// When the arguments do not belong to one pass.
pub fn block_backward(
    config: &LlamaConfig,
    block: &Block,
    rotary: &Rotary,
    trace: &BlockTrace,
    grad_y: ArrayView3<'_, f32>,
    wanted: Wanted,
    sum: &mut BlockGradients,
) -> Option<Array3<f32>> {
    let shape = grad_y.dim();
    let grad_y = rows_of(grad_y);
    let eps = config.rms_norm_eps;
    let par = Par::rayon(0);
    let mut into_parameters = |kind: LayerKind, grad: &Array2<f32>| {
        if let Some(weight) = &mut sum.weights[kind as usize] {
            add_linear_weight_gradient(weight.view_mut(), grad.view(), trace.layer_input(kind), par);
        }
        if let Some(bias) = &mut sum.biases[kind as usize] {
            for row in grad.outer_iter() {
                bias.zip_mut_with(&row, |sum, &grad| *sum += f64::from(grad));
            }
        }
    };
    let back = |kind: LayerKind, grad: &Array2<f32>| {
        linear_input_gradient(grad.view(), block.weight(kind).view(), par)
    };
    let add_back = |to: &mut Array2<f32>, kind: LayerKind, grad: &Array2<f32>| {
        product_into(
            to.view_mut(),
            Accum::Add,
            grad.view(),
            block.weight(kind).view(),
            1.0,
            par,
        );
    };

    // y = middle + Down swiglu(Gate n'(middle), Up n'(middle))
    into_parameters(LayerKind::DownProj, &grad_y);
    let mut grad_up = back(LayerKind::DownProj, &grad_y);
    let grad_gate = swiglu_backward(trace.gate.view(), trace.up.view(), &mut grad_up);
    into_parameters(LayerKind::GateProj, &grad_gate);
    into_parameters(LayerKind::UpProj, &grad_up);
    let mut grad_normed = back(LayerKind::GateProj, &grad_gate);
    add_back(&mut grad_normed, LayerKind::UpProj, &grad_up);
    drop((grad_gate, grad_up));
    let mut grad_middle = grad_y;
    let grad_norm = rms_norm_backward(
        trace.middle.view(),
        &block.post_attention_layernorm,
        eps,
        grad_normed.view(),
        Some(grad_middle.view_mut()),
    );
    if wanted.norms {
        sum.post_attention_layernorm += &grad_norm;
    }

    // middle = x + O attention(Q n(x), K n(x), V n(x))
    into_parameters(LayerKind::OProj, &grad_middle);
    let grad_attended = back(LayerKind::OProj, &grad_middle);
    let [mut grad_q, mut grad_k, grad_v] = attention_backward(
        config,
        trace.q.view(),
        trace.k.view(),
        trace.v.view(),
        trace.tokens,
        grad_attended.view(),
    );
    drop(grad_attended);
    rotary.rotate(grad_q.view_mut(), trace.tokens, Turn::Back);
    rotary.rotate(grad_k.view_mut(), trace.tokens, Turn::Back);
    into_parameters(LayerKind::QProj, &grad_q);
    into_parameters(LayerKind::KProj, &grad_k);
    into_parameters(LayerKind::VProj, &grad_v);
    if !wanted.norms && !wanted.x {
        return None;
    }
    let mut grad_normed = back(LayerKind::QProj, &grad_q);
    add_back(&mut grad_normed, LayerKind::KProj, &grad_k);
    add_back(&mut grad_normed, LayerKind::VProj, &grad_v);
    let mut grad_x = grad_middle;
    let grad_norm = rms_norm_backward(
        trace.x.view(),
        &block.input_layernorm,
        eps,
        grad_normed.view(),
        wanted.x.then(|| grad_x.view_mut()),
    );
    if wanted.norms {
        sum.input_layernorm += &grad_norm;
    }
    wanted.x.then(|| {
        grad_x
            .into_shape_with_order(shape)
            .expect("as many elements as grad_y had")
    })
}
