use aqlm_vocabulary::{ArchSpec, BlockSpec, Input, LayerId};
use faer::{Accum, Par};
use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;

use super::attention::attention;
use super::rms_norm::rms_norm;
use super::rotary::Turn;
use super::sequences::{parts, sequences_at_once};
use super::swiglu::swiglu;
use super::{Block, Rotary};
use crate::cpu::product::{linear, product_into};
use crate::cpu::zeroed::{zeroed, zeroed_sequences};

/// The intermediate values of a block that its backward pass and the Hessians of its layers need: [rows,
/// features], with a row for each token of each sequence.
#[derive(Debug, Clone)]
pub struct BlockTrace {
    /// rows of one sequence
    pub(super) tokens: usize,
    /// the block's input
    pub(super) x: Array2<f32>,
    /// after the first norm
    pub(super) normed: Array2<f32>,
    /// queries after rotation
    pub(super) q: Array2<f32>,
    /// keys after rotation
    pub(super) k: Array2<f32>,
    /// values
    pub(super) v: Array2<f32>,
    /// result of attention before its output layer
    pub(super) attended: Array2<f32>,
    /// x plus the output of attention
    pub(super) middle: Array2<f32>,
    /// after the second norm
    pub(super) middle_normed: Array2<f32>,
    /// SwiGLU's gate
    pub(super) gate: Array2<f32>,
    /// SwiGLU's other input
    pub(super) up: Array2<f32>,
    /// SwiGLU's result
    pub(super) activated: Array2<f32>,
}

impl BlockTrace {
    /// The input of the linear layers that read `read`, [rows, in_features]: the samples of their Hessian.
    pub fn input(&self, read: Input) -> ArrayView2<'_, f32> {
        match read {
            Input::Attention => self.normed.view(),
            Input::Attended => self.attended.view(),
            Input::Mlp => self.middle_normed.view(),
            Input::Activated => self.activated.view(),
        }
    }
}

/// A Llama block over sequences, [sequences, tokens, hidden] to the same. m = x + O attention(Q n(x), K n(x),
/// V n(x)), y = m + Down swiglu(Gate n'(m), Up n'(m)), with n and n' the two RMSNorms and queries and keys
/// rotated (Touvron et al. 2023, section 2.2).
///
/// # Panics
/// When the shapes of block and x do not fit together, or the rotary tables are shorter than the
/// sequences.
pub fn block_forward(block: &Block, rotary: &Rotary, x: ArrayView3<'_, f32>) -> Array3<f32> {
    let mut y = zeroed_sequences(x.dim());
    for part in parts(&vec![x.dim().1; x.dim().0]) {
        let rows = ndarray::s![part, .., ..];
        let (result, _) = block_forward_traced(block, rotary, x.slice(rows));
        y.slice_mut(rows).assign(&result);
    }
    y
}

/// Peak bytes of activations while `sequences` sequences of `tokens` tokens go through a block and back, part
/// by part. This counts a part's inputs and targets, its [`BlockTrace`], the gradients of the larger half of
/// the block, and for each thread 64 rows of attention's scores and their gradients. It does not count the
/// hidden states kept for all sequences.
pub fn working_bytes(arch: &ArchSpec, sequences: usize, tokens: usize) -> usize {
    let rows = sequences.min(sequences_at_once(tokens)) * tokens;
    let hidden = arch.hidden_size;
    let of_block = |spec: &BlockSpec| {
        let ends = 3 * hidden;
        let mlp = 2 * hidden + 2 * spec.intermediate_size();
        let attention = 3 * hidden + 2 * spec.attention.query_width() + 2 * spec.attention.key_width();
        trace_width(spec) + ends + mlp.max(attention)
    };
    let widest = arch.blocks.iter().map(of_block).max().unwrap_or(0);
    let scores = 2 * 64 * tokens * rayon::current_num_threads();
    (rows * widest + scores) * size_of::<f32>()
}

/// Numbers that a [`BlockTrace`] keeps for each token.
pub(super) fn trace_width(spec: &BlockSpec) -> usize {
    let (queries, keys) = (spec.attention.query_width(), spec.attention.key_width());
    4 * spec.hidden_size() + 2 * queries + 2 * keys + 3 * spec.intermediate_size()
}

/// [`block_forward`] of all sequences at once. Also returns everything that
/// [`block_backward`](super::block_backward) and Hessians need, which takes some twenty times the memory of
/// x.
/// # Panics
/// As [`block_forward`].
pub fn block_forward_traced(
    block: &Block,
    rotary: &Rotary,
    x: ArrayView3<'_, f32>,
) -> (Array3<f32>, BlockTrace) {
    let (sequences, tokens, hidden) = x.dim();
    let x = rows_of(x);
    let (attending, mlp) = (&block.spec().attention, &block.spec().mlp);
    let epsilon = block.spec().norms.norm.epsilon;
    let normed = rms_norm(x.view(), &block.input_layernorm, epsilon);
    let [mut q, mut k, v] =
        [attending.query, attending.key, attending.value].map(|layer| apply(block, layer, normed.view()));
    rotary.rotate(q.view_mut(), tokens, Turn::Forward);
    rotary.rotate(k.view_mut(), tokens, Turn::Forward);
    let attended = attention(attending, q.view(), k.view(), v.view(), tokens);
    let middle = apply_and_add(block, attending.output, attended.view(), &x);
    let middle_normed = rms_norm(middle.view(), &block.post_attention_layernorm, epsilon);
    let gate = apply(block, mlp.gate, middle_normed.view());
    let up = apply(block, mlp.up, middle_normed.view());
    let activated = swiglu(gate.view(), up.view());
    let y = apply_and_add(block, mlp.down, activated.view(), &middle);
    let trace = BlockTrace {
        tokens,
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
    };
    let y = y
        .into_shape_with_order((sequences, tokens, hidden))
        .expect("as many elements as x had");
    (y, trace)
}

/// [sequences, tokens, features] as [rows, features], copied.
pub(super) fn rows_of(x: ArrayView3<'_, f32>) -> Array2<f32> {
    let (sequences, tokens, features) = x.dim();
    let mut rows = zeroed((sequences * tokens, features));
    rows.axis_chunks_iter_mut(Axis(0), tokens.max(1))
        .into_par_iter()
        .zip(x.outer_iter().into_par_iter())
        .for_each(|(mut rows, x)| rows.assign(&x));
    rows
}

/// One of the block's linear layers: x W^T + b.
pub(super) fn apply(block: &Block, layer: LayerId, x: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut y = linear(x, block.weight(layer).view(), Par::rayon(0));
    add_bias(block, layer, &mut y);
    y
}

/// `residual` + x W^T + b.
pub(super) fn apply_and_add(
    block: &Block,
    layer: LayerId,
    x: ArrayView2<'_, f32>,
    residual: &Array2<f32>,
) -> Array2<f32> {
    let mut y = residual.clone();
    product_into(
        y.view_mut(),
        Accum::Add,
        x,
        block.weight(layer).t(),
        1.0,
        Par::rayon(0),
    );
    add_bias(block, layer, &mut y);
    y
}

fn add_bias(block: &Block, layer: LayerId, y: &mut Array2<f32>) {
    if let Some(bias) = &block.layer(layer).bias {
        *y += bias;
    }
}
