use aqlm_reference::vocabulary::{AqlmError, QuantizedMatrix, Result, Scheme};
use half::f16;
use rayon::prelude::*;

use super::tiles::{Form, TILE_ROWS, UNIT_GROUPS, unplanned};
use super::{Packed, Target, bytes_of_u16};

const KERNEL: &str = "matmul/k4_hot_codewords";
/// Warps and threads of a block.
const WARPS: usize = 8;
const THREADS: usize = WARPS * 32;
/// Numbers of kept codewords that a thread loads at once.
const AT_ONCE: usize = 4;
/// Tiles of a warp at most, by tiles of rows of x: more do not fit its registers.
const MOST_TILES: [usize; 2] = [11, 6];
/// Tiles whose codewords cost L2 as much as those that a block keeps.
const KEEPING: usize = 5;

/// How matmul k4 divides its work.
#[derive(Debug, Clone, Copy)]
struct Division {
    /// warps beside each other along the output rows
    row_warps: usize,
    /// tiles of 8 output rows a warp
    tiles: usize,
    /// tiles of 16 rows of x a block
    batch_tiles: usize,
}

impl Division {
    /// All that fit a warp's registers, the one that should end first by what blocks fetch from L2 first.
    fn all(tiles: usize, batch: usize, target: &Target) -> Vec<Self> {
        let batch_tiles = batch.div_ceil(16).min(MOST_TILES.len());
        let mut all: Vec<Self> = [1, 2]
            .into_iter()
            .flat_map(|row_warps| {
                (1..=MOST_TILES[batch_tiles - 1]).map(move |tiles| Self {
                    row_warps,
                    tiles,
                    batch_tiles,
                })
            })
            .collect();
        all.sort_by_key(|division| {
            let rounds = division.blocks(tiles).div_ceil(target.multiprocessors as usize);
            rounds * (division.block_tiles() + KEEPING)
        });
        all
    }

    fn block_tiles(self) -> usize {
        self.row_warps * self.tiles
    }

    fn blocks(self, tiles: usize) -> usize {
        tiles.div_ceil(self.block_tiles())
    }

    /// Teams of warps that share out the input features.
    fn slices(self) -> usize {
        WARPS / self.row_warps
    }

    fn defines(self, scheme: Scheme, kept: usize) -> Vec<(&'static str, usize)> {
        vec![
            ("AQLM_B", scheme.nbits as usize),
            ("AQLM_G", scheme.in_group_size),
            ("AQLM_HOT", kept),
            ("AQLM_ROW_WARPS", self.row_warps),
            ("AQLM_TILES", self.tiles),
            ("AQLM_SLICES", self.slices()),
            ("AQLM_BATCH_TILES", self.batch_tiles),
        ]
    }

    /// Shared memory of the block's last sums, which overlay its codewords.
    fn sum_bytes(self) -> usize {
        let tiles = self.block_tiles();
        let stride = tiles * TILE_ROWS + if tiles.is_multiple_of(2) { 8 } else { 0 };
        self.slices() * self.batch_tiles * 16 * stride * 4
    }
}

/// matmul k4: codes numbered for the codewords that each block keeps.
pub(super) fn pack(matrix: &QuantizedMatrix, target: &Target, batch: usize) -> Result<Packed> {
    let scheme = matrix.scheme;
    let form = Form::of(matrix, target);
    let tiles = matrix.out_features().div_ceil(TILE_ROWS);
    let kept = (target.shared_bytes / (16 * form.vectors)).min(scheme.codebook_size());
    let division = Division::all(tiles, batch, target)
        .into_iter()
        .find(|division| target.has(KERNEL, &division.defines(scheme, kept)))
        .ok_or_else(|| AqlmError::Unsupported(format!("no configuration of matmul k4 fits {scheme}")))?;

    let numbering = Numbering::new(matrix);
    let rows = division.block_tiles() * TILE_ROWS;
    let blocks: Vec<Block> = (0..division.blocks(tiles))
        .into_par_iter()
        .map(|block| {
            let rows = block * rows..(block + 1) * rows;
            Block::new(matrix, &numbering, rows, form.units * UNIT_GROUPS, kept)
        })
        .collect();
    let mut packed = unplanned(KERNEL, matrix, target, batch);
    packed.buffers[0] = bytes_of_u16(blocks.iter().flat_map(|block| block.codes.iter().copied()));
    packed.buffers[1] = numbering.codebook(matrix);
    packed.buffers.push(bytes_of_u16(
        blocks
            .iter()
            .flat_map(|block| by_thread(&block.kept, form.vectors)),
    ));
    packed.defines = division.defines(scheme, kept);
    packed.grid = [
        blocks.len() as u32,
        batch.div_ceil(16 * division.batch_tiles) as u32,
    ];
    packed.block = THREADS as u32;
    packed.shared_bytes = (kept * form.vectors * 16).max(division.sum_bytes());
    Ok(packed)
}

/// Codewords by how often the matrix uses them.
struct Numbering {
    /// codes, the most frequent first
    order: Vec<u16>,
    /// where in it each code is
    number: Vec<u16>,
}

impl Numbering {
    fn new(matrix: &QuantizedMatrix) -> Self {
        let size = matrix.scheme.codebook_size();
        let mut uses = vec![0_u32; size];
        for &code in &matrix.codes {
            uses[usize::from(code)] += 1;
        }
        let mut order: Vec<u16> = (0..size).map(|code| code as u16).collect();
        order.sort_by_key(|&code| std::cmp::Reverse(uses[usize::from(code)]));
        let mut number = vec![0_u16; size];
        for (index, &code) in order.iter().enumerate() {
            number[usize::from(code)] = index as u16;
        }
        Self { order, number }
    }

    /// The codebook in this order, f16.
    fn codebook(&self, matrix: &QuantizedMatrix) -> Vec<u8> {
        let width = matrix.scheme.in_group_size;
        let values: Vec<f64> = matrix.codebooks.iter().copied().collect();
        bytes_of_u16(self.order.iter().flat_map(|&code| {
            let first = usize::from(code) * width;
            values[first..first + width]
                .iter()
                .map(|&value| f16::from_f64(value).to_bits())
        }))
    }
}

/// What a block of the kernel reads.
struct Block {
    /// [tile][unit][lane][step]: a place among `kept`, or the number of another codeword
    codes: Vec<u16>,
    /// numbers of the codewords that it keeps, ascending
    kept: Vec<u16>,
}

impl Block {
    /// The block of `rows`, the last of which may lie outside the matrix, as may the last of its `groups`; it keeps `room` codewords.
    fn new(
        matrix: &QuantizedMatrix,
        numbering: &Numbering,
        rows: std::ops::Range<usize>,
        groups: usize,
        room: usize,
    ) -> Self {
        let (out_groups, in_groups) = matrix.groups();
        let number = |row: usize, group: usize| {
            (row < out_groups && group < in_groups)
                .then(|| numbering.number[usize::from(matrix.codes[[row, group, 0]])])
        };
        let mut uses = vec![0_u32; numbering.order.len()];
        for row in rows.clone() {
            for used in (0..in_groups).filter_map(|group| number(row, group)) {
                uses[usize::from(used)] += 1;
            }
        }
        let mut kept = keep(&uses, room);
        let mut place = vec![None; uses.len()];
        for (index, &number) in kept.iter().enumerate() {
            place[usize::from(number)] = Some(index as u16);
        }
        // Places that are not needed repeat the last, which costs no further cache line.
        kept.resize(room, kept.last().copied().unwrap_or(0));

        let tiles = rows.start / TILE_ROWS..rows.end.min(out_groups).div_ceil(TILE_ROWS);
        let mut codes = Vec::with_capacity(tiles.len() * TILE_ROWS * groups);
        for tile in tiles {
            for unit in 0..groups / UNIT_GROUPS {
                for lane in 0..32 {
                    for step in 0..UNIT_GROUPS / 4 {
                        let group = unit * UNIT_GROUPS + step * 4 + lane % 4;
                        // Outside the matrix any place will do: x is zero there, or the row is not written.
                        codes.push(
                            number(tile * TILE_ROWS + lane / 4, group)
                                .map_or(0, |number| place[usize::from(number)].unwrap_or(number)),
                        );
                    }
                }
            }
        }
        Self { codes, kept }
    }
}

/// Which codewords a block keeps, at most `room`, ascending. All those below `room` that it uses are among them, for their numbers mean places; the others are
/// those that it uses most.
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

/// The numbers of the kept codewords, once for each of a codeword's vectors, in the order in which threads load them; the last round filled up.
fn by_thread(kept: &[u16], vectors: usize) -> impl Iterator<Item = u16> {
    let round = THREADS * AT_ONCE;
    (0..(kept.len() * vectors).next_multiple_of(round)).map(move |index| {
        let (thread, j) = (index / AT_ONCE % THREADS, index % AT_ONCE);
        let vector = (index / round * AT_ONCE + j) * THREADS + thread;
        kept[(vector / vectors).min(kept.len() - 1)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_numbers_below_the_room_mean_is_kept_and_then_the_most_used() {
        // Codes 0 and 2 are below 4 and used; of those above, 9 and 6 are used most.
        let uses = [1, 0, 1, 0, 2, 1, 5, 1, 2, 7];
        assert_eq!(keep(&uses, 4), [0, 2, 6, 9]);
        assert_eq!(keep(&uses, 10), [0, 2, 4, 5, 6, 7, 8, 9]);
        assert_eq!(keep(&[0, 0, 3], 2), [2]);
    }

    #[test]
    fn a_large_matrix_gets_blocks_for_one_round() {
        let best = Division::all(1376, 16, &Target::h100())[0];
        assert_eq!((best.row_warps, best.tiles, best.blocks(1376)), (1, 11, 126));
        let best = Division::all(1376, 20, &Target::h100())[0];
        assert_eq!((best.block_tiles(), best.batch_tiles), (12, 2));
    }
}
