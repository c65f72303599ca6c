use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};
use rayon::prelude::*;

use super::{Activations, Packed, Target, codebook_bytes, padded, scale_bytes};

/// Slots whose tables a block holds at once; a slot is 32 input groups of one codebook.
const SLOTS: usize = 4;
const TABLE_BYTES: usize = SLOTS * 256 * 32 * 4;
/// Tables start at a multiple of this in the address space of shared memory.
const TABLE_ALIGNMENT: usize = 65_536;
/// Shared memory that the system keeps at the start of a block's addresses (CUDA programming guide, 1 KiB
/// from compute capability 8.0).
const SYSTEM_BYTES: usize = 1024;
const THREADS: u32 = 1024;
/// A block's warps and the bytes of one copy of codes by all of its lanes (k5).
const WARPS: usize = 32;
const COPY_BYTES: usize = WARPS * 32 * 16;

/// How k3 and k5 divide a matrix.
struct Form {
    /// blocks of a cluster, which share out the input groups
    ranks: usize,
    /// times that a block fills its tables
    rounds: usize,
    /// rows of a cluster, a multiple of 4 ranks
    rows: usize,
    /// clusters
    slabs: usize,
}

impl Form {
    fn of(matrix: &QuantizedMatrix, target: &Target) -> Self {
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

    fn packed(&self, matrix: &QuantizedMatrix, kernel: &'static str, shared_bytes: usize) -> Packed {
        let scheme = matrix.scheme();
        Packed {
            kernel,
            defines: vec![("AQLM_M", scheme.num_codebooks), ("AQLM_G", scheme.in_group_size)],
            buffers: vec![self.codes(matrix), codebook_bytes(matrix), scale_bytes(matrix)],
            sizes: vec![self.rows as i32, self.rounds as i32],
            grid: [self.ranks as u32, self.slabs as u32],
            block: THREADS,
            cluster: self.ranks as u32,
            shared_bytes,
            out_features: matrix.out_features(),
            in_features: matrix.in_features(),
            batch: 1,
            rows: matrix.out_features(),
            activations: Activations::F16,
        }
    }

    /// Where a block's table starts: past the sums of its rows, twice, and what the system keeps.
    fn table_at(&self) -> usize {
        (self.rows * 8 + SYSTEM_BYTES).next_multiple_of(TABLE_ALIGNMENT)
    }
}

/// k3: tables of products.
pub(super) fn pack(matrix: &QuantizedMatrix, target: &Target) -> Packed {
    let form = Form::of(matrix, target);
    let shared_bytes = form.table_at() - SYSTEM_BYTES + TABLE_BYTES;
    form.packed(matrix, "matvec/k3_lookup_table", shared_bytes)
}

/// k5: the same, and copies of codes in the shared memory that is left ahead of the table and behind it.
pub(super) fn pack_staged(matrix: &QuantizedMatrix, target: &Target) -> Result<Packed> {
    let form = Form::of(matrix, target);
    let table_at = form.table_at();
    let wanted = (form.rows / 4).div_ceil(WARPS);
    let before = ((table_at - SYSTEM_BYTES - form.rows * 8) / COPY_BYTES).min(wanted);
    let room = (target.shared_bytes + SYSTEM_BYTES).saturating_sub(table_at + TABLE_BYTES);
    let depth = wanted.min(before + room / COPY_BYTES);
    if depth == 0 {
        return Err(AqlmError::Unsupported(format!(
            "k5 has no shared memory left for codes beside the sums of {} rows",
            form.rows
        )));
    }
    let shared_bytes = table_at - SYSTEM_BYTES + TABLE_BYTES + (depth - before) * COPY_BYTES;
    let mut packed = form.packed(matrix, "matvec/k5_staged_codes", shared_bytes);
    packed
        .defines
        .extend([("AQLM_DEPTH", depth), ("AQLM_BEFORE", before)]);
    Ok(packed)
}
