use aqlm_vocabulary::{BlockSpec, LayerId};
use faer::{Accum, Par};
use ndarray::{Array1, Array2, Array3, ArrayView3};

use super::attention::attention_backward;
use super::forward::rows_of;
use super::rms_norm::rms_norm_backward;
use super::rotary::Turn;
use super::swiglu::swiglu_backward;
use super::{Block, BlockTrace, Rotary};
use crate::cpu::product::{add_linear_weight_gradient, linear_input_gradient, product_into};

/// Which gradients to compute. Unused gradients can cost up to two thirds of a backward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// with respect to the block's input
    pub x: bool,
    /// with respect to the weights, in the order of the spec
    pub weights: Vec<bool>,
    /// with respect to the biases, where there are any
    pub biases: bool,
    /// with respect to the weights of the norms
    pub norms: bool,
}

impl Wanted {
    /// All gradients of a block.
    pub fn all(spec: &BlockSpec) -> Self {
        Self {
            x: true,
            weights: vec![true; spec.linears.len()],
            biases: true,
            norms: true,
        }
    }
}

/// The gradients of a loss with respect to the parameters of a block, summed over the sequences added.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGradients {
    /// with respect to the (decoded) weights, [out_features, in_features], in the order of the spec; `None`
    /// if not wanted
    pub weights: Vec<Option<Array2<f32>>>,
    /// with respect to the biases, `[out_features]`, if wanted and the layer has one
    pub biases: Vec<Option<Array1<f64>>>,
    /// with respect to the first norm's weight, `[hidden]`; zero if not wanted
    pub input_layernorm: Array1<f64>,
    /// with respect to the second norm's weight, `[hidden]`; zero if not wanted
    pub post_attention_layernorm: Array1<f64>,
}

impl BlockGradients {
    /// Zero gradients, before the first sequence.
    pub fn zeros(block: &Block, wanted: &Wanted) -> Self {
        let weight =
            |layer: LayerId| wanted.weights[layer.index()].then(|| Array2::zeros(block.weight(layer).dim()));
        let bias = |layer: LayerId| {
            let bias = block.layer(layer).bias.as_ref().filter(|_| wanted.biases);
            bias.map(|bias| Array1::zeros(bias.len()))
        };
        Self {
            weights: block.spec().layers().map(weight).collect(),
            biases: block.spec().layers().map(bias).collect(),
            input_layernorm: Array1::zeros(block.input_layernorm.len()),
            post_attention_layernorm: Array1::zeros(block.post_attention_layernorm.len()),
        }
    }
}

/// Adds the gradients of [`block_forward`](super::block_forward) to `sum`, given the gradient of its result,
/// [sequences, tokens, hidden], and the trace of the same pass. Returns the gradient of its input if wanted.
///
/// # Panics
/// When the arguments come from different passes.
pub fn block_backward(
    block: &Block,
    rotary: &Rotary,
    trace: &BlockTrace,
    grad_y: ArrayView3<'_, f32>,
    wanted: &Wanted,
    sum: &mut BlockGradients,
) -> Option<Array3<f32>> {
    let shape = grad_y.dim();
    let grad_y = rows_of(grad_y);
    let spec = block.spec();
    let (attention, mlp) = (&spec.attention, &spec.mlp);
    let eps = spec.norms.norm.epsilon;
    let par = Par::rayon(0);
    let mut into_parameters = |layer: LayerId, grad: &Array2<f32>| {
        if let Some(weight) = &mut sum.weights[layer.index()] {
            let x = trace.input(spec.linear(layer).reads);
            add_linear_weight_gradient(weight.view_mut(), grad.view(), x, par);
        }
        if let Some(bias) = &mut sum.biases[layer.index()] {
            for row in grad.outer_iter() {
                bias.zip_mut_with(&row, |sum, &grad| *sum += f64::from(grad));
            }
        }
    };
    let back = |layer: LayerId, grad: &Array2<f32>| {
        linear_input_gradient(grad.view(), block.weight(layer).view(), par)
    };
    let add_back = |to: &mut Array2<f32>, layer: LayerId, grad: &Array2<f32>| {
        product_into(
            to.view_mut(),
            Accum::Add,
            grad.view(),
            block.weight(layer).view(),
            1.0,
            par,
        );
    };

    // y = middle + Down swiglu(Gate n'(middle), Up n'(middle))
    into_parameters(mlp.down, &grad_y);
    let mut grad_up = back(mlp.down, &grad_y);
    let grad_gate = swiglu_backward(trace.gate.view(), trace.up.view(), &mut grad_up);
    into_parameters(mlp.gate, &grad_gate);
    into_parameters(mlp.up, &grad_up);
    let mut grad_normed = back(mlp.gate, &grad_gate);
    add_back(&mut grad_normed, mlp.up, &grad_up);
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
    into_parameters(attention.output, &grad_middle);
    let grad_attended = back(attention.output, &grad_middle);
    let [mut grad_q, mut grad_k, grad_v] = attention_backward(
        attention,
        trace.q.view(),
        trace.k.view(),
        trace.v.view(),
        trace.tokens,
        grad_attended.view(),
    );
    drop(grad_attended);
    rotary.rotate(grad_q.view_mut(), trace.tokens, Turn::Back);
    rotary.rotate(grad_k.view_mut(), trace.tokens, Turn::Back);
    into_parameters(attention.query, &grad_q);
    into_parameters(attention.key, &grad_k);
    into_parameters(attention.value, &grad_v);
    if !wanted.norms && !wanted.x {
        return None;
    }
    let mut grad_normed = back(attention.query, &grad_q);
    add_back(&mut grad_normed, attention.key, &grad_k);
    add_back(&mut grad_normed, attention.value, &grad_v);
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
