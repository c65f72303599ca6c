use aqlm_kernels::defines::matvec::k6_product_tables as source;
use aqlm_vocabulary::{AqlmError, Result};
use half::f16;
use rayon::prelude::*;
use source::{CODES, OFFSET_BITS, SET, TEAM_WARPS, TEAMS};

use super::super::Packed;
use super::super::job::Job;
use super::super::operand::{bytes_of_u32, codebook_bytes, operand, scale_bytes};

const TABLES_BYTES: usize = TEAMS * CODES * SET * 4;
/// Bytes of shared memory for a set of x, the same for every group size.
const SET_BYTES: usize = SET * 32;
/// Bytes for norms and the ticket at the end of shared memory.
const REST_BYTES: usize = 144;
/// Items of a chunk: two of each lane of a team.
const CHUNK: usize = TEAM_WARPS * 32 * 2;
/// No item.
const NONE: u32 = source::NONE as u32;

/// k6: codes sorted by the table that they fall into, each with its row.
pub(in super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    let &Job { matrix, target, .. } = job;
    let scheme = matrix.scheme();
    let (out_groups, in_groups) = matrix.groups();
    let block_codes = TEAMS * CODES;
    let slices = scheme.codebook_size() / block_codes;
    let all_sets = in_groups.div_ceil(SET);
    // As many blocks as can run at once share out the sets.
    let set_blocks = (target.multiprocessors as usize / slices).clamp(1, all_sets);
    let sets = all_sets.div_ceil(set_blocks);
    let set_blocks = all_sets.div_ceil(sets);
    let room = target
        .shared_bytes
        .saturating_sub(TABLES_BYTES + sets * SET_BYTES + REST_BYTES)
        / 4;
    if room == 0 {
        return Err(AqlmError::Unsupported(format!(
            "k6 has no shared memory left for sums beside {} inputs",
            matrix.in_features()
        )));
    }
    let slabs = out_groups.div_ceil(room.min(1 << (32 - OFFSET_BITS - 1)));
    let rows = out_groups.div_ceil(slabs);

    // [slab][set][slice][team], each as chunks of items
    let lists: Vec<Vec<u32>> = (0..slabs * all_sets)
        .into_par_iter()
        .flat_map_iter(|part| {
            let (slab, set) = (part / all_sets, part % all_sets);
            let mut lists = vec![Vec::new(); slices * TEAMS];
            for row in slab * rows..out_groups.min((slab + 1) * rows) {
                for group in set * SET..in_groups.min((set + 1) * SET) {
                    let code = usize::from(matrix.codes()[[row, group, 0]]);
                    let offset = (code % CODES * SET + group % SET) as u32;
                    lists[code / CODES].push(offset | ((row - slab * rows) as u32) << OFFSET_BITS);
                }
            }
            lists.into_iter().map(|items| arrange(&items))
        })
        .collect();

    let (mut items, mut spans) = (Vec::new(), Vec::new());
    for slab in 0..slabs {
        for block in 0..slices * set_blocks {
            let (slice, first_set) = (block / set_blocks, block % set_blocks * sets);
            for set in first_set..first_set + sets {
                for team in 0..TEAMS {
                    let list = (set < all_sets)
                        .then(|| &lists[((slab * all_sets + set) * slices + slice) * TEAMS + team]);
                    let chunks = list.map_or(0, Vec::len) / CHUNK;
                    spans.extend([(items.len() / CHUNK) as u32, chunks as u32]);
                    items.extend(list.into_iter().flatten());
                }
            }
        }
    }
    let largest = matrix
        .codebooks()
        .iter()
        .fold(0.0_f64, |most, c| most.max(c.abs()));

    Ok(Packed {
        defines: vec![
            ("AQLM_B", scheme.nbits as usize),
            ("AQLM_G", scheme.in_group_size),
        ],
        operands: vec![
            operand("items", bytes_of_u32(&items)),
            operand("spans", bytes_of_u32(&spans)),
            operand("codebook", codebook_bytes(matrix)),
            operand("sums", bytes_of_u32(&vec![0; slabs * rows])),
            operand("finished", bytes_of_u32(&vec![0; slabs])),
            operand("scales", scale_bytes(matrix)),
        ],
        sizes: vec![
            rows as i32,
            sets as i32,
            set_blocks as i32,
            i32::from(f16::from_f64(largest).to_bits()),
        ],
        grid: [(slices * set_blocks) as u32, slabs as u32],
        block: (TEAMS * TEAM_WARPS * 32) as u32,
        shared_bytes: TABLES_BYTES + sets * SET_BYTES + rows * 4 + REST_BYTES,
        ..job.unplanned()
    })
}

/// Chunks of items, [chunk][warp][lane][two].
///
/// The items that a warp's lanes handle at once should lie in different banks of the table (lane = bank), and
/// their rows in different banks of the sums. An item that cannot be placed that way takes any free place: a
/// conflict costs one pass, padding costs a step of a warp.
fn arrange(items: &[u32]) -> Vec<u32> {
    let steps = items.len().div_ceil(CHUNK) * (CHUNK / 32);
    let mut banks = vec![Vec::new(); 32];
    for &item in items {
        banks[item as usize % 32].push(item);
    }
    let mut placed = vec![NONE; steps * 32];
    for (number, step) in placed.chunks_exact_mut(32).enumerate() {
        let mut taken = 0_u32;
        for turn in 0..32 {
            // Rotates the order, so that no bank is always served last.
            let bank = (turn + number) % 32;
            let bit = |item: u32| 1_u32 << (item >> OFFSET_BITS & 31);
            if let Some(at) = banks[bank].iter().position(|&item| taken & bit(item) == 0) {
                let item = banks[bank].swap_remove(at);
                taken |= bit(item);
                step[bank] = item;
            }
        }
    }
    let mut left = banks.into_iter().flatten();
    for place in placed.iter_mut().filter(|place| **place == NONE) {
        match left.next() {
            Some(item) => *place = item,
            None => break,
        }
    }
    // A step is one of a lane's two items. This turns [chunk][warp][two][lane] into [chunk][warp][lane][two].
    let mut words = vec![NONE; placed.len()];
    for (index, item) in placed.into_iter().enumerate() {
        let (pair, which, lane) = (index / 64, index / 32 % 2, index % 32);
        words[pair * 64 + lane * 2 + which] = item;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_placed_once() {
        let items: Vec<u32> = (0..1301_u32)
            .map(|i| (i * 7919 % 8192) | (i * 31 % 999) << OFFSET_BITS)
            .collect();
        let mut placed: Vec<u32> = arrange(&items).into_iter().filter(|item| *item != NONE).collect();
        assert_eq!(arrange(&items).len(), 3 * CHUNK);
        let mut wanted = items.clone();
        placed.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(placed, wanted);
        assert!(arrange(&[]).is_empty());
    }
}
