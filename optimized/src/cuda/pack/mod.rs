//! From a quantized matrix to the bytes that a kernel reads.
//!
//! The file format stays as it is; at load, codes are re-ordered into the order in which a kernel's lanes use
//! them and packed to B bits (or to 24 bits with their position, where that makes a kernel faster). All of
//! this is plain code without a device, so that tests can run kernels on the CPU.
//!
//! A packer stands in a file of its kernel's name. What packer and kernel must agree on is written in the
//! kernel's source and read from there (`aqlm_kernels::defines`).

// All packers have one signature, those too that refuse nothing.
#![allow(clippy::unnecessary_wraps)]

mod decode;
mod items;
mod joined;
mod matmul;
mod matvec;
mod naive;
mod tiles;

pub use joined::{Joined, pack_joined};
pub use matmul::k2_fused_tensor::TileConfig;
pub use matmul::k3_warpgroup::WarpgroupConfig;

use std::fmt;

use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result, Scheme};
use half::{bf16, f16};

use super::Activations;

/// What a packer must know of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// streaming multiprocessors
    pub multiprocessors: u32,
    /// shared memory that one block may ask for, bytes
    pub shared_bytes: usize,
    /// how many clusters of 1, 2, 4, 8, 16 blocks run at once when a block fills a multiprocessor; 0 where
    /// none does
    pub clusters: [u32; 5],
    /// whether only kernels run that were compiled into the program
    pub embedded_only: bool,
}

impl Target {
    /// Clusters of `size` blocks (a power of two up to 16) that run at once; at least 1.
    fn clusters_of(&self, size: u32) -> u32 {
        self.clusters[(size.trailing_zeros() as usize).min(4)].max(1)
    }

    /// The largest cluster size of at most `wanted` (a power of two) that the device can place.
    fn cluster_up_to(&self, wanted: usize) -> usize {
        let mut size = wanted.min(16);
        while size > 1 && self.clusters[size.trailing_zeros() as usize] == 0 {
            size /= 2;
        }
        size
    }

    /// Whether kernel `id` with these constants can run.
    fn has(&self, id: &str, defines: &[(&str, usize)]) -> bool {
        !self.embedded_only || aqlm_kernels::embedded(id, defines).is_some()
    }

    /// An H100 SXM with 132 multiprocessors, for use without a device.
    pub fn h100() -> Self {
        Self {
            multiprocessors: 132,
            shared_bytes: 232_448,
            clusters: [132, 66, 32, 16, 0],
            embedded_only: false,
        }
    }
}

/// The operations that have kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// y = W x, one x
    Matvec,
    /// Y = X W^T, several rows of x
    Matmul,
    /// the dense weight
    Decode,
}

impl Op {
    /// What the folder of its kernels and their entries are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Matvec => "matvec",
            Self::Matmul => "matmul",
            Self::Decode => "decode",
        }
    }

    /// Of a kernel's id, which starts with its operation.
    fn of(kernel: &str) -> Self {
        match kernel.split('/').next() {
            Some("matmul") => Self::Matmul,
            Some("decode") => Self::Decode,
            _ => Self::Matvec,
        }
    }
}

/// How the operands of one kernel are laid out and its launch is planned.
struct Packer {
    /// its id
    kernel: &'static str,
    /// lays a matrix out for the kernel, and for so many rows of x
    pack: fn(&'static str, &QuantizedMatrix, &Target, usize) -> Result<Packed>,
    /// divisions of the work of a shape (out_features, in_features) and so many rows of x that the target can
    /// run, the one expected to be fastest first; none where there is no choice
    configs: fn(Scheme, [usize; 2], usize, &Target) -> Vec<LaunchConfig>,
}

impl Packer {
    const fn new(
        kernel: &'static str,
        pack: fn(&'static str, &QuantizedMatrix, &Target, usize) -> Result<Packed>,
    ) -> Self {
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
        configs: matmul::k2_fused_tensor::launch_configs,
        ..Packer::new("matmul/k2_fused_tensor", matmul::k2_fused_tensor::pack)
    },
    Packer {
        configs: matmul::k3_warpgroup::launch_configs,
        ..Packer::new("matmul/k3_warpgroup", matmul::k3_warpgroup::pack)
    },
    Packer::new("matmul/k4_hot_codewords", matmul::k4_hot_codewords::pack),
    Packer::new("decode/k1_naive", naive::pack),
    Packer::new("decode/k2_tiles", decode::k2_tiles::pack),
];

/// The constant that makes x and y bf16.
const BF16: (&str, usize) = ("AQLM_BF16", 1);

/// What a kernel reads or writes beside x and y.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operand {
    /// as the kernel's source names it
    pub name: &'static str,
    /// a multiple of 16
    pub bytes: Vec<u8>,
}

/// One matrix, ready to upload, and how to launch the kernel on it.
///
/// A kernel's arguments are the operands in order, then x (not for decode), y, out_features, in_features, the
/// rows of x (matmul only), then `sizes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// its id
    pub kernel: &'static str,
    /// compile-time constants
    pub defines: Vec<(&'static str, usize)>,
    /// what the kernel's head says, in the order of its entry's pointers
    pub operands: Vec<Operand>,
    /// the kernel's own integer arguments
    pub sizes: Vec<i32>,
    /// blocks
    pub grid: [u32; 2],
    /// threads of a block
    pub block: u32,
    /// blocks of a cluster, along the grid's first axis
    pub cluster: u32,
    /// dynamic shared memory of a block
    pub shared_bytes: usize,
    /// rows of the matrix
    pub out_features: usize,
    /// columns of the matrix
    pub in_features: usize,
    /// rows of x
    pub batch: usize,
    /// rows of the matrix that are computed: all, but for a decode of some
    pub rows: usize,
    /// the format of x and y
    pub activations: Activations,
}

impl Packed {
    /// A launch still to be planned: one block, no operands.
    fn unplanned(kernel: &'static str, matrix: &QuantizedMatrix, batch: usize) -> Self {
        Self {
            kernel,
            defines: vec![],
            operands: vec![],
            sizes: vec![],
            grid: [1, 1],
            block: 32,
            cluster: 1,
            shared_bytes: 0,
            out_features: matrix.out_features(),
            in_features: matrix.in_features(),
            batch,
            rows: matrix.out_features(),
            activations: Activations::F16,
        }
    }

    /// The bytes of an operand.
    ///
    /// # Errors
    /// `Unsupported` when it has none of that name.
    fn operand_mut(&mut self, name: &str) -> Result<&mut Vec<u8>> {
        let kernel = self.kernel;
        self.operands
            .iter_mut()
            .find(|operand| operand.name == name)
            .map(|operand| &mut operand.bytes)
            .ok_or_else(|| AqlmError::Unsupported(format!("{kernel}: its packer lays out no operand {name}")))
    }

    /// What the kernel computes.
    pub fn op(&self) -> Op {
        Op::of(self.kernel)
    }

    /// Numbers in x.
    pub fn x_len(&self) -> usize {
        match self.op() {
            Op::Decode => 0,
            Op::Matvec | Op::Matmul => self.batch * self.in_features,
        }
    }

    /// Numbers in y.
    pub fn y_len(&self) -> usize {
        match self.op() {
            Op::Decode => self.rows * self.in_features,
            Op::Matvec | Op::Matmul => self.batch * self.out_features,
        }
    }

    /// The integers that follow the pointers.
    pub fn integers(&self) -> Vec<i32> {
        let mut integers = vec![self.out_features as i32, self.in_features as i32];
        if self.op() == Op::Matmul {
            integers.push(self.batch as i32);
        }
        integers.extend(&self.sizes);
        integers
    }

    /// The same matrix and launch for x and y in another format than f16, which packers make it for.
    ///
    /// Tensor cores multiply numbers of one format, so that kernels which feed codewords to them as they are
    /// get codebooks in that of x, rounded to nearest; all others keep f16's and are exact.
    ///
    /// # Errors
    /// `Unsupported` where the kernel knows f16 only.
    pub fn with_activations(mut self, activations: Activations) -> Result<Self> {
        if self.activations == activations {
            return Ok(self);
        }
        let kernel =
            aqlm_kernels::kernel(self.kernel).map_err(|error| AqlmError::Internal(error.to_string()))?;
        if !kernel.bf16 {
            return Err(AqlmError::Unsupported(format!("{} knows f16 only", self.kernel)));
        }
        self.activations = activations;
        self.defines.push(BF16);
        if let Some(name) = &kernel.typed_codebooks {
            for pair in self.operand_mut(name)?.chunks_exact_mut(2) {
                let value = f16::from_le_bytes([pair[0], pair[1]]);
                pair.copy_from_slice(&bf16::from_f32(value.to_f32()).to_le_bytes());
            }
        }
        Ok(self)
    }

    /// Bytes that the matrix takes on the device.
    pub fn bytes(&self) -> usize {
        self.operands.iter().map(|operand| operand.bytes.len()).sum()
    }

    /// How to launch, without what to launch on.
    pub(crate) fn without_operands(&self) -> Self {
        Self {
            kernel: self.kernel,
            defines: self.defines.clone(),
            operands: vec![],
            sizes: self.sizes.clone(),
            ..*self
        }
    }
}

/// Lays `matrix` out for the kernel `id` and plans its launch for `batch` rows of x (1 for matvec and
/// decode).
///
/// # Errors
/// `Argument` when there is no such kernel, `Unsupported` with the reason when it cannot do this matrix on
/// this target.
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
    let packed = (packer.pack)(packer.kernel, matrix, target, batch)?;
    if packed.shared_bytes > target.shared_bytes {
        return Err(AqlmError::Unsupported(format!(
            "{id} needs {} bytes of shared memory for {scheme} at {} inputs, {} are there",
            packed.shared_bytes, packed.in_features, target.shared_bytes
        )));
    }
    Ok(packed)
}

/// The kernel of this id.
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

/// How a kernel divides its work, where there is a choice.
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

/// The configurations in which `target` can run kernel `id`, the one expected to be fastest first; empty for
/// kernels that have no choice.
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

/// `packed`, of a matrix of `scheme`, launched in another configuration of its kernel.
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

fn bytes_of_u16(values: impl Iterator<Item = u16>) -> Vec<u8> {
    padded(values.flat_map(u16::to_le_bytes).collect())
}

fn bytes_of_u32(values: &[u32]) -> Vec<u8> {
    padded(bytemuck::cast_slice(values).to_vec())
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(16).max(16), 0);
    bytes
}

fn operand(name: &'static str, bytes: Vec<u8>) -> Operand {
    Operand { name, bytes }
}

/// Codebooks [M, 2^B, out_group, in_group] as f16.
fn codebook_bytes(matrix: &QuantizedMatrix) -> Vec<u8> {
    bytes_of_u16(
        matrix
            .codebooks()
            .iter()
            .map(|&value| f16::from_f64(value).to_bits()),
    )
}

/// Scales `[out_groups]` as f16.
fn scale_bytes(matrix: &QuantizedMatrix) -> Vec<u8> {
    bytes_of_u16(
        matrix
            .scales()
            .iter()
            .map(|&value| f16::from_f64(value).to_bits()),
    )
}

/// The fewest warps, at most `most`, that do `tasks` in as few rounds as `most` warps would.
fn even_warps(tasks: usize, most: usize) -> usize {
    let rounds = tasks.div_ceil(most).max(1);
    tasks.div_ceil(rounds).max(1)
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
