use aqlm_kernels::defines::matmul::k4_hot_codewords::NUMBERS;
use aqlm_kernels::defines::tiles::TILE_ROWS;
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result, Scheme};
use ndarray::Axis;
use rayon::prelude::*;

use super::super::job::Job;
use super::super::operand::{bytes_of_u16, codebook_bytes, operand, scale_bytes};
use super::super::tiles::Form;
use super::super::{Packed, Target};
use super::k2_fused_tensor::TileConfig;

/// Warps and threads of a block.
const WARPS: usize = 8;
const THREADS: usize = WARPS * 32;
/// Maximum tiles of a warp, by tiles of rows of x: more do not fit its registers.
const MOST_TILES: [usize; 2] = [11, 6];
/// Fetching the codewords that a block keeps costs L2 as much as this many tiles.
const KEEPING: usize = 5;

/// All divisions of the work that fit a warp's registers, ordered by expected time from what blocks fetch
/// from L2.
fn configs(tiles: usize, batch: usize, target: &Target) -> Vec<TileConfig> {
    let batch_tiles = batch.div_ceil(16).min(MOST_TILES.len());
    let mut all: Vec<TileConfig> = [1, 2]
        .into_iter()
        .flat_map(|row_warps| {
            (1..=MOST_TILES[batch_tiles - 1]).map(move |tiles| TileConfig {
                row_warps,
                tiles,
                slices: WARPS / row_warps,
                batch_tiles,
            })
        })
        .collect();
    all.sort_by_key(|config| {
        let blocks = tiles.div_ceil(config.block_tiles());
        blocks.div_ceil(target.multiprocessors as usize) * (config.block_tiles() + KEEPING)
    });
    all
}

fn defines(scheme: Scheme, config: TileConfig, kept: usize) -> Vec<(&'static str, usize)> {
    vec![
        ("AQLM_B", scheme.nbits as usize),
        ("AQLM_G", scheme.in_group_size),
        ("AQLM_HOT", kept),
        ("AQLM_ROW_WARPS", config.row_warps),
        ("AQLM_TILES", config.tiles),
        ("AQLM_SLICES", config.slices),
        ("AQLM_BATCH_TILES", config.batch_tiles),
    ]
}

/// matmul k4: codes renumbered for the codewords that each block keeps.
pub(in super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    let &Job {
        matrix,
        target,
        batch,
        ..
    } = job;
    let scheme = matrix.scheme();
    let form = Form::of(matrix, target);
    let tiles = matrix.out_features().div_ceil(TILE_ROWS);
    let kept = (target.shared_bytes / (16 * form.vectors)).min(scheme.codebook_size());
    let config = configs(tiles, batch, target)
        .into_iter()
        .find(|&config| target.has(job.kernel, &defines(scheme, config, kept)))
        .ok_or_else(|| AqlmError::Unsupported(format!("no configuration of matmul k4 fits {scheme}")))?;

    let (mut codes, codebooks, scales) = by_use(matrix)?.into_parts();
    let rows = config.block_tiles() * TILE_ROWS;
    let keeps: Vec<Vec<u16>> = codes
        .axis_chunks_iter_mut(Axis(0), rows)
        .into_par_iter()
        .map(|mut codes| {
            let mut uses = vec![0_u32; scheme.codebook_size()];
            for &code in &codes {
                uses[usize::from(code)] += 1;
            }
            let mut keeps = keep(&uses, kept);
            let mut place: Vec<u16> = (0..uses.len()).map(|number| number as u16).collect();
            for (index, &number) in keeps.iter().enumerate() {
                place[usize::from(number)] = index as u16;
            }
            codes.mapv_inplace(|number| place[usize::from(number)]);
            // Unused places repeat the last codeword, which costs no further cache line.
            let last = *keeps.last().expect("a block has codes");
            keeps.resize(kept, last);
            keeps
        })
        .collect();

    let numbered = QuantizedMatrix::new(scheme, codes, codebooks, scales)?;
    let hot = keeps.iter().flat_map(|keeps| by_thread(keeps, form.vectors));
    Ok(Packed {
        defines: defines(scheme, config, kept),
        operands: vec![
            operand("codes", form.codes(&numbered)),
            operand("codebook", codebook_bytes(&numbered)),
            operand("scales", scale_bytes(&numbered)),
            operand("hot", bytes_of_u16(hot)),
        ],
        sizes: vec![form.units as i32],
        grid: [keeps.len() as u32, batch.div_ceil(16 * config.batch_tiles) as u32],
        block: THREADS as u32,
        shared_bytes: (kept * form.vectors * 16).max(config.sum_bytes()),
        ..job.unplanned()
    })
}

/// The same matrix with its codewords renumbered by how often it uses them.
fn by_use(matrix: &QuantizedMatrix) -> Result<QuantizedMatrix> {
    let size = matrix.scheme().codebook_size();
    let mut uses = vec![0_u32; size];
    for &code in matrix.codes() {
        uses[usize::from(code)] += 1;
    }
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by_key(|&code| std::cmp::Reverse(uses[code]));
    let mut number = vec![0_u16; size];
    for (index, &code) in order.iter().enumerate() {
        number[code] = index as u16;
    }
    QuantizedMatrix::new(
        matrix.scheme(),
        matrix.codes().mapv(|code| number[usize::from(code)]),
        matrix.codebooks().select(Axis(1), &order),
        matrix.scales().clone(),
    )
}

/// The codewords that a block keeps, at most `room`, ascending. Codewords numbered below `room` are always
/// kept if the block uses them: their number is their slot. The other slots go to the codewords that the
/// block uses most.
fn keep(uses: &[u32], room: usize) -> Vec<u16> {
    let used = |codes: std::ops::Range<usize>| -> Vec<u16> {
        codes
            .filter(|&code| uses[code] > 0)
            .map(|code| code as u16)
            .collect()
    };
    let below = room.min(uses.len());
    let mut kept = used(0..below);
    let mut others = used(below..uses.len());
    others.sort_by_key(|&code| std::cmp::Reverse(uses[usize::from(code)]));
    others.truncate(room - kept.len());
    kept.extend(others);
    kept.sort_unstable();
    kept
}

/// The numbers of the kept codewords, repeated for each of a codeword's vectors, in the order in which
/// threads load them; the last round is padded.
fn by_thread(kept: &[u16], vectors: usize) -> impl Iterator<Item = u16> {
    let round = THREADS * NUMBERS;
    (0..(kept.len() * vectors).next_multiple_of(round)).map(move |index| {
        let (thread, j) = (index / NUMBERS % THREADS, index % NUMBERS);
        let vector = (index / round * NUMBERS + j) * THREADS + thread;
        kept[(vector / vectors).min(kept.len() - 1)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_numbers_below_the_room_mean_is_kept_and_then_the_most_used() {
        // Codes 0 and 2 are below 4 and used; of those from 4 on, 9 and 6 are used most.
        let uses = [1, 0, 1, 0, 2, 1, 5, 1, 2, 7];
        assert_eq!(keep(&uses, 4), [0, 2, 6, 9]);
        assert_eq!(keep(&uses, 10), [0, 2, 4, 5, 6, 7, 8, 9]);
        assert_eq!(keep(&[0, 0, 3], 2), [2]);
    }

    #[test]
    fn a_large_matrix_gets_blocks_for_one_round() {
        let best = configs(1376, 16, &Target::h100())[0];
        assert_eq!(
            (
                best.row_warps,
                best.tiles,
                1376_usize.div_ceil(best.block_tiles())
            ),
            (1, 11, 126)
        );
        let best = configs(1376, 20, &Target::h100())[0];
        assert_eq!((best.block_tiles(), best.batch_tiles), (12, 2));
    }
}
