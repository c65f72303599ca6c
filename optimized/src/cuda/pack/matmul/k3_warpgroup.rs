use std::fmt;

use aqlm_kernels::defines::matmul::k3_warpgroup::{PAIR_PADDING, ROW_PADDING};
use aqlm_vocabulary::{Result, Scheme};

use super::super::fastest::{pack_fastest, ranked};
use super::super::job::Job;
use super::super::tiles::{Form, UNIT_GROUPS};
use super::super::{Packed, Target};

const KERNEL: &str = "matmul/k3_warpgroup";
/// Shared memory for a block's part of the codebook, at most, so that stages of x fit beside it.
const PIECE_LIMIT: usize = 131_072;
/// Candidate shares of look-ups in the cluster's shared memory rather than in L2, in eighths.
const SPREADS: [usize; 5] = [4, 5, 6, 8, 2];

/// How matmul k3 divides its work: see the kernel's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WarpgroupConfig {
    /// warpgroups of a block, 64 output rows each
    pub warpgroups: usize,
    /// blocks that share out the input features
    pub slices: usize,
    /// blocks of a cluster, a multiple of `slices`
    pub cluster: usize,
    /// rows of x of a block
    pub batch: usize,
    /// eighths of the look-ups that go to the cluster's shared memory; 0 when the codebook is not spread over
    /// the cluster
    pub spread: usize,
}

impl fmt::Display for WarpgroupConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            warpgroups,
            slices,
            cluster,
            batch,
            spread,
        } = self;
        write!(f, "{warpgroups}x64 by {batch} rows, {slices} slices")?;
        if *spread > 0 {
            write!(f, ", {spread}/8 from a cluster of {cluster}")?;
        }
        Ok(())
    }
}

impl WarpgroupConfig {
    fn threads(&self) -> usize {
        self.warpgroups * 128
    }

    fn block_rows(&self) -> usize {
        self.warpgroups * 64
    }

    /// Blocks along the grid's first axis: whole clusters.
    fn blocks(&self, out_features: usize) -> usize {
        (out_features.div_ceil(self.block_rows()) * self.slices).next_multiple_of(self.cluster)
    }

    /// Bytes of shared memory: codebooks and two stages of x, which the sums of a block's share overlay.
    fn shared_bytes(&self, form: &Form) -> usize {
        let codebook = if self.spread > 0 {
            form.codebook_bytes / self.cluster
        } else {
            form.replicas * form.codebook_bytes
        };
        let stage = 2 * (4 * self.batch * 16 + PAIR_PADDING);
        let sums = self.batch * (self.block_rows() + ROW_PADDING) * 4;
        (codebook + 2 * stage).max(sums)
    }

    /// Registers of a thread: sums, operands of two chunks, codes in flight, x in flight, and the compiler's
    /// overhead (taken from its reports). With three or four codebooks, 128 rows and three warpgroups the
    /// compiler spills 24 bytes a thread, and that is still the fastest.
    fn registers(&self, form: &Form) -> usize {
        let inputs = (self.batch * 8).div_ceil(self.threads()) * 4;
        // One byte a code and one codebook: no shifts, no additions.
        let beside = if form.words == 1 { 28 } else { 40 };
        self.batch / 2 + 32 + 4 * form.words + inputs + beside
    }

    fn defines(&self, form: &Form, scheme: Scheme) -> Vec<(&'static str, usize)> {
        let mut defines = form.defines(scheme);
        defines.extend([
            ("AQLM_WARPGROUPS", self.warpgroups),
            ("AQLM_SLICES", self.slices),
            ("AQLM_CLUSTER", self.cluster),
            ("AQLM_BATCH", self.batch),
            ("AQLM_SPREAD", self.spread),
        ]);
        defines
    }

    fn fits_registers(&self, form: &Form) -> bool {
        self.registers(form) <= (65_536 / self.threads() / 8 * 8).min(255)
    }

    /// Blocks resident on a multiprocessor at once.
    fn resident(&self, form: &Form, target: &Target) -> usize {
        let registers = self.registers(form).next_multiple_of(8) * self.threads();
        (65_536 / registers)
            .min(target.shared_bytes / (self.shared_bytes(form) + 1024))
            .max(1)
    }

    /// Predicted clocks. The terms are a multiprocessor's work. The factors are fitted to 158 measurements on
    /// an H100 (mean deviation 7 %; the fastest of a case's configurations found in 28 of 30 cases). The
    /// terms add up, because so few warps hide no latency. The tensor cores' own time fits as zero beside
    /// writing and reading x for them.
    fn clocks(&self, form: &Form, out_features: usize, batch: usize, target: &Target) -> f64 {
        let blocks = self.blocks(out_features) * batch.div_ceil(self.batch);
        let multiprocessors = if self.spread > 0 {
            target.clusters_of(self.cluster as u32) as usize * self.cluster
        } else {
            target.multiprocessors as usize
        };
        let most = self.resident(form, target);
        let at_once = multiprocessors * most;
        let waves = blocks.div_ceil(at_once) as f64;
        let resident = most.min(blocks.div_ceil(multiprocessors)) as f64;
        let units = form.units.div_ceil(self.slices) as f64;
        let chunks = units * 2.0 * form.vectors as f64;
        let rows = self.block_rows() as f64;
        let codewords = units * UNIT_GROUPS as f64 * rows * form.m as f64;
        let vectors = codewords * form.vectors as f64 * resident;
        // Extra passes of shared memory beyond the first for eight lanes' 16-byte loads, by the number of
        // copies of the codebooks.
        let conflicts = match form.replicas {
            0 => 0.0,
            1 => 2.8,
            2 => 1.9,
            4 => 1.3,
            _ => 1.0,
        };
        let look_ups = vectors * conflicts / 8.0;
        let inputs = chunks * self.batch as f64 * resident;
        let near = self.spread as f64 / 8.0;
        let far = if form.replicas > 0 { 0.0 } else { 1.0 - near };
        // One sector for each codeword. All multiprocessors share 80 slices of L2, each of which gives at
        // most a sector a clock. The model counts 74 sectors a clock.
        let sectors = codewords * far * blocks.min(at_once) as f64 / 74.0;
        let network = vectors * near;
        let sums = self.batch as f64 * rows * resident / 8.0;
        waves
            * (6000.0
                + 577.0 * chunks
                + 1.13 * look_ups
                + 3.05 * inputs
                + sectors
                + 2.1 * network
                + 6.1 * sums)
    }
}

/// Configurations of matmul k3 that the target can run, the fastest expected first.
pub(in super::super) fn configs(
    scheme: Scheme,
    [out_features, in_features]: [usize; 2],
    batch: usize,
    target: &Target,
) -> Vec<WarpgroupConfig> {
    let form = Form::new(scheme, out_features, in_features, target);
    let mut configs = Vec::new();
    for rows in [16, 32, 64, 128, 256] {
        if rows > 16 && rows / 2 >= batch {
            break;
        }
        for warpgroups in 1..=4 {
            for slices in [1, 2, 4, 8] {
                let mut push = |cluster: usize, spread: usize| {
                    let config = WarpgroupConfig {
                        warpgroups,
                        slices,
                        cluster,
                        batch: rows,
                        spread,
                    };
                    let fits = config.fits_registers(&form)
                        && config.shared_bytes(&form) <= target.shared_bytes
                        && (cluster == 1 || target.cluster_up_to(cluster) == cluster);
                    if fits {
                        configs.push((config.clocks(&form, out_features, batch, target), config));
                    }
                };
                push(slices, 0);
                if form.replicas == 0 && form.m == 1 {
                    let pieces = form.codebook_bytes.div_ceil(PIECE_LIMIT).next_power_of_two();
                    if pieces <= 8 {
                        for spread in SPREADS {
                            push(slices.max(pieces), spread);
                        }
                    }
                }
            }
        }
    }
    ranked(configs, |config| {
        target.has(KERNEL, &config.defines(&form, scheme))
    })
}

/// matmul k3 in the configuration expected to be fastest, on the same operands as matmul k2.
pub(in super::super) fn pack(job: &Job<'_>) -> Result<Packed> {
    pack_fastest(job, configs, plan)
}

/// Sets `packed`'s launch to `config`.
pub(in super::super) fn plan(packed: &mut Packed, scheme: Scheme, target: &Target, config: WarpgroupConfig) {
    let form = Form::new(scheme, packed.out_features, packed.in_features, target);
    packed.defines = config.defines(&form, scheme);
    packed.grid = [
        config.blocks(packed.out_features) as u32,
        packed.batch.div_ceil(config.batch) as u32,
    ];
    packed.block = config.threads() as u32;
    packed.cluster = config.cluster as u32;
    packed.shared_bytes = config.shared_bytes(&form);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// H100 measurements (docs/kernels.md): the first of each pair was faster.
    #[test]
    fn the_ranking_agrees_with_what_was_measured() {
        let target = Target {
            clusters: [132, 66, 32, 15, 0],
            ..Target::h100()
        };
        for (scheme, batch, faster, slower) in [
            (
                "2x8g8",
                16,
                "3x64 by 16 rows, 2 slices",
                "2x64 by 16 rows, 1 slices",
            ),
            (
                "1x8g8",
                16,
                "3x64 by 16 rows, 4 slices",
                "3x64 by 16 rows, 2 slices",
            ),
            (
                "2x8g8",
                128,
                "3x64 by 128 rows, 2 slices",
                "2x64 by 128 rows, 1 slices",
            ),
            (
                "2x8g8",
                256,
                "3x64 by 128 rows, 1 slices",
                "3x64 by 128 rows, 2 slices",
            ),
            (
                "1x16g8",
                128,
                "3x64 by 128 rows, 2 slices, 2/8 from a cluster of 8",
                "3x64 by 128 rows, 2 slices, 8/8 from a cluster of 8",
            ),
            (
                "1x16g16",
                128,
                "3x64 by 128 rows, 2 slices",
                "2x64 by 128 rows, 1 slices",
            ),
        ] {
            let configs = configs(scheme.parse().unwrap(), [11008, 4096], batch, &target);
            let rank = |name: &str| {
                configs
                    .iter()
                    .position(|config| config.to_string() == name)
                    .unwrap_or_else(|| panic!("{scheme}: no {name}"))
            };
            assert!(rank(faster) < rank(slower), "{scheme}, {batch} rows: {faster}");
        }
    }
}
