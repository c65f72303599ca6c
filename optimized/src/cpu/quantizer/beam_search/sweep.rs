use std::ops::Range;

use aqlm_vocabulary::{Position, QuantizedMatrix};
use ndarray::Array2;

use crate::cpu::quantizer::codewords::Codewords;
use crate::cpu::row_major::elements;

/// Columns of G in a block of input groups. The block's part of H, 64 KiB, stays in the L2 cache, and the
/// product after the block has enough terms to be efficient.
const BLOCK_COLUMNS: usize = 128;

/// One visit of an input group: steps that follow each other there.
pub(crate) struct Visit {
    pub(crate) group: usize,
    pub(crate) steps: Vec<Position>,
}

/// Data that all output groups share during a sweep.
pub(super) struct Sweep<'a> {
    pub(super) matrix: &'a QuantizedMatrix,
    pub(super) codewords: &'a [Codewords],
    pub(super) visits: Vec<Visit>,
    /// <c H_jj, c> for every visit and codebook, [visits][M][padded 2^B]
    pub(super) forms: Vec<Vec<Vec<f32>>>,
    /// H with rows and columns in the order of the visits; unvisited groups come last
    pub(super) hessian: Array2<f32>,
    /// for every visit the part of H between its columns and those of its block up to and including its own:
    /// [visits of the block so far][gi, gi]; empty for coordinate descent, which does not read it
    pub(super) near: Vec<Vec<f32>>,
    pub(super) beam: usize,
}

impl Sweep<'_> {
    /// (go, gi).
    pub(super) fn group_size(&self) -> (usize, usize) {
        (
            self.matrix.scheme().out_group_size,
            self.matrix.scheme().in_group_size,
        )
    }

    /// The visits in blocks of consecutive ones.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        blocks(self.visits.len(), self.group_size().1)
    }

    /// H from element (`row`, `column`) on, with H's number of columns as the stride of rows.
    pub(super) fn rows_from(&self, row: usize, column: usize) -> &[f32] {
        let whole = elements(&self.hessian);
        &whole[row * self.hessian.ncols() + column..]
    }

    /// H_jj of a visit, [gi, gi].
    pub(super) fn own_block(&self, visit: usize, block: &mut Vec<f32>) {
        let (_, gi) = self.group_size();
        let at = visit * gi..(visit + 1) * gi;
        block.clear();
        block.extend(self.hessian.slice(ndarray::s![at.clone(), at]));
    }
}

/// So many visits of gi columns in blocks of consecutive ones.
pub(super) fn blocks(visits: usize, gi: usize) -> impl Iterator<Item = Range<usize>> {
    let per_block = visits_per_block(gi);
    (0..visits)
        .step_by(per_block)
        .map(move |start| start..visits.min(start + per_block))
}

/// Number of input groups of gi columns in a block.
pub(super) fn visits_per_block(gi: usize) -> usize {
    (BLOCK_COLUMNS / gi).max(1)
}
