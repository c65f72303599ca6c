use aqlm_vocabulary::{ArchSpec, BlockNorm, BlockSpec, Input, NormPlace};
use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;

use super::attention::attention;
use super::fused::{apply_each, is_one};
use super::mlp::{NormedMlp, add_mlp, inside_width, passing_width};
use super::residual::{add_branch, normed_or_same};
use super::rotary::Turn;
use super::sequences::{parts, sequences_at_once};
use super::{Block, Rotary};
use crate::cpu::zeroed::{zeroed, zeroed_sequences};

/// The intermediate values of a block that its backward pass and the Hessians of its layers need: [rows,
/// features], with a row for each token of each sequence.
#[derive(Debug, Clone)]
pub struct BlockTrace {
    /// rows of one sequence
    pub(super) tokens: usize,
    /// the block's input
    pub(super) x: Array2<f32>,
    /// after the norm before attention
    pub(super) normed: Array2<f32>,
    /// queries, keys and values
    pub(super) projected: Projected,
    /// result of attention before its output layer
    pub(super) attended: Array2<f32>,
    /// the output of attention before the norm behind it, if there is one
    pub(super) mixed: Option<Array2<f32>>,
    /// x plus what attention adds
    pub(super) middle: Array2<f32>,
    /// the values inside the MLP
    pub(super) mlp: NormedMlp,
    /// the output of the MLP before the norm behind it, if there is one
    pub(super) out: Option<Array2<f32>>,
}

impl BlockTrace {
    /// The input of the linear layers that read `read`, [rows, in_features]: the samples of their Hessian. An
    /// expert's layers have the rows that are routed to it.
    ///
    /// # Panics
    /// When no layer of the block reads that.
    pub fn input(&self, read: Input) -> ArrayView2<'_, f32> {
        match read {
            Input::Attention => self.normed.view(),
            Input::Attended => self.attended.view(),
            Input::Mlp => self.mlp.normed.view(),
            Input::Activated | Input::Expert(_) | Input::ExpertActivated(_) => {
                self.mlp.input(read).expect("an input of the block's layers")
            }
        }
    }
}

/// Queries, keys and values of some rows.
#[derive(Debug, Clone)]
pub(super) struct Projected {
    /// queries and keys before their norms, where there are any
    pub(super) raw: [Option<Array2<f32>>; 2],
    /// queries after rotation
    pub(super) q: Array2<f32>,
    /// keys after rotation
    pub(super) k: Array2<f32>,
    /// values
    pub(super) v: Array2<f32>,
}

impl Projected {
    /// From the input of attention; queries and keys are not rotated yet.
    pub(super) fn unrotated(block: &Block, normed: ArrayView2<'_, f32>) -> Self {
        let (layers, widths) = block.spec().attention.projections();
        let [q, k, v] = apply_each(block, layers, widths, normed);
        let of = |place, raw: Array2<f32>| match block.normed(place, raw.view()) {
            Some(normed) => (normed, Some(raw)),
            None => (raw, None),
        };
        let ((q, raw_q), (k, raw_k)) = (of(NormPlace::Query, q), of(NormPlace::Key, k));
        Self {
            raw: [raw_q, raw_k],
            q,
            k,
            v,
        }
    }
}

/// A transformer block over sequences, [sequences, tokens, hidden] to the same.
///
/// m = x + r a(O attention(Q n(x), K n(x), V n(x))), y = m + r b(Down gated(Gate n'(m), Up n'(m))). n, a, n'
/// and b are RMSNorms, and r is a factor. In a Llama a and b are absent and r is 1. Queries and keys are
/// normed where the block says so, and rotated (Touvron et al. 2023, section 2.2). The MLP may be a mixture
/// of experts ([`RoutedMlp`](aqlm_vocabulary::RoutedMlp)).
///
/// # Panics When the shapes of block and x do not fit together, or the rotary tables are not the block's or
/// shorter than the sequences.
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
        let (queries, keys) = (spec.attention.query_width(), spec.attention.key_width());
        let mut attention = 3 * hidden + 2 * queries + 2 * keys;
        // the parts of a fused layer stand side by side before they become one
        if is_one(&spec.attention.projections().0) {
            attention += queries + 2 * keys;
        }
        trace_width(spec) + ends + passing_width(spec).max(attention)
    };
    let widest = arch.blocks.iter().map(of_block).max().unwrap_or(0);
    let of_scores = |spec: &BlockSpec| if spec.attention.cap.is_some() { 3 } else { 2 };
    let arrays = arch.blocks.iter().map(of_scores).max().unwrap_or(0);
    let scores = arrays * 64 * tokens * rayon::current_num_threads();
    (rows * widest + scores) * size_of::<f32>()
}

/// Numbers that a [`BlockTrace`] keeps for each token.
pub(super) fn trace_width(spec: &BlockSpec) -> usize {
    let (queries, keys) = (spec.attention.query_width(), spec.attention.key_width());
    // what a norm inside the block was applied to
    let kept = |norm: &BlockNorm| match norm.place {
        NormPlace::BeforeAttention | NormPlace::BeforeMlp => 0,
        NormPlace::Query => queries,
        NormPlace::Key => keys,
        NormPlace::AfterAttention | NormPlace::AfterMlp => spec.hidden_size(),
    };
    let raw: usize = spec.norms.iter().map(kept).sum();
    4 * spec.hidden_size() + 2 * queries + 2 * keys + inside_width(spec) + raw
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
    let attending = &block.spec().attention;
    let normed = normed_or_same(block, NormPlace::BeforeAttention, &x);
    let mut projected = Projected::unrotated(block, normed.view());
    rotary.rotate(attending, projected.q.view_mut(), tokens, Turn::Forward);
    rotary.rotate(attending, projected.k.view_mut(), tokens, Turn::Forward);
    let Projected { q, k, v, .. } = &projected;
    let attended = attention(attending, q.view(), k.view(), v.view(), tokens);
    let (middle, mixed) = add_branch(
        block,
        attending.output,
        attended.view(),
        &x,
        NormPlace::AfterAttention,
    );
    let (y, mlp, out) = add_mlp(block, &middle);
    let trace = BlockTrace {
        tokens,
        x,
        normed,
        projected,
        attended,
        mixed,
        middle,
        mlp,
        out,
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
