//! From a quantized matrix to the bytes that a kernel reads.
//!
//! The file format stays as it is; at load, codes are re-ordered into the order in which a kernel's lanes use
//! them and packed to B bits (or to 24 bits with their position, where that makes a kernel faster). All of
//! this is plain code without a device, so that tests can run kernels on the CPU.

mod hot;
mod joined;
mod lane_inputs;
mod lookup;
mod plain;
mod shared;
mod sliced;
mod tables;
mod tiles;
mod warpgroup;

pub use joined::{Joined, pack_joined};
pub use tiles::TileConfig;
pub use warpgroup::WarpgroupConfig;

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
    /// What the manifest and a kernel's entry call it.
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

/// The constant that makes x and y bf16.
const BF16: (&str, usize) = ("AQLM_BF16", 1);

/// One matrix, ready to upload, and how to launch the kernel on it.
///
/// A kernel's arguments are the buffers in order, then x (not for decode), y, out_features, in_features, the
/// rows of x (matmul only), then `sizes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// id in the manifest of `aqlm-kernels`
    pub kernel: &'static str,
    /// compile-time constants
    pub defines: Vec<(&'static str, usize)>,
    /// codes first, then whatever the kernel's head says; all multiples of 16 bytes
    pub buffers: Vec<Vec<u8>>,
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
        if let Some(at) = kernel.typed_codebooks {
            for pair in self.buffers[at].chunks_exact_mut(2) {
                let value = f16::from_le_bytes([pair[0], pair[1]]);
                pair.copy_from_slice(&bf16::from_f32(value.to_f32()).to_le_bytes());
            }
        }
        Ok(self)
    }

    /// Bytes that the matrix takes on the device.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Vec::len).sum()
    }

    /// How to launch, without what to launch on.
    pub(crate) fn without_buffers(&self) -> Self {
        Self {
            kernel: self.kernel,
            defines: self.defines.clone(),
            buffers: vec![],
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
    let packed = match kernel.id.as_str() {
        "matvec/k1_naive" => plain::pack("matvec/k1_naive", matrix, batch),
        "matmul/k1_naive" => plain::pack("matmul/k1_naive", matrix, batch),
        "decode/k1_naive" => plain::pack("decode/k1_naive", matrix, batch),
        "matmul/k2_fused_tensor" => tiles::pack_matmul(matrix, target, batch)?,
        "matmul/k3_warpgroup" => warpgroup::pack(matrix, target, batch)?,
        "matmul/k4_hot_codewords" => hot::pack(matrix, target, batch)?,
        "decode/k2_tiles" => tiles::pack_decode(matrix, target),
        "matvec/k2_shared_codebook" => shared::pack(matrix, target)?,
        "matvec/k3_lookup_table" => lookup::pack(matrix, target),
        "matvec/k4_sliced_codebook" => sliced::pack(matrix, target),
        "matvec/k5_staged_codes" => lookup::pack_staged(matrix, target)?,
        "matvec/k6_product_tables" => tables::pack(matrix, target)?,
        "matvec/k7_lane_inputs" => lane_inputs::pack(matrix, target)?,
        other => return Err(AqlmError::Internal(format!("no packer for {other}"))),
    };
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
    match id {
        "matmul/k2_fused_tensor" => tiles::configs(scheme, out_features, in_features, batch, target)
            .into_iter()
            .map(LaunchConfig::Tiles)
            .collect(),
        "matmul/k3_warpgroup" => warpgroup::configs(scheme, out_features, in_features, batch, target)
            .into_iter()
            .map(LaunchConfig::Warpgroups)
            .collect(),
        _ => Vec::new(),
    }
}

/// `packed`, of a matrix of `scheme`, launched in another configuration of its kernel.
pub fn with_config(packed: &Packed, scheme: Scheme, target: &Target, config: LaunchConfig) -> Packed {
    let mut packed = packed.clone();
    match config {
        LaunchConfig::Tiles(config) => tiles::plan(&mut packed, scheme, target, config),
        LaunchConfig::Warpgroups(config) => warpgroup::plan(&mut packed, scheme, target, config),
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
