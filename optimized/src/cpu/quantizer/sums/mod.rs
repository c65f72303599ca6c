//! The least of all sums of two codewords, for many targets.
//!
//! Under a metric, the score of a sum a + b for a target is <a, a> + <b, b> + 2 <a, b> plus a product of the
//! target with a and one with b. The products 2 <a, b> are shared by all targets of an input group: one table
//! of 2^(2B) numbers. So a target costs one multiply-add and one minimum for each sum.

mod scorer;
mod stage;

use std::ops::Range;

use aqlm_vocabulary::Scheme;

pub(super) use scorer::{Scorer, Sum};
pub(super) use stage::{Stage, times_block};

use stage::Side;

/// The codebooks of each step in which a group's codes are decided: pairs while all sums of two codewords
/// fit, then single codebooks.
pub(super) fn steps(scheme: Scheme) -> impl Iterator<Item = Range<usize>> {
    let step = if scheme.sums_fit() { 2 } else { 1 };
    let count = scheme.num_codebooks;
    (0..count).step_by(step).map(move |m| m..count.min(m + step))
}

impl Stage {
    /// In the space where plain distances count: codewords, [2^B, len] a codebook, times a lower triangular
    /// L, [gi, gi].
    pub(super) fn in_space(
        first: &[f32],
        second: Option<&[f32]>,
        len: usize,
        lower: &[f32],
        gi: usize,
    ) -> Self {
        let side = |codebook| Side::in_space(codebook, len, lower, gi);
        Self::of(side(first), second.map(side))
    }

    /// Under a symmetric metric, [gi, gi], with targets among the codewords themselves.
    pub(super) fn under(
        first: &[f32],
        second: Option<&[f32]>,
        len: usize,
        metric: &[f32],
        gi: usize,
    ) -> Self {
        let side = |codebook| Side::under(codebook, len, metric, gi);
        Self::of(side(first), second.map(side))
    }
}
