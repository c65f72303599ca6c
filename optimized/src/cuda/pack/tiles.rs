use std::fmt;

use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result, Scheme};
use rayon::prelude::*;

use super::{Activations, Packed, Target, bytes_of_u32, codebook_bytes, scale_bytes};

/// Output rows of a tile.
pub(super) const TILE_ROWS: usize = 8;
/// Steps of four input groups in a unit.
const STEPS: usize = 4;
/// Input groups of a unit.
pub(super) const UNIT_GROUPS: usize = 4 * STEPS;
/// Shared memory that copies of the codebooks may take, so that stages of x fit beside them.
const CODEBOOK_LIMIT: usize = 131_072;
const WARP: usize = 32;

/// How matmul k2 divides its work: see the kernel's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TileConfig {
    /// warps of a team, beside each other along the output rows
    pub row_warps: usize,
    /// tiles of 8 output rows a warp
    pub tiles: usize,
    /// teams, which share out the input features
    pub slices: usize,
    /// tiles of 16 rows of x a block
    pub batch_tiles: usize,
}

impl TileConfig {
    /// Tiles of 8 output rows of a block.
    pub(super) fn block_tiles(&self) -> usize {
        self.row_warps * self.tiles
    }

    /// Shared memory of a block's last sums, one for each team: rows an odd multiple of 8 apart.
    pub(super) fn sum_bytes(&self) -> usize {
        let tiles = self.block_tiles();
        let stride = tiles * TILE_ROWS + if tiles.is_multiple_of(2) { 8 } else { 0 };
        self.slices * self.batch_tiles * 16 * stride * 4
    }
}

impl fmt::Display for TileConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            row_warps,
            tiles,
            slices,
            batch_tiles,
        } = self;
        write!(
            f,
            "{row_warps}x{tiles} tiles, {slices} slices, {batch_tiles}x16 rows"
        )
    }
}

/// Facts about a scheme that codes in tiles depend on.
pub(super) struct Form {
    pub(super) m: usize,
    /// bits a code takes
    field: usize,
    /// 16-byte vectors of a codeword
    pub(super) vectors: usize,
    /// 4-byte words of a lane in a unit
    pub(super) words: usize,
    /// words that a lane loads at once
    part: usize,
    pub(super) units: usize,
    tiles: usize,
    pub(super) codebook_bytes: usize,
    /// copies of the codebooks in shared memory
    pub(super) replicas: usize,
}

impl Form {
    pub(super) fn new(scheme: Scheme, out_features: usize, in_features: usize, target: &Target) -> Self {
        let m = scheme.num_codebooks;
        let field = if scheme.nbits <= 8 { 8 } else { 16 };
        let words = m * field / 8;
        let codebook_bytes = m * scheme.codebook_size() * scheme.in_group_size * 2;
        let limit = CODEBOOK_LIMIT.min(target.shared_bytes * 3 / 5);
        let replicas = [8, 4, 2, 1]
            .into_iter()
            .find(|replicas| replicas * codebook_bytes <= limit);
        Self {
            m,
            field,
            vectors: scheme.in_group_size / 8,
            words,
            part: [4, 2, 1]
                .into_iter()
                .find(|part| words.is_multiple_of(*part))
                .unwrap_or(1),
            units: in_features.div_ceil(STEPS * 4 * scheme.in_group_size),
            tiles: out_features.div_ceil(TILE_ROWS),
            codebook_bytes,
            replicas: replicas.unwrap_or(0),
        }
    }

    pub(super) fn of(matrix: &QuantizedMatrix, target: &Target) -> Self {
        Self::new(
            matrix.scheme(),
            matrix.out_features(),
            matrix.in_features(),
            target,
        )
    }

    /// Codes in the order of the kernel's lanes.
    fn codes(&self, matrix: &QuantizedMatrix) -> Vec<u8> {
        let (out_groups, in_groups) = matrix.groups();
        let tile_words = self.units * self.words * WARP;
        let mut words = vec![0_u32; self.tiles * tile_words];
        words
            .par_chunks_mut(tile_words)
            .enumerate()
            .for_each(|(tile, words)| {
                for g in 0..TILE_ROWS.min(out_groups - tile * TILE_ROWS) {
                    for group in 0..in_groups {
                        let (unit, step, t) = (group / (4 * STEPS), group / 4 % STEPS, group % 4);
                        for codebook in 0..self.m {
                            let code = u32::from(matrix.codes()[[tile * TILE_ROWS + g, group, codebook]]);
                            let bit = (step * self.m + codebook) * self.field;
                            let (word, lane) = (bit / 32, g * 4 + t);
                            let at = (unit * self.words + word / self.part * self.part) * WARP
                                + lane * self.part
                                + word % self.part;
                            words[at] |= code << (bit % 32);
                        }
                    }
                }
            });
        bytes_of_u32(&words)
    }

    pub(super) fn buffers(&self, matrix: &QuantizedMatrix) -> Vec<Vec<u8>> {
        vec![self.codes(matrix), codebook_bytes(matrix), scale_bytes(matrix)]
    }

    pub(super) fn defines(&self, scheme: Scheme) -> Vec<(&'static str, usize)> {
        vec![
            ("AQLM_M", self.m),
            ("AQLM_B", scheme.nbits as usize),
            ("AQLM_G", scheme.in_group_size),
            ("AQLM_REPLICAS", self.replicas),
        ]
    }

    /// The same and those of matmul k2's configuration.
    fn all_defines(&self, scheme: Scheme, config: TileConfig) -> Vec<(&'static str, usize)> {
        let mut defines = self.defines(scheme);
        defines.extend([
            ("AQLM_ROW_WARPS", config.row_warps),
            ("AQLM_TILES", config.tiles),
            ("AQLM_SLICES", config.slices),
            ("AQLM_BATCH_TILES", config.batch_tiles),
        ]);
        defines
    }

    /// Shared memory of a block of matmul k2: codebooks, then two stages of x a team, which the last sums
    /// overlay.
    fn shared_bytes(&self, config: TileConfig) -> usize {
        let batch = config.batch_tiles * 16;
        let row_bytes = STEPS * 4 * self.vectors * 16 + 64;
        let stages = config.slices * 2 * batch * row_bytes;
        self.replicas * self.codebook_bytes + stages.max(config.sum_bytes())
    }

    /// Whether the kernel's accumulators, codes in flight and fragments fit the registers of so many threads.
    /// The last term is what the compiler needs beside them (read off its reports).
    fn fits_registers(&self, config: TileConfig) -> bool {
        let threads = config.row_warps * config.slices * WARP;
        let sums = config.batch_tiles * config.tiles * 4;
        let fragments = if config.batch_tiles <= 2 {
            config.batch_tiles * 8 + 8
        } else {
            8 + 4 * config.tiles
        };
        // Codewords on their way from L2.
        let far = if self.replicas == 0 { 30 } else { 0 };
        sums + 2 * config.tiles * self.words + fragments + far + 36 <= (65_536 / threads).min(255)
    }

    /// Clocks that a configuration should take, by what its blocks read of shared memory and multiply.
    fn clocks(&self, config: TileConfig, batch: usize, target: &Target) -> f64 {
        let TileConfig {
            row_warps,
            tiles,
            slices,
            batch_tiles,
        } = config;
        let blocks = self.tiles.div_ceil(row_warps * tiles) * batch.div_ceil(16 * batch_tiles);
        let waves = blocks.div_ceil(target.multiprocessors as usize);
        // A codeword of a warp: four passes of shared memory without bank conflicts, 2.8 times that with one
        // copy; from L2, 32 sectors.
        let codeword = match self.replicas {
            0 => 25.0,
            1 => 11.0,
            2 => 7.0,
            4 => 5.0,
            _ => 4.0,
        };
        let reads = 8.0 * batch_tiles as f64 + (tiles * self.m) as f64 * codeword;
        let products = (2 * batch_tiles * tiles) as f64 * 1.7;
        let rounds = self.units.div_ceil(slices) * slices;
        let vectors = (rounds * STEPS * self.vectors) as f64;
        let inputs = (self.units * batch_tiles * 16 * STEPS * 4 * self.vectors * 16) as f64 / 48.0;
        let sums = (slices * batch_tiles * 16 * row_warps * tiles * TILE_ROWS * 4 * 2) as f64 / 128.0;
        let few_warps = if row_warps * slices < 8 { 1.3 } else { 1.0 };
        waves as f64
            * ((vectors * row_warps as f64 * reads.max(products) * few_warps).max(inputs) + sums + 2000.0)
    }
}

/// Configurations of matmul k2 that the target can run, the one expected to be fastest first.
pub(super) fn configs(
    scheme: Scheme,
    out_features: usize,
    in_features: usize,
    batch: usize,
    target: &Target,
) -> Vec<TileConfig> {
    let form = Form::new(scheme, out_features, in_features, target);
    let mut configs = Vec::new();
    for batch_tiles in [1, 2, 4, 8] {
        if batch_tiles > batch.div_ceil(16).next_power_of_two() {
            break;
        }
        for row_warps in [1, 2, 3, 4, 6, 8] {
            for slices in [1, 2, 4, 8, 16] {
                let warps = row_warps * slices;
                // Named barriers are numbered 1 to 15.
                if !(4..=16).contains(&warps) || warps % 4 != 0 || (row_warps > 1 && slices > 15) {
                    continue;
                }
                for tiles in 1..=12 {
                    let config = TileConfig {
                        row_warps,
                        tiles,
                        slices,
                        batch_tiles,
                    };
                    if form.fits_registers(config) && form.shared_bytes(config) <= target.shared_bytes {
                        configs.push((form.clocks(config, batch, target), config));
                    }
                }
            }
        }
    }
    configs.retain(|(_, config)| target.has("matmul/k2_fused_tensor", &form.all_defines(scheme, *config)));
    configs.sort_by(|a, b| a.0.total_cmp(&b.0));
    configs.into_iter().map(|(_, config)| config).collect()
}

/// matmul k2 in the configuration that is expected to be fastest.
pub(super) fn pack_matmul(matrix: &QuantizedMatrix, target: &Target, batch: usize) -> Result<Packed> {
    let (out_features, in_features) = (matrix.out_features(), matrix.in_features());
    let configs = configs(matrix.scheme(), out_features, in_features, batch, target);
    let config = configs.first().ok_or_else(|| {
        AqlmError::Unsupported(format!("no configuration of matmul k2 fits {}", matrix.scheme()))
    })?;
    let mut packed = unplanned("matmul/k2_fused_tensor", matrix, target, batch);
    plan(&mut packed, matrix.scheme(), target, *config);
    Ok(packed)
}

/// A matmul of several rows on these buffers, still to be given a configuration.
pub(super) fn unplanned(
    kernel: &'static str,
    matrix: &QuantizedMatrix,
    target: &Target,
    batch: usize,
) -> Packed {
    let form = Form::of(matrix, target);
    Packed {
        kernel,
        defines: vec![],
        buffers: form.buffers(matrix),
        sizes: vec![form.units as i32],
        grid: [1, 1],
        block: WARP as u32,
        cluster: 1,
        shared_bytes: 0,
        out_features: matrix.out_features(),
        in_features: matrix.in_features(),
        batch,
        rows: matrix.out_features(),
        activations: Activations::F16,
    }
}

/// Sets `packed`'s launch to `config`.
pub(super) fn plan(packed: &mut Packed, scheme: Scheme, target: &Target, config: TileConfig) {
    let form = Form::new(scheme, packed.out_features, packed.in_features, target);
    packed.defines = form.all_defines(scheme, config);
    packed.grid = [
        form.tiles.div_ceil(config.block_tiles()) as u32,
        packed.batch.div_ceil(16 * config.batch_tiles) as u32,
    ];
    packed.block = (config.row_warps * config.slices * WARP) as u32;
    packed.shared_bytes = form.shared_bytes(config);
}

impl Packed {
    /// This launch of decode k2, for some rows only: from `first_row` (a multiple of 8) on.
    pub(crate) fn for_rows(&self, first_row: usize, rows: usize) -> Self {
        let tiles = rows.div_ceil(TILE_ROWS);
        let mut packed = self.without_buffers();
        packed.sizes[1] = (first_row / TILE_ROWS) as i32;
        packed.sizes[2] = tiles as i32;
        let tasks = tiles * packed.sizes[0] as usize;
        packed.grid[0] = packed.grid[0].min(tasks.div_ceil(16) as u32);
        packed.rows = rows;
        packed
    }
}

/// decode k2: the same buffers as matmul k2.
pub(super) fn pack_decode(matrix: &QuantizedMatrix, target: &Target) -> Packed {
    let form = Form::of(matrix, target);
    let tasks = form.tiles * form.units;
    // Two blocks of 16 warps a multiprocessor where shared memory allows.
    let shared_bytes = form.replicas * form.codebook_bytes;
    let blocks = if 2 * (shared_bytes + 1024) <= target.shared_bytes {
        4
    } else {
        1
    };
    let grid = tasks.div_ceil(16).min(target.multiprocessors as usize * blocks);
    Packed {
        kernel: "decode/k2_tiles",
        defines: form.defines(matrix.scheme()),
        buffers: form.buffers(matrix),
        sizes: vec![form.units as i32, 0, form.tiles as i32],
        grid: [grid as u32, 1],
        block: 512,
        cluster: 1,
        shared_bytes,
        out_features: matrix.out_features(),
        in_features: matrix.in_features(),
        batch: 1,
        rows: matrix.out_features(),
        activations: Activations::F16,
    }
}
