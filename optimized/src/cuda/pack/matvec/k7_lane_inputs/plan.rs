use aqlm_kernels::defines::matvec::k7_lane_inputs::{COUNTERS, PADDING_ROWS, WARPS};
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};

use crate::cuda::pack::Target;
use crate::cuda::pack::items::ITEM_BITS;

/// How blocks divide the matrix.
pub(super) struct Plan {
    pub(super) slice_bits: usize,
    pub(super) slices: usize,
    pub(super) slabs: usize,
    /// rows of a slab
    pub(super) rows: usize,
    /// lists that an input group's items are dealt to
    pub(super) pieces: usize,
    /// tasks of a warp, not counting the last, which holds the leftovers
    pub(super) rounds: usize,
}

impl Plan {
    pub(super) fn new(matrix: &QuantizedMatrix, target: &Target) -> Result<Self> {
        let scheme = matrix.scheme();
        let (out_groups, in_groups) = matrix.groups();
        let slice_bits = if scheme.in_group_size == 8 { 12 } else { 11 };
        let slices = scheme.codebook_size() >> slice_bits;
        // Blocks wait for each other, so all must run at once.
        let at_once = target.multiprocessors as usize / slices;
        if at_once == 0 {
            return Err(AqlmError::Unsupported(format!(
                "k7 needs {slices} multiprocessors for {scheme}, {} are there",
                target.multiprocessors
            )));
        }
        // A block scales its own rows one a thread, and adds them up four at a time.
        let step = slices * 4;
        let rows = out_groups.div_ceil(at_once).next_multiple_of(step);
        let most = ((1 << (ITEM_BITS - slice_bits)) - PADDING_ROWS).min(slices * WARPS * 32) / step * step;
        if rows > most {
            return Err(AqlmError::Unsupported(format!(
                "k7 does at most {} rows of {scheme} here, not {out_groups}",
                most * at_once
            )));
        }
        if at_once > COUNTERS {
            return Err(AqlmError::Unsupported(format!(
                "k7 has counters for {COUNTERS} slabs, not {at_once}"
            )));
        }
        // The number of pieces keeps the lanes of all rounds busy, in few rounds.
        let tasks = in_groups.div_ceil(32);
        let fewest = tasks.div_ceil(WARPS);
        let (mut rounds, mut pieces, mut best) = (fewest, 1, 0.0);
        for tried in fewest..fewest + 4 {
            let fitting = tried * WARPS / tasks;
            let filled = (fitting * tasks) as f64 / (tried * WARPS) as f64;
            if filled > best + 0.05 {
                (rounds, pieces, best) = (tried, fitting, filled);
            }
        }
        Ok(Self {
            slice_bits,
            slices,
            slabs: out_groups.div_ceil(rows),
            rows,
            pieces,
            rounds,
        })
    }
}
