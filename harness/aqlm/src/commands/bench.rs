use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use super::Output;
use super::table::Table;
use crate::bench::{BenchOptions, bench_cpu, bench_cuda, svg};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::runs::records::{BenchReport, KernelRow, MemoryRate, Outcome};
use aqlm_formats::{Error, Result, durable};

/// The kernels to check and time.
#[derive(Debug)]
pub(crate) struct BenchRequest {
    pub(crate) backend: BackendKind,
    pub(crate) options: BenchOptions,
    /// file for a plot of the times
    pub(crate) svg: Option<PathBuf>,
}

/// The rates of memory in words.
pub(crate) fn memory(rate: MemoryRate) -> String {
    format!(
        "memory: {:.0} GB/s read only, {:.0} GB/s copied (read and written together)",
        rate.read / 1e9,
        rate.copy / 1e9
    )
}

pub(crate) fn run(request: &BenchRequest, output: Output) -> Result<bool> {
    let bench = match request.backend {
        BackendKind::Cuda => bench_cuda,
        BackendKind::Cpu => bench_cpu,
        BackendKind::Reference => {
            return Err(Error::argument(
                "--backend",
                "cpu or cuda: the reference has no kernels to time",
                "reference",
            ));
        }
    };
    let report = bench(&request.options, &mut |line| eprintln!("{line}"))?;
    output.result(&report, || text(&report));
    if let Some(path) = &request.svg {
        match svg(&report) {
            Some(plot) => durable::write_file(path, |file| file.write_all(plot.as_bytes()))?,
            None => eprintln!("nothing was timed, so {} was not written", path.display()),
        }
    }
    for case in &report.cases {
        for row in case.kernels.iter().filter(|row| row.outcome == Outcome::Fail) {
            eprint!("{}", failure(row));
            eprintln!("replay: {}", replay(request, case.batch, row));
        }
    }
    Ok(report.holds())
}

fn replay(BenchRequest { backend, options, .. }: &BenchRequest, batch: usize, row: &KernelRow) -> String {
    let file = options
        .user_kernel
        .as_ref()
        .map(|path| format!(" --kernel {}", path.display()))
        .unwrap_or_default();
    let folder = options
        .kernel_folder
        .as_ref()
        .map(|path| format!(" --kernels {}", path.display()))
        .unwrap_or_default();
    let only = if row.kernel.contains('/') && aqlm_kernels::kernel(&row.kernel).is_ok() {
        format!(" --only {}", row.kernel)
    } else {
        String::new()
    };
    let config = if options.config.is_empty() {
        String::new()
    } else {
        format!(" --config '{}'", options.config)
    };
    format!(
        "aqlm bench --backend {} --op {} --scheme {} --shape {}x{} --activations {} --batch {batch} --replays 0 --seed {} --configs {}{config}{file}{folder}{only}",
        backend,
        options.op,
        options.scheme,
        options.out_features,
        options.in_features,
        options.activations.name(),
        options.seed,
        options.configs
    )
}

fn failure(row: &KernelRow) -> String {
    let mut text = format!(
        "FAIL {}: {}; not timed\n",
        row.kernel,
        row.reason.as_deref().unwrap_or_default()
    );
    for worst in &row.worst {
        let _ = writeln!(text, "  {worst}");
    }
    text
}

fn text(report: &BenchReport) -> String {
    let mut text = format!(
        "{} {} {}x{}, x and y in {}, on {}\n",
        report.op,
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
    if let Some(rate) = report.memory {
        let _ = writeln!(text, "{}", memory(rate));
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
