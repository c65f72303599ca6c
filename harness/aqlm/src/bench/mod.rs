//! `aqlm bench`: every kernel that claims a case is first checked against the reference, then timed beside a
//! dense product and a roofline.
//!
//! Nothing is timed whose result was not compared in the same process.

mod cpu;
mod cuda;
mod plot;
mod shapes;
mod user_kernel;
mod whole_model;

use std::path::PathBuf;

use aqlm_optimized::cuda::timing::Timing;
use aqlm_vocabulary::Scheme;

pub(crate) use cpu::bench_cpu;
pub(crate) use cuda::bench_cuda;
pub(crate) use plot::svg;
pub(crate) use shapes::LlamaShape;
pub(crate) use whole_model::{DecodeOptions, bench_decode};

use aqlm_check::cases::{Operation, Values};
use aqlm_check::{CaseRow, Outcome, ProductCheck};
use aqlm_engine::runs::records::{BenchCase, BenchReport, KernelRow, Times};
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
    /// As the command line has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// What to measure.
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
        op: options.op.word().to_owned(),
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

/// One batch of what is measured in both tiers: a case whose sums are exact, where results must be equal, and
/// a realistic one.
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

/// The row after a comparison with the reference; an error when that is not a pass.
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
