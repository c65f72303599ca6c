//! `aqlm bench`: every kernel that claims a case is first checked against the reference, then timed beside a
//! dense product and a roofline.
//!
//! Nothing is timed whose result was not compared in the same process.

mod cpu;
mod cuda;
mod inputs;
mod plot;
mod shapes;
mod user_kernel;
mod verdict;
mod whole_model;

use std::path::PathBuf;

use aqlm_optimized::cuda::timing::Timing;
use aqlm_vocabulary::Scheme;

pub(crate) use cpu::bench_cpu;
pub(crate) use cuda::bench_cuda;
pub(crate) use plot::svg;
pub(crate) use shapes::LlamaShape;
pub(crate) use verdict::Verdict;
pub(crate) use whole_model::{DecodeOptions, bench_decode};

use aqlm_engine::runs::records::{BenchCase, BenchReport, KernelRow, Times, Worst};

/// The formats of x and y on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BenchActivations {
    /// IEEE half precision
    F16,
    /// the upper half of an f32
    Bf16,
}

impl BenchActivations {
    /// As the command line has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// The operations that have kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BenchOp {
    /// y = W x
    Matvec,
    /// Y = X W^T for several rows of x
    Matmul,
    /// the dense weight from its codes
    Decode,
}

impl BenchOp {
    /// As the folder of its kernels is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Matvec => "matvec",
            Self::Matmul => "matmul",
            Self::Decode => "decode",
        }
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct BenchOptions {
    /// the operation
    pub op: BenchOp,
    /// the scheme
    pub scheme: Scheme,
    /// rows of the weight
    pub out_features: usize,
    /// columns of the weight
    pub in_features: usize,
    /// the format of x and y on a GPU; on this processor they are f32
    pub activations: BenchActivations,
    /// rows of x, one case each
    pub batches: Vec<usize>,
    /// seed of codes, codebooks and inputs
    pub seed: u64,
    /// replays of a graph; 0 checks and times nothing
    pub replays: usize,
    /// milliseconds that the device rests before each replay, and graphs are short then: what a call takes
    /// alone, and not what it takes where the power limit lowers the clock
    pub rest: u64,
    /// only kernels whose id contains this
    pub only: String,
    /// a folder to take the shipped kernels' sources from
    pub kernel_folder: Option<PathBuf>,
    /// the user's own kernel
    pub user_kernel: Option<PathBuf>,
    /// how many launch configurations to try of kernels that have several
    pub configs: usize,
    /// only those whose description contains this
    pub config: String,
}

/// A case before it was tried: of `options`, with x and y in the format `activations`.
fn empty_report(options: &BenchOptions, activations: &str, dense: &str) -> BenchReport {
    BenchReport {
        op: options.op.name().to_owned(),
        scheme: options.scheme.to_string(),
        activations: activations.to_owned(),
        out_features: options.out_features,
        in_features: options.in_features,
        device: None,
        copy_bytes_per_second: None,
        dense: dense.to_owned(),
        cases: Vec::new(),
        waived: None,
    }
}

/// A measured time as reports have it.
fn times(timing: Timing) -> Times {
    Times {
        median: timing.median,
        p10: timing.p10,
        p90: timing.p90,
    }
}

/// Fewest bytes that a case must move.
fn least_bytes(options: &BenchOptions, batch: usize) -> usize {
    let scheme = options.scheme;
    let (out_features, in_features) = (options.out_features, options.in_features);
    let groups = (
        out_features / scheme.out_group_size,
        in_features / scheme.in_group_size,
    );
    let activations = match options.op {
        BenchOp::Decode => out_features * in_features * 2,
        BenchOp::Matvec | BenchOp::Matmul => batch * (in_features + out_features) * 2,
    };
    matrix_bytes(scheme, groups) + activations
}

/// Fewest bytes of a matrix of (output groups, input groups): codes at their own width, codebooks and scales
/// in f16.
fn matrix_bytes(scheme: Scheme, (out_groups, in_groups): (usize, usize)) -> usize {
    let codes = (out_groups * in_groups * scheme.num_codebooks * scheme.nbits as usize).div_ceil(8);
    let codebooks = scheme.num_codebooks * scheme.codebook_size() * scheme.group_len() * 2;
    codes + codebooks + 2 * out_groups
}
