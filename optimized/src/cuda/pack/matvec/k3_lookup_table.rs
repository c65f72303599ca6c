use aqlm_kernels::defines::matvec::k3_lookup_table::{SLOTS, TABLE_ALIGNMENT, THREADS};
use aqlm_vocabulary::{QuantizedMatrix, Result};
use rayon::prelude::*;

use super::super::Packed;
use super::super::job::Job;
use super::super::operand::{codebook_bytes, operand, padded, scale_bytes};

/// Bytes of the tables that a block holds at once.
pub(super) const TABLE_BYTES: usize = SLOTS * 256 * 32 * 4;
/// Shared memory that the system reserves at the start of a block's addresses (CUDA programming guide, 1 KiB
/// from compute capability 8.0).
pub(super) const SYSTEM_BYTES: usize = 1024;

/// How k3 and k5 divide a matrix.
pub(super) struct Form {
    /// blocks of a cluster, which share out the input groups
    ranks: usize,
    /// how often a block fills its tables
    rounds: usize,
    /// rows of a cluster, a multiple of 4 ranks
    pub(super) rows: usize,
    /// clusters
    slabs: usize,
}

impl Form {
    pub(super) fn of(&Job { matrix, target, .. }: &Job<'_>) -> Self {
        let (out_groups, in_groups) = matrix.groups();
        let slots = in_groups.div_ceil(32) * matrix.scheme().num_codebooks;
        let ranks = target.cluster_up_to(slots.div_ceil(SLOTS).next_power_of_two().min(8));
        let rows = out_groups
            .div_ceil(target.clusters_of(ranks as u32) as usize)
            .next_multiple_of(4 * ranks);
        Self {
            ranks,
            rounds: slots.div_ceil(SLOTS * ranks),
            rows,
            slabs: out_groups.div_ceil(rows),
        }
    }

    /// One byte a code, grouped by row slab, rank in the cluster, round, four rows and lane.
    fn codes(&self, matrix: &QuantizedMatrix) -> Vec<u8> {
        let &Self {
            ranks,
            rounds,
            rows,
            slabs,
        } = self;
        let m = matrix.scheme().num_codebooks;
        let (out_groups, in_groups) = matrix.groups();
        let mut codes = vec![0_u8; slabs * ranks * rounds * rows * 32 * SLOTS];
        codes
            .par_chunks_mut(rows * 32 * SLOTS)
            .enumerate()
            .for_each(|(part, bytes)| {
                let (slab, rank, round) = (part / rounds / ranks, part / rounds % ranks, part % rounds);
                for slot_of_round in 0..SLOTS {
                    let slot = (round * ranks + rank) * SLOTS + slot_of_round;
                    let (first_group, codebook) = (slot / m * 32, slot % m);
                    for row in 0..rows.min(out_groups - slab * rows) {
                        for lane in 0..32.min(in_groups.saturating_sub(first_group)) {
                            let code = matrix.codes()[[slab * rows + row, first_group + lane, codebook]];
                            bytes[(row / 4 * 32 + lane) * 16 + row % 4 * 4 + slot_of_round] = code as u8;
                        }
                    }
                }
            });
        padded(codes)
    }

    /// The launch, with this much shared memory.
    pub(super) fn packed(&self, job: &Job<'_>, shared_bytes: usize) -> Packed {
        let matrix = job.matrix;
        let scheme = matrix.scheme();
        Packed {
            defines: vec![("AQLM_M", scheme.num_codebooks), ("AQLM_G", scheme.in_group_size)],
            operands: vec![
                operand("codes", self.codes(matrix)),
                operand("codebooks", codebook_bytes(matrix)),
                operand("scales", scale_bytes(matrix)),
            ],
            sizes: vec![self.rows as i32, self.rounds as i32],
            grid: [self.ranks as u32, self.slabs as u32],
            block: THREADS as u32,
            cluster: self.ranks as u32,
            shared_bytes,
            ..job.unplanned()
        }
    }

    /// Offset of a block's table: after two arrays of its rows' sums and the system's reserve.
    pub(super) fn table_at(&self) -> usize {
        (self.rows * 8 + SYSTEM_BYTES).next_multiple_of(TABLE_ALIGNMENT)
    }
}

/// k3: tables of products.
pub(in super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    let form = Form::of(job);
    let shared_bytes = form.table_at() - SYSTEM_BYTES + TABLE_BYTES;
    Ok(form.packed(job, shared_bytes))
}
