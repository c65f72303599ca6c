use aqlm_reference::vocabulary::QuantizedMatrix;
use rayon::prelude::*;

use super::{Packed, Target, codebook_bytes, padded, scale_bytes};

/// Slots whose tables a block holds at once; a slot is 32 input groups of one codebook.
const SLOTS: usize = 4;
const TABLE_BYTES: usize = SLOTS * 256 * 32 * 4;
/// Shared memory that the system keeps at the start of a block's addresses (CUDA programming guide, 1 KiB from compute capability 8.0).
const SYSTEM_BYTES: usize = 1024;
const THREADS: u32 = 1024;

/// k3: one byte a code, grouped by row slab, rank in the cluster, round, four rows and lane.
pub(super) fn pack(matrix: &QuantizedMatrix, target: &Target) -> Packed {
    let scheme = matrix.scheme;
    let m = scheme.num_codebooks;
    let (out_groups, in_groups) = matrix.groups();
    let slots = in_groups.div_ceil(32) * m;
    let ranks = target.cluster_up_to(slots.div_ceil(SLOTS).next_power_of_two().min(8));
    let rounds = slots.div_ceil(SLOTS * ranks);
    let rows = out_groups
        .div_ceil(target.clusters_of(ranks as u32) as usize)
        .next_multiple_of(4 * ranks);
    let slabs = out_groups.div_ceil(rows);

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
                        let code = matrix.codes[[slab * rows + row, first_group + lane, codebook]];
                        bytes[(row / 4 * 32 + lane) * 16 + row % 4 * 4 + slot_of_round] = code as u8;
                    }
                }
            }
        });

    Packed {
        kernel: "matvec/k3_lookup_table",
        defines: vec![("AQLM_M", m), ("AQLM_G", scheme.in_group_size)],
        buffers: vec![padded(codes), codebook_bytes(matrix), scale_bytes(matrix)],
        sizes: vec![rows as i32, rounds as i32],
        grid: [ranks as u32, slabs as u32],
        block: THREADS,
        cluster: ranks as u32,
        // The table starts at a multiple of 65536, past at most that much of other use.
        shared_bytes: (rows * 8 + SYSTEM_BYTES).next_multiple_of(65536) - SYSTEM_BYTES + TABLE_BYTES,
        out_features: matrix.out_features(),
        in_features: matrix.in_features(),
        batch: 1,
        rows: matrix.out_features(),
    }
}
