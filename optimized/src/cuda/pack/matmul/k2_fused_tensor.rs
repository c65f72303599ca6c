use std::fmt;

use aqlm_kernels::defines::matmul::k2_fused_tensor::ROW_PADDING;
use aqlm_kernels::defines::tiles::{STEPS, SUM_PADDING, TILE_ROWS};
use aqlm_vocabulary::{Result, Scheme};

use super::super::fastest::{pack_fastest, ranked};
use super::super::job::Job;
use super::super::tiles::{Form, WARP};
use super::super::{Packed, Target};

const KERNEL: &str = "matmul/k2_fused_tensor";

/// How matmul k2 divides its work: see the kernel's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TileConfig {
    /// warps of a team, side by side along the output rows
    pub row_warps: usize,
    /// tiles of 8 output rows a warp
    pub tiles: usize,
    /// teams, among which the input features are divided
    pub slices: usize,
    /// tiles of 16 rows of x a block
    pub batch_tiles: usize,
}

impl TileConfig {
    /// Tiles of 8 output rows of a block.
    pub(in super::super) fn block_tiles(&self) -> usize {
        self.row_warps * self.tiles
    }

    /// Shared memory of a block's last sums, one set for each team; the row stride is an odd multiple of 8.
    pub(in super::super) fn sum_bytes(&self) -> usize {
        let tiles = self.block_tiles();
        let stride = tiles * TILE_ROWS + if tiles.is_multiple_of(2) { SUM_PADDING } else { 0 };
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

impl Form {
    /// The scheme's constants and those of matmul k2's configuration.
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
        let row_bytes = STEPS * 4 * self.vectors * 16 + ROW_PADDING;
        let stages = config.slices * 2 * batch * row_bytes;
        self.replicas * self.codebook_bytes + stages.max(config.sum_bytes())
    }

    /// Whether the kernel's accumulators, codes in flight and fragments fit the registers of this many
    /// threads. The last term is the compiler's overhead (taken from its reports).
    fn fits_registers(&self, config: TileConfig) -> bool {
        let threads = config.row_warps * config.slices * WARP;
        let sums = config.batch_tiles * config.tiles * 4;
        let fragments = if config.batch_tiles <= 2 {
            config.batch_tiles * 8 + 8
        } else {
            8 + 4 * config.tiles
        };
        // Codewords in flight from L2.
        let far = if self.replicas == 0 { 30 } else { 0 };
        sums + 2 * config.tiles * self.words + fragments + far + 36 <= (65_536 / threads).min(255)
    }

    /// Predicted clocks of a configuration, from its blocks' reads of shared memory and products.
    fn clocks(&self, config: TileConfig, batch: usize, target: &Target) -> f64 {
        let TileConfig {
            row_warps,
            tiles,
            slices,
            batch_tiles,
        } = config;
        let blocks = self.tiles.div_ceil(row_warps * tiles) * batch.div_ceil(16 * batch_tiles);
        let waves = blocks.div_ceil(target.multiprocessors as usize);
        // Cost of a codeword of a warp: four passes of shared memory without bank conflicts, 2.8 times that
        // with one copy; from L2, 32 sectors.
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

/// Configurations of matmul k2 that the target can run, the fastest expected first.
pub(in super::super) fn configs(
    scheme: Scheme,
    [out_features, in_features]: [usize; 2],
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
    ranked(configs, |config| {
        target.has(KERNEL, &form.all_defines(scheme, *config))
    })
}

/// matmul k2 in the configuration expected to be fastest.
pub(in super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    pack_fastest(job, configs, plan)
}

/// Sets `packed`'s launch to `config`.
pub(in super::super) fn plan(packed: &mut Packed, scheme: Scheme, target: &Target, config: TileConfig) {
    let form = Form::new(scheme, packed.out_features, packed.in_features, target);
    packed.defines = form.all_defines(scheme, config);
    packed.grid = [
        form.tiles.div_ceil(config.block_tiles()) as u32,
        packed.batch.div_ceil(16 * config.batch_tiles) as u32,
    ];
    packed.block = (config.row_warps * config.slices * WARP) as u32;
    packed.shared_bytes = form.shared_bytes(config);
}
