use ndarray::{Array2, ArrayView2};

use super::attention::attention;
use super::fused::{apply, apply_each};
use super::mlp::Inside;
use super::norm::normed;
use super::{Block, Rotary};
use aqlm_vocabulary::{Input, NormPlace};

/// The values inside a block that its backward pass and the Hessians of its layers need, one row per token.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTrace {
    /// the block's input, [tokens, hidden]
    pub(super) x: Array2<f64>,
    /// after the norm before attention, [tokens, hidden]
    pub(super) normed: Array2<f64>,
    /// queries, keys and values
    pub(super) projected: Projected,
    /// attention's weighted averages of values, [tokens, heads x head_dim]
    pub(super) attended: Array2<f64>,
    /// the output of attention before a norm behind it, [tokens, hidden]
    pub(super) mixed: Array2<f64>,
    /// x plus what attention adds, [tokens, hidden]
    pub(super) middle: Array2<f64>,
    /// after the norm before the MLP, [tokens, hidden]
    pub(super) middle_normed: Array2<f64>,
    /// the values inside the MLP, with its output before a norm behind it
    pub(super) inside: Inside,
}

impl BlockTrace {
    /// The input of the linear layers that read `read`, [tokens, in_features]: the samples of their Hessian.
    ///
    /// # Panics
    /// When no layer of the block reads that.
    pub fn input(&self, read: Input) -> ArrayView2<'_, f64> {
        match read {
            Input::Attention => self.normed.view(),
            Input::Attended => self.attended.view(),
            Input::Mlp => self.middle_normed.view(),
            Input::Activated | Input::Expert(_) | Input::ExpertActivated(_) => {
                self.inside.input(read).expect("an input of the block's layers")
            }
        }
    }
}

/// A transformer block over one sequence: [tokens, hidden] to [tokens, hidden].
///
/// m = x + r a(O attention(Q n(x), K n(x), V n(x))), y = m + r b(Down gated(Gate n'(m), Up n'(m))). n, a, n'
/// and b are RMSNorms, and r is a factor. In a Llama a and b are absent and r is 1. Queries and keys are
/// normed where the block says so, and rotated (Touvron et al. 2023, section 2.2). The MLP may be a mixture
/// of experts ([`RoutedMlp`](aqlm_vocabulary::RoutedMlp)).
///
/// # Panics When the shapes of block and x do not fit together, or the rotary tables are not the block's or
/// shorter than the sequence.
pub fn block_forward(block: &Block, rotary: &Rotary, x: ArrayView2<f64>) -> Array2<f64> {
    block_forward_traced(block, rotary, x).0
}

/// [`block_forward`], also returning everything that [`block_backward`](super::block_backward) needs.
///
/// # Panics
/// As [`block_forward`].
pub fn block_forward_traced(block: &Block, rotary: &Rotary, x: ArrayView2<f64>) -> (Array2<f64>, BlockTrace) {
    let spec = block.spec();
    let normed_x = normed(block, NormPlace::BeforeAttention, x);
    let projected = Projected::of(block, rotary, normed_x.view(), 0);
    let Projected { q, k, v, .. } = &projected;
    let attended = attention(&spec.attention, q.view(), k.view(), v.view(), 0);
    let mixed = apply(block, spec.attention.output, attended.view());
    let added = normed(block, NormPlace::AfterAttention, mixed.view());
    let middle = &x + &(spec.residual_scale * added);

    let mlp = NormedMlp::of(block, middle.view());
    let added = normed(block, NormPlace::AfterMlp, mlp.inside.out().view());
    let y = &middle + &(spec.residual_scale * added);
    let trace = BlockTrace {
        x: x.to_owned(),
        normed: normed_x,
        projected,
        attended,
        mixed,
        middle,
        middle_normed: mlp.normed,
        inside: mlp.inside,
    };
    (y, trace)
}

/// Queries, keys and values of some tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Projected {
    /// queries and keys before their norms and their rotation
    pub(super) raw: [Array2<f64>; 2],
    /// queries, [tokens, heads x head_dim]
    pub(super) q: Array2<f64>,
    /// keys, [tokens, kv_heads x head_dim]
    pub(super) k: Array2<f64>,
    /// values, [tokens, kv_heads x head_dim]
    pub(super) v: Array2<f64>,
}

impl Projected {
    /// From the input of attention, whose first row is at position `first`.
    pub(super) fn of(block: &Block, rotary: &Rotary, normed_x: ArrayView2<f64>, first: usize) -> Self {
        let spec = &block.spec().attention;
        let (layers, widths) = spec.projections();
        let [raw_q, raw_k, v] = apply_each(block, layers, widths, normed_x);
        let mut q = normed(block, NormPlace::Query, raw_q.view());
        let mut k = normed(block, NormPlace::Key, raw_k.view());
        rotary.rotate(spec, &mut q, first);
        rotary.rotate(spec, &mut k, first);
        Self {
            raw: [raw_q, raw_k],
            q,
            k,
            v,
        }
    }
}

/// An MLP with the norm before it.
pub(super) struct NormedMlp {
    normed: Array2<f64>,
    /// the values inside, with the output before a norm behind it
    pub(super) inside: Inside,
}

impl NormedMlp {
    /// From the residual stream after attention.
    pub(super) fn of(block: &Block, middle: ArrayView2<f64>) -> Self {
        let normed = normed(block, NormPlace::BeforeMlp, middle);
        Self {
            inside: Inside::of(block, normed.view()),
            normed,
        }
    }
}
