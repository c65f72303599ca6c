use aqlm_kernels::defines::matvec::k7_lane_inputs::{CHUNK_BYTES, COUNTERS, HEAD, PADDING_ROWS, RING, WARPS};
use aqlm_vocabulary::Result;
use half::f16;
use rayon::prelude::*;

use super::super::Packed;
use super::super::job::Job;
use super::super::operand::{bytes_of_u16, bytes_of_u32, codebook_bytes, operand, scale_bytes};
use deal::{Arranger, Warp};
use plan::Plan;

mod deal;
mod plan;
mod schedule;

/// Words of a chunk: four items of each lane.
const CHUNK_WORDS: usize = CHUNK_BYTES / 4;
/// Bits of a rounded product, and of the sums of a row.
const PRODUCT_BITS: u32 = 22;
const SUM_BITS: u32 = 31;

/// k7: codes sorted by slice of the codebook and input group, each with its row.
pub(in super::super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    let &Job { matrix, target, .. } = job;
    let scheme = matrix.scheme();
    let g = scheme.in_group_size;
    let (out_groups, in_groups) = matrix.groups();
    let plan = Plan::new(matrix, target)?;

    // [slab][slice][group], items
    let lists: Vec<Vec<u32>> = (0..plan.slabs)
        .into_par_iter()
        .flat_map_iter(|slab| {
            let mut lists = vec![Vec::new(); plan.slices * in_groups];
            let first = slab * plan.rows;
            for row in first..out_groups.min(first + plan.rows) {
                for group in 0..in_groups {
                    let code = usize::from(matrix.codes()[[row, group, 0]]);
                    let local = code & ((1 << plan.slice_bits) - 1);
                    lists[(code >> plan.slice_bits) * in_groups + group]
                        .push((local | (row - first) << plan.slice_bits) as u32);
                }
            }
            lists
        })
        .collect();
    let blocks: Vec<Vec<Warp>> = lists
        .par_chunks(in_groups)
        .map(|lists| Arranger { plan: &plan, g }.arrange(lists))
        .collect();

    let warps = || blocks.iter().flatten();
    let (mut items, mut spans, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for warp in warps() {
        let head = warp.words.len().min(HEAD * CHUNK_WORDS);
        items.extend_from_slice(&warp.words[..head]);
        items.resize(items.len() + HEAD * CHUNK_WORDS - head, 0);
    }
    for warp in warps() {
        let words = warp.words.len() / 32;
        spans.extend([(items.len() / 32) as u32, words as u32]);
        spans.extend(&warp.steps);
        groups.extend_from_slice(&warp.groups);
        items.extend(warp.words.iter().skip(HEAD * CHUNK_WORDS));
    }
    let largest = matrix
        .codebooks()
        .iter()
        .fold(0.0_f64, |most, c| most.max(c.abs()));
    let product_bits = PRODUCT_BITS.min(SUM_BITS - (in_groups + 1).next_power_of_two().trailing_zeros());

    Ok(Packed {
        defines: vec![("AQLM_G", g), ("AQLM_SLICE_BITS", plan.slice_bits)],
        operands: vec![
            operand("items", bytes_of_u32(&items)),
            operand("spans", bytes_of_u32(&spans)),
            operand("groups", bytes_of_u16(groups.into_iter())),
            operand("codebook", codebook_bytes(matrix)),
            operand(
                "scratch",
                vec![0; (COUNTERS + plan.slabs * plan.slices * plan.rows) * 4],
            ),
            operand("scales", scale_bytes(matrix)),
        ],
        sizes: vec![
            plan.rows as i32,
            (plan.rounds + 1) as i32,
            i32::from(f16::from_f64(largest).to_bits()),
            product_bits as i32,
        ],
        grid: [plan.slices as u32, plan.slabs as u32],
        block: (WARPS * 32) as u32,
        shared_bytes: ((2 * g) << plan.slice_bits)
            + WARPS * RING * CHUNK_BYTES
            + matrix.in_features() * 2
            + (plan.rows + PADDING_ROWS + WARPS) * 4,
        ..job.unplanned()
    })
}
