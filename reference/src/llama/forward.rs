use ndarray::{Array2, ArrayView2};

use super::attention::attention;
use super::linear::linear;
use super::rms_norm::rms_norm;
use super::swiglu::swiglu;
use super::{Block, Rotary};
use aqlm_vocabulary::{Input, LayerId};

/// The values inside a block that its backward pass and the Hessians of its layers need, one row per token.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTrace {
    /// the block's input, [tokens, hidden]
    pub(super) x: Array2<f64>,
    /// after the first norm, [tokens, hidden]
    pub(super) normed: Array2<f64>,
    /// queries after rotation, [tokens, heads x head_dim]
    pub(super) q: Array2<f64>,
    /// keys after rotation, [tokens, kv_heads x head_dim]
    pub(super) k: Array2<f64>,
    /// values, [tokens, kv_heads x head_dim]
    pub(super) v: Array2<f64>,
    /// attention's weighted averages of values, [tokens, heads x head_dim]
    pub(super) attended: Array2<f64>,
    /// x plus the output of attention, [tokens, hidden]
    pub(super) middle: Array2<f64>,
    /// after the second norm, [tokens, hidden]
    pub(super) middle_normed: Array2<f64>,
    /// SwiGLU's gate, [tokens, intermediate]
    pub(super) gate: Array2<f64>,
    /// SwiGLU's other input, [tokens, intermediate]
    pub(super) up: Array2<f64>,
    /// SwiGLU's result, [tokens, intermediate]
    pub(super) activated: Array2<f64>,
}

impl BlockTrace {
    /// The input of the linear layers that read `read`, [tokens, in_features]: the samples of their Hessian.
    pub fn input(&self, read: Input) -> ArrayView2<'_, f64> {
        match read {
            Input::Attention => self.normed.view(),
            Input::Attended => self.attended.view(),
            Input::Mlp => self.middle_normed.view(),
            Input::Activated => self.activated.view(),
        }
    }
}

/// A Llama block over one sequence: [tokens, hidden] to [tokens, hidden].
///
/// m = x + O attention(Q n(x), K n(x), V n(x)), y = m + Down swiglu(Gate n'(m), Up n'(m)), with n and n' the
/// two RMSNorms and queries and keys rotated (Touvron et al. 2023, section 2.2).
///
/// # Panics
/// When the shapes of block and x do not fit together, or the rotary tables are shorter than the
/// sequence.
pub fn block_forward(block: &Block, rotary: &Rotary, x: ArrayView2<f64>) -> Array2<f64> {
    block_forward_traced(block, rotary, x).0
}

/// [`block_forward`], also returning everything that [`block_backward`](super::block_backward) needs.
///
/// # Panics
/// As [`block_forward`].
pub fn block_forward_traced(block: &Block, rotary: &Rotary, x: ArrayView2<f64>) -> (Array2<f64>, BlockTrace) {
    let spec = block.spec();
    let epsilon = spec.norms.norm.epsilon;
    let normed = rms_norm(x, block.input_layernorm.view(), epsilon);
    let (q, k, v) = rotated_projections(block, rotary, normed.view(), 0);
    let attended = attention(&spec.attention, q.view(), k.view(), v.view(), 0);
    let middle = &x + &apply(block, spec.attention.output, attended.view());

    let middle_normed = rms_norm(middle.view(), block.post_attention_layernorm.view(), epsilon);
    let gate = apply(block, spec.mlp.gate, middle_normed.view());
    let up = apply(block, spec.mlp.up, middle_normed.view());
    let activated = swiglu(gate.view(), up.view());
    let y = &middle + &apply(block, spec.mlp.down, activated.view());

    let x = x.to_owned();
    (
        y,
        BlockTrace {
            x,
            normed,
            q,
            k,
            v,
            attended,
            middle,
            middle_normed,
            gate,
            up,
            activated,
        },
    )
}

/// Queries, keys and values from normed inputs whose first row is at position `first`.
pub(super) fn rotated_projections(
    block: &Block,
    rotary: &Rotary,
    normed: ArrayView2<f64>,
    first: usize,
) -> (Array2<f64>, Array2<f64>, Array2<f64>) {
    let spec = &block.spec().attention;
    let [mut q, mut k, v] = [spec.query, spec.key, spec.value].map(|layer| apply(block, layer, normed));
    rotary.rotate(&mut q, first);
    rotary.rotate(&mut k, first);
    (q, k, v)
}

/// Applies one of the block's linear layers.
pub(super) fn apply(block: &Block, layer: LayerId, x: ArrayView2<f64>) -> Array2<f64> {
    linear(
        x,
        block.weight(layer).view(),
        block.layer(layer).bias.as_ref().map(|bias| bias.view()),
    )
}
