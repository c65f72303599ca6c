use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use aqlm_optimized::cuda::llama::Rung;
use aqlm_vocabulary::Scheme;

use super::table::Table;
use super::{Output, decode_bench};
use crate::bench::{
    BenchActivations, BenchDevice, BenchOp, BenchOptions, BenchReport, KernelRow, bench_cpu, bench_cuda, svg,
};
use crate::bench::{DecodeOptions, LlamaShape};
use aqlm_check::Outcome;
use aqlm_formats::durable;
use aqlm_formats::{Error, Result};

/// Options of `aqlm bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to run on
    #[arg(long, value_enum, default_value = "cuda")]
    backend: BenchDevice,
    /// The operation
    #[arg(long, value_enum, default_value = "matvec")]
    op: BenchOp,
    /// The scheme, for example 2x8g8
    #[arg(long, default_value = "2x8g8")]
    scheme: Scheme,
    /// Shape of the weight: out_features x in_features
    #[arg(long, value_name = "OUTxIN", default_value = "11008x4096")]
    shape: String,
    /// The format of x and y on a GPU
    #[arg(long, value_enum, default_value = "f16")]
    activations: BenchActivations,
    /// Rows of x; several separated by commas
    #[arg(long, value_delimiter = ',', value_name = "N", default_value = "1")]
    batch: Vec<usize>,
    /// A CUDA source of your own to check and to time beside the shipped kernels (docs/kernels.md,
    /// kernels/examples)
    #[arg(long, value_name = "FILE.cu")]
    kernel: Option<PathBuf>,
    /// Take the shipped kernels' sources from this folder instead of the program
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Only kernels whose id contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Replays of a graph of calls; 0 checks and times nothing
    #[arg(long, value_name = "N", default_value_t = 60)]
    replays: usize,
    /// Milliseconds that the GPU rests before each replay, which are short then: what a call takes alone, not
    /// what many take one after the other where the power limit lowers the clock
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000))]
    rest: u64,
    /// Launch configurations to try of kernels that have several: the one measured to be fastest first, then
    /// as expected
    #[arg(long, value_name = "N", default_value_t = 1)]
    configs: usize,
    /// Only launch configurations whose description contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    config: String,
    /// Plot time against rows of x, with the roofline, into this file
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Instead of one product: a whole model of these shapes and random weights in --scheme, and the time of
    /// a token at batch 1
    #[arg(long, value_enum, value_name = "MODEL")]
    random_weights: Option<LlamaShape>,
    /// With --random-weights: positions that the token attends to
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,
    /// With --random-weights: how a token is computed, each with what the one before has
    #[arg(long, value_enum, default_value = "joined")]
    rung: RungName,
    /// Seed of codes, codebooks and inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// [`Rung`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum RungName {
    /// the first kernel of every ladder
    Plain,
    /// the kernels that the table of measurements chooses
    Dispatched,
    /// launches overlap
    Overlapped,
    /// layers that read the same input share a launch
    Joined,
}

impl From<RungName> for Rung {
    fn from(name: RungName) -> Self {
        match name {
            RungName::Plain => Self::Plain,
            RungName::Dispatched => Self::Dispatched,
            RungName::Overlapped => Self::Overlapped,
            RungName::Joined => Self::Joined,
        }
    }
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    if let Some(shape) = args.random_weights {
        let options = DecodeOptions {
            shape,
            scheme: args.scheme,
            context: args.context,
            rung: args.rung.into(),
            replays: args.replays,
            seed: args.seed,
            kernel_folder: args.kernels.clone(),
        };
        return decode_bench::run(&options, output);
    }
    let (out_features, in_features) = parse_shape(&args.shape)?;
    args.scheme.groups(out_features, in_features)?;
    if let Some(zero) = args.batch.iter().find(|batch| **batch == 0) {
        return Err(Error::argument("--batch", "at least 1 row", zero.to_string()));
    }
    if args.op != BenchOp::Matmul && args.batch != [1] {
        return Err(Error::argument(
            "--batch",
            "1 for matvec and decode; --op matmul takes several rows",
            format!("{:?}", args.batch),
        ));
    }
    if args.backend == BenchDevice::Cpu && args.activations != BenchActivations::F16 {
        return Err(Error::argument(
            "--activations",
            "nothing else than the default with --backend cpu, where they are f32",
            args.activations.name(),
        ));
    }
    let options = BenchOptions {
        op: args.op,
        scheme: args.scheme,
        out_features,
        in_features,
        activations: args.activations,
        batches: args.batch.clone(),
        seed: args.seed,
        replays: args.replays,
        rest: args.rest,
        only: args.only.clone(),
        kernel_folder: args.kernels.clone(),
        user_kernel: args.kernel.clone(),
        configs: args.configs.max(1),
        config: args.config.clone(),
    };
    if args.svg.is_some() && args.replays == 0 {
        return Err(Error::argument("--svg", "at least one of --replays", "0"));
    }
    let bench = match args.backend {
        BenchDevice::Cuda => bench_cuda,
        BenchDevice::Cpu => bench_cpu,
    };
    let report = bench(&options, &mut |line| eprintln!("{line}"))?;
    output.result(&report, || text(&report));
    if let Some(path) = &args.svg {
        match svg(&report) {
            Some(plot) => durable::write_file(path, |file| file.write_all(plot.as_bytes()))?,
            None => eprintln!("nothing was timed, so {} was not written", path.display()),
        }
    }
    for case in &report.cases {
        for row in case.kernels.iter().filter(|row| row.outcome == Outcome::Fail) {
            eprint!("{}", failure(row));
            eprintln!("replay: {}", replay(args, case.batch, row));
        }
    }
    Ok(report.holds())
}

fn parse_shape(text: &str) -> Result<(usize, usize)> {
    let size = |part: &str| {
        part.parse::<usize>()
            .ok()
            .filter(|size| (1..=1 << 20).contains(size))
    };
    text.split_once('x')
        .and_then(|(out_features, in_features)| Some((size(out_features)?, size(in_features)?)))
        .ok_or_else(|| Error::argument("--shape", "OUTxIN, for example 11008x4096", text))
}

fn replay(args: &Args, batch: usize, row: &KernelRow) -> String {
    let file = args
        .kernel
        .as_ref()
        .map(|path| format!(" --kernel {}", path.display()))
        .unwrap_or_default();
    let folder = args
        .kernels
        .as_ref()
        .map(|path| format!(" --kernels {}", path.display()))
        .unwrap_or_default();
    let only = if row.kernel.contains('/') && aqlm_kernels::kernel(&row.kernel).is_ok() {
        format!(" --only {}", row.kernel)
    } else {
        String::new()
    };
    let config = if args.config.is_empty() {
        String::new()
    } else {
        format!(" --config '{}'", args.config)
    };
    format!(
        "aqlm bench --backend {} --op {} --scheme {} --shape {} --activations {} --batch {batch} --replays 0 --seed {} --configs {}{config}{file}{folder}{only}",
        match args.backend {
            BenchDevice::Cuda => "cuda",
            BenchDevice::Cpu => "cpu",
        },
        args.op.name(),
        args.scheme,
        args.shape,
        args.activations.name(),
        args.seed,
        args.configs
    )
}

fn failure(row: &KernelRow) -> String {
    let mut text = format!(
        "FAIL {}: {}; not timed\n",
        row.kernel,
        row.reason.as_deref().unwrap_or_default()
    );
    for worst in &row.worst {
        let _ = writeln!(
            text,
            "  row {}, column {}: expected {}, found {}",
            worst.row, worst.column, worst.expected, worst.found
        );
    }
    text
}

fn text(report: &BenchReport) -> String {
    let mut text = format!(
        "{} {} {}x{}, x and y in {}, on {}\n",
        report.op.name(),
        report.scheme,
        report.out_features,
        report.in_features,
        report.activations,
        report.device.as_deref().unwrap_or("nothing")
    );
    if let Some(reason) = &report.waived {
        let _ = writeln!(text, "waived: {reason}");
        return text;
    }
    if let Some(rate) = report.copy_bytes_per_second {
        let _ = writeln!(text, "copy: {:.0} GB/s, bytes read and written", rate / 1e9);
    }
    let mut table = Table::new([
        "kernel",
        "config",
        "rows",
        "outcome",
        "us",
        "p10",
        "p90",
        "overlapped",
        "MB",
        "of roofline",
        "of dense",
        "nmse",
        "registers",
    ]);
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    for case in &report.cases {
        let dense = case.dense;
        let blank = String::new;
        if let Some(times) = dense {
            table.row([
                report.dense.clone(),
                blank(),
                case.batch.to_string(),
                blank(),
                number(Some(times.median), 2),
                number(Some(times.p10), 2),
                number(Some(times.p90), 2),
                blank(),
                blank(),
                blank(),
                blank(),
                blank(),
                blank(),
            ]);
        }
        if let Some(us) = case.roofline_us {
            table.row([
                "roofline".into(),
                blank(),
                case.batch.to_string(),
                blank(),
                number(Some(us), 2),
                blank(),
                blank(),
                blank(),
                number(Some(case.least_bytes as f64 / 1e6), 2),
                blank(),
                blank(),
                blank(),
                blank(),
            ]);
        }
        for row in &case.kernels {
            let us = row.us.map(|times| times.median);
            table.row([
                format!("{}{}", row.kernel, if row.dispatched { " *" } else { "" }),
                row.config.clone().unwrap_or_default(),
                case.batch.to_string(),
                row.outcome.to_string(),
                number(us, 2),
                number(row.us.map(|times| times.p10), 2),
                number(row.us.map(|times| times.p90), 2),
                number(row.us_overlapped, 2),
                number(row.bytes.map(|bytes| bytes as f64 / 1e6), 2),
                number(us.zip(case.roofline_us).map(|(us, least)| least / us), 2),
                number(us.zip(dense).map(|(us, dense)| us / dense.median), 2),
                row.nmse
                    .map_or_else(|| "-".to_owned(), |nmse| format!("{nmse:.1e}")),
                row.registers.map_or_else(
                    || "-".to_owned(),
                    |(registers, local)| format!("{registers}/{local}"),
                ),
            ]);
        }
    }
    text.push_str(&table.render());
    if report
        .cases
        .iter()
        .flat_map(|case| &case.kernels)
        .any(|row| row.dispatched)
    {
        text.push_str("*: what the table of measurements (kernels/dispatch.json) chooses\n");
    }
    for row in report.cases.iter().flat_map(|case| &case.kernels) {
        if let (Outcome::Unsupported, Some(reason)) = (row.outcome, &row.reason) {
            let _ = writeln!(text, "unsupported: {}: {reason}", row.kernel);
        }
    }
    let _ = writeln!(
        text,
        "{} pass, {} fail, {} unsupported, {} waived",
        report.count(Outcome::Pass),
        report.count(Outcome::Fail),
        report.count(Outcome::Unsupported),
        report.count(Outcome::Waived)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::parse_shape;

    #[test]
    fn shapes() {
        assert_eq!(parse_shape("11008x4096").unwrap(), (11008, 4096));
        for bad in ["", "4096", "0x8", "8x", "-1x8", "8x8x8", "8*8", "9999999x8"] {
            assert!(
                parse_shape(bad).unwrap_err().to_string().contains("OUTxIN"),
                "{bad}"
            );
        }
    }
}
