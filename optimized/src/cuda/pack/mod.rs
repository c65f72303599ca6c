//! From a quantized matrix to the bytes that a kernel reads.
//!
//! The file format stays as it is. At load, codes are re-ordered into the order in which a kernel's lanes use
//! them and packed to B bits, or to 24 bits with their position where that makes a kernel faster. All of this
//! is plain code without a device, so that tests can run kernels on the CPU.
//!
//! Each packer is in the file named after its kernel. Constants that packer and kernel must agree on are
//! written in the kernel's source and read from there (`aqlm_kernels::defines`).

// All packers have the same signature, including those that refuse nothing.
#![allow(clippy::unnecessary_wraps)]

mod decode;
mod experts;
mod fastest;
mod items;
mod job;
mod joined;
mod matmul;
mod matvec;
mod naive;
mod op;
mod operand;
mod packed;
mod target;
mod tiles;
mod warps;

pub use experts::{PackedExperts, Slots, pack_experts};
pub use joined::{Joined, pack_joined};
pub use matmul::k2_fused_tensor::TileConfig;
pub use matmul::k3_warpgroup::WarpgroupConfig;
pub use op::Op;
pub use operand::Operand;
pub use packed::Packed;
pub use target::Target;

use std::fmt;

use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result, Scheme};

use self::job::Job;
use self::packed::BF16;
use super::Activations;

/// Lays out the operands of one kernel and plans its launch.
struct Packer {
    /// its id
    kernel: &'static str,
    /// lays the job's matrix out for the kernel
    pack: fn(&Job<'_>) -> Result<Packed>,
    /// ways to divide the work of a shape (out_features, in_features) and a number of rows of x that the
    /// target can run, the fastest expected first; empty if there is no choice
    configs: fn(Scheme, [usize; 2], usize, &Target) -> Vec<LaunchConfig>,
}

impl Packer {
    const fn new(kernel: &'static str, pack: fn(&Job<'_>) -> Result<Packed>) -> Self {
        let configs = |_, _, _, _: &Target| Vec::new();
        Self {
            kernel,
            pack,
            configs,
        }
    }

    fn of(kernel: &str) -> Option<&'static Self> {
        PACKERS.iter().find(|packer| packer.kernel == kernel)
    }
}

/// The packer of every kernel that reads a quantized matrix.
static PACKERS: [Packer; 13] = [
    Packer::new("matvec/k1_naive", naive::pack),
    Packer::new("matvec/k2_shared_codebook", matvec::k2_shared_codebook::pack),
    Packer::new("matvec/k3_lookup_table", matvec::k3_lookup_table::pack),
    Packer::new("matvec/k4_sliced_codebook", matvec::k4_sliced_codebook::pack),
    Packer::new("matvec/k5_staged_codes", matvec::k5_staged_codes::pack),
    Packer::new("matvec/k6_product_tables", matvec::k6_product_tables::pack),
    Packer::new("matvec/k7_lane_inputs", matvec::k7_lane_inputs::pack),
    Packer::new("matmul/k1_naive", naive::pack),
    Packer {
        configs: |scheme, shape, batch, target| {
            let configs = matmul::k2_fused_tensor::configs(scheme, shape, batch, target);
            configs.into_iter().map(LaunchConfig::Tiles).collect()
        },
        ..Packer::new("matmul/k2_fused_tensor", matmul::k2_fused_tensor::pack)
    },
    Packer {
        configs: |scheme, shape, batch, target| {
            let configs = matmul::k3_warpgroup::configs(scheme, shape, batch, target);
            configs.into_iter().map(LaunchConfig::Warpgroups).collect()
        },
        ..Packer::new("matmul/k3_warpgroup", matmul::k3_warpgroup::pack)
    },
    Packer::new("matmul/k4_hot_codewords", matmul::k4_hot_codewords::pack),
    Packer::new("decode/k1_naive", naive::pack),
    Packer::new("decode/k2_tiles", decode::k2_tiles::pack),
];

/// Lays `matrix` out for the kernel `id` and plans its launch for `batch` rows of x (1 for matvec and
/// decode).
///
/// # Errors
/// `Argument` when there is no such kernel, `Unsupported` with the reason when the kernel cannot handle this
/// matrix on this target.
pub fn pack(id: &str, matrix: &QuantizedMatrix, target: &Target, batch: usize) -> Result<Packed> {
    let kernel = known(id)?;
    let scheme = matrix.scheme();
    if !kernel.claims(
        scheme.num_codebooks,
        scheme.nbits,
        scheme.in_group_size,
        scheme.out_group_size,
    ) {
        return Err(AqlmError::Unsupported(format!("{id} does not do {scheme}")));
    }
    if !(kernel.batch[0]..=kernel.batch[1]).contains(&batch) {
        return Err(AqlmError::Unsupported(format!(
            "{id} does {} to {} rows of x, not {batch}",
            kernel.batch[0], kernel.batch[1]
        )));
    }
    let packer = Packer::of(id).ok_or_else(|| AqlmError::Unsupported(format!("no packer for {id}")))?;
    let packed = (packer.pack)(&Job {
        kernel: packer.kernel,
        matrix,
        target,
        batch,
    })?;
    if packed.shared_bytes > target.shared_bytes {
        return Err(AqlmError::Unsupported(format!(
            "{id} needs {} bytes of shared memory for {scheme} at {} inputs, {} are there",
            packed.shared_bytes, packed.in_features, target.shared_bytes
        )));
    }
    Ok(packed)
}

/// The kernel with this id.
///
/// # Errors
/// `Argument` when there is none.
fn known(id: &str) -> Result<&'static aqlm_kernels::Kernel> {
    aqlm_kernels::kernel(id).map_err(|_| {
        let ids: Vec<&str> = aqlm_kernels::kernels()
            .iter()
            .map(|kernel| kernel.id.as_str())
            .collect();
        AqlmError::argument("kernel", format!("one of {}", ids.join(", ")), id)
    })
}

/// How a kernel divides its work, if it has a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LaunchConfig {
    /// of matmul k2
    Tiles(TileConfig),
    /// of matmul k3
    Warpgroups(WarpgroupConfig),
}

impl fmt::Display for LaunchConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tiles(config) => config.fmt(f),
            Self::Warpgroups(config) => config.fmt(f),
        }
    }
}

/// The configurations in which `target` can run kernel `id`, the fastest expected first; empty for kernels
/// that have no choice.
pub fn launch_configs(
    id: &str,
    scheme: Scheme,
    out_features: usize,
    in_features: usize,
    batch: usize,
    target: &Target,
) -> Vec<LaunchConfig> {
    Packer::of(id).map_or_else(Vec::new, |packer| {
        (packer.configs)(scheme, [out_features, in_features], batch, target)
    })
}

/// `packed`, from a matrix of `scheme`, launched in another configuration of its kernel.
pub fn with_config(packed: &Packed, scheme: Scheme, target: &Target, config: LaunchConfig) -> Packed {
    let mut packed = packed.clone();
    match config {
        LaunchConfig::Tiles(config) => matmul::k2_fused_tensor::plan(&mut packed, scheme, target, config),
        LaunchConfig::Warpgroups(config) => matmul::k3_warpgroup::plan(&mut packed, scheme, target, config),
    }
    if packed.activations == Activations::Bf16 {
        packed.defines.push(BF16);
    }
    packed
}

#[cfg(test)]
mod tests {
    use aqlm_kernels::kernels;
    use ndarray::{Array1, Array3, Array4};

    use super::*;

    #[test]
    fn every_kernel_of_a_quantized_matrix_has_a_packer() {
        let packed = kernels().iter().filter(|kernel| kernel.codebooks != [0, 0]);
        let mut ids: Vec<&str> = packed.map(|kernel| kernel.id.as_str()).collect();
        let mut packers: Vec<&str> = PACKERS.iter().map(|packer| packer.kernel).collect();
        ids.sort_unstable();
        packers.sort_unstable();
        assert_eq!(ids, packers);
    }

    #[test]
    fn packers_lay_out_what_the_entry_takes() {
        for scheme in ["2x8g8", "1x13g8", "1x16g16"] {
            let scheme: Scheme = scheme.parse().unwrap();
            let matrix = QuantizedMatrix::new(
                scheme,
                Array3::zeros((32, 16, scheme.num_codebooks)),
                Array4::zeros((
                    scheme.num_codebooks,
                    scheme.codebook_size(),
                    1,
                    scheme.in_group_size,
                )),
                Array1::ones(32),
            )
            .unwrap();
            for kernel in kernels().iter().filter(|kernel| Packer::of(&kernel.id).is_some()) {
                let Ok(packed) = pack(&kernel.id, &matrix, &Target::h100(), 1) else {
                    continue;
                };
                let mut names: Vec<&str> = packed.operands.iter().map(|operand| operand.name).collect();
                if packed.op() != Op::Decode {
                    names.push("x");
                }
                names.push("y");
                assert_eq!(names, kernel.operands, "{}", kernel.id);
                assert!(
                    packed
                        .operands
                        .iter()
                        .all(|operand| operand.bytes.len().is_multiple_of(16)),
                    "{}",
                    kernel.id
                );
            }
        }
    }
}
