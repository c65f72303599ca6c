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
use serde::Serialize;

pub(crate) use cpu::bench_cpu;
pub(crate) use cuda::bench_cuda;
pub(crate) use plot::svg;
pub(crate) use shapes::LlamaShape;
pub(crate) use verdict::{Verdict, Worst};
pub(crate) use whole_model::{DecodeOptions, DecodeReport, bench_decode};

use aqlm_check::Outcome;

/// What to run the kernels on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BenchDevice {
    /// the first NVIDIA GPU
    Cuda,
    /// this processor, at each SIMD level that it has
    Cpu,
}

/// The formats of x and y on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
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

/// Microseconds a call.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Times {
    /// half of the samples were faster
    pub median: f64,
    /// a tenth was
    pub p10: f64,
    /// nine tenths were
    pub p90: f64,
}

impl From<Timing> for Times {
    fn from(timing: Timing) -> Self {
        Self {
            median: timing.median,
            p10: timing.p10,
            p90: timing.p90,
        }
    }
}

/// One kernel on one case.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct KernelRow {
    /// the kernel's id, or the user's file
    pub kernel: String,
    /// how it divides the work, where there is a choice
    pub config: Option<String>,
    /// whether the table of measurements (kernels/dispatch.json) chooses this launch for the case
    pub dispatched: bool,
    /// how the check ended
    pub outcome: Outcome,
    /// why it is not a pass
    pub reason: Option<String>,
    /// normalised squared error on realistic inputs
    pub nmse: Option<f64>,
    /// the elements that are furthest off, when the check failed
    pub worst: Vec<Worst>,
    /// time of a call
    pub us: Option<Times>,
    /// median when a call may set itself up while the one before it ends
    pub us_overlapped: Option<f64>,
    /// bytes of the matrix as this kernel stores it
    pub bytes: Option<usize>,
    /// registers of a thread, and bytes of local memory
    pub registers: Option<(i32, i32)>,
}

impl KernelRow {
    fn new(kernel: &str, config: Option<String>) -> Self {
        Self {
            kernel: kernel.to_owned(),
            config,
            dispatched: false,
            outcome: Outcome::Waived,
            reason: None,
            nmse: None,
            worst: Vec::new(),
            us: None,
            us_overlapped: None,
            bytes: None,
            registers: None,
        }
    }

    fn ended(mut self, outcome: Outcome, reason: &impl ToString) -> Self {
        self.outcome = outcome;
        self.reason = Some(reason.to_string());
        self
    }
}

/// All kernels on one batch.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchCase {
    /// rows of x
    pub batch: usize,
    /// the dense product of the same shape through the library
    pub dense: Option<Times>,
    /// fewest bytes that must move: codes at their own width, codebooks, scales, x and y
    pub least_bytes: usize,
    /// those bytes at the rate of a copy, microseconds
    pub roofline_us: Option<f64>,
    /// the kernels
    pub kernels: Vec<KernelRow>,
}

/// What `aqlm bench` found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchReport {
    /// the operation
    pub op: BenchOp,
    /// the scheme
    pub scheme: String,
    /// the format of x and y
    pub activations: &'static str,
    /// rows of the weight
    pub out_features: usize,
    /// columns of the weight
    pub in_features: usize,
    /// what it ran on; `None` when there was nothing to run on
    pub device: Option<String>,
    /// bytes a second of a copy, read and written together
    pub copy_bytes_per_second: Option<f64>,
    /// the name of the dense product
    pub dense: String,
    /// one for each batch
    pub cases: Vec<BenchCase>,
    /// why nothing was tried
    pub waived: Option<String>,
}

impl BenchReport {
    /// Kernels that ended in `outcome`.
    pub(crate) fn count(&self, outcome: Outcome) -> usize {
        self.cases
            .iter()
            .flat_map(|case| &case.kernels)
            .filter(|row| row.outcome == outcome)
            .count()
    }

    /// Whether something passed and nothing failed.
    pub(crate) fn holds(&self) -> bool {
        self.count(Outcome::Fail) == 0 && self.count(Outcome::Pass) > 0
    }

    fn empty(options: &BenchOptions, activations: &'static str, dense: &str) -> Self {
        Self {
            op: options.op,
            scheme: options.scheme.to_string(),
            activations,
            out_features: options.out_features,
            in_features: options.in_features,
            device: None,
            copy_bytes_per_second: None,
            dense: dense.to_owned(),
            cases: Vec::new(),
            waived: None,
        }
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
