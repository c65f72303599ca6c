//! `aqlm bench`: checks every kernel that supports a case against the reference, then times it next to a
//! dense product and a roofline.
//!
//! A result is timed only after it has been compared in the same process.

mod cpu;
mod cuda;
mod plot;
mod shapes;
mod user_kernel;
mod whole_model;

use std::path::PathBuf;

use aqlm_optimized::cuda::memory_rate::{MemoryRates, memory_rates};
use aqlm_optimized::cuda::timing::Timing;
use aqlm_optimized::cuda::{CudaError, Device};
use aqlm_vocabulary::Scheme;

pub(crate) use cpu::bench_cpu;
pub(crate) use cuda::bench_cuda;
pub(crate) use plot::svg;
pub(crate) use shapes::LlamaShape;
pub(crate) use whole_model::{DecodeOptions, bench_decode};

use aqlm_check::cases::{Operation, Values};
use aqlm_check::{CaseRow, Outcome, ProductCheck};
use aqlm_engine::runs::records::{BenchCase, BenchReport, KernelRow, MemoryRate, Times};
use aqlm_formats::Result;

/// The formats of x and y on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BenchActivations {
    /// IEEE half precision
    F16,
    /// the upper half of an f32
    Bf16,
}

impl BenchActivations {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// Options of the bench.
#[derive(Debug, Clone)]
pub(crate) struct BenchOptions {
    /// the operation
    pub op: Operation,
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
    /// number of replays of a graph; 0 checks without timing
    pub replays: usize,
    /// idle milliseconds before each short replay, so that the power limit does not lower the clock: the time
    /// is then that of a call alone
    pub rest: u64,
    /// only kernels whose id contains this text
    pub only: String,
    /// folder with alternative sources of the shipped kernels
    pub kernel_folder: Option<PathBuf>,
    /// a user-defined kernel
    pub user_kernel: Option<PathBuf>,
    /// number of launch configurations to try for kernels with several
    pub configs: usize,
    /// only configurations whose description contains this text
    pub config: String,
}

/// An untried case of `options`, with x and y in the format `activations`.
fn empty_report(options: &BenchOptions, activations: &str, dense: &str) -> BenchReport {
    BenchReport {
        op: options.op.word().to_owned(),
        scheme: options.scheme.to_string(),
        activations: activations.to_owned(),
        out_features: options.out_features,
        in_features: options.in_features,
        device: None,
        memory: None,
        dense: dense.to_owned(),
        cases: Vec::new(),
        waived: None,
    }
}

/// The rates of a GPU's memory.
fn memory_rate(device: &Device) -> std::result::Result<MemoryRate, CudaError> {
    let MemoryRates { read, copy } = memory_rates(device)?;
    Ok(MemoryRate { read, copy })
}

/// A measured time in the form of the report.
fn times(timing: Timing) -> Times {
    Times {
        median: timing.median,
        p10: timing.p10,
        p90: timing.p90,
    }
}

/// One batch in both tiers: a case with exact sums, in which results must be equal, and a realistic one.
fn tiers(options: &BenchOptions, batch: usize) -> Result<[ProductCheck; 2]> {
    let BenchOptions {
        op,
        scheme,
        out_features,
        in_features,
        seed,
        ..
    } = options;
    let tier = |values| {
        let id = format!("{op}-{scheme}-{out_features}x{in_features}-b{batch}-{values}-s{seed}");
        ProductCheck::new(&id.parse()?)
    };
    Ok([tier(Values::Dyadic)?, tier(Values::Outliers)?])
}

/// The row after a comparison with the reference. An error unless the comparison passed.
fn compared(mut row: KernelRow, checked: &CaseRow) -> std::result::Result<KernelRow, Box<KernelRow>> {
    if checked.outcome != Outcome::Pass {
        row.worst = checked.worst_elements().to_vec();
        let reason = checked
            .reason
            .clone()
            .unwrap_or_else(|| "no reason given".to_owned());
        return Err(Box::new(row.ended(checked.outcome, &reason)));
    }
    let mut comparisons = checked.comparisons.iter();
    let nmse = comparisons.find(|comparison| comparison.what.starts_with("nmse"));
    row.nmse = Some(nmse.map_or(0.0, |comparison| comparison.value));
    Ok(row)
}
