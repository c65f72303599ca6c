use std::fmt::Write as _;

use super::Output;
use super::bench::memory;
use super::table::Table;
use crate::bench::{DecodeOptions, bench_decode};
use aqlm_engine::runs::records::{DecodeReport, Outcome};
use aqlm_formats::Result;

/// `aqlm bench --random-weights`.
pub(crate) fn run(options: &DecodeOptions, output: Output) -> Result<bool> {
    let report = bench_decode(options, &mut |line| eprintln!("{line}"))?;
    output.result(&report, || text(&report));
    Ok(report.holds())
}

fn text(report: &DecodeReport) -> String {
    let mut text = format!(
        "{} {}, random weights, context {}, batch 1, on {}\n",
        report.model,
        report.scheme,
        report.context,
        report.device.as_deref().unwrap_or("nothing")
    );
    if let Some([nmse, limit]) = report.nmse {
        let _ = writeln!(
            text,
            "one block against the plain kernels: NMSE {nmse:.1e}, limit {limit:.1e}"
        );
    }
    if let (Some(rate), Some(us)) = (report.memory, report.roofline_us) {
        let _ = writeln!(
            text,
            "{}; the {:.1} MB that a token must read take {us:.1} us",
            memory(rate),
            report.least_bytes as f64 / 1e6
        );
    }
    if let (Some(us), Some(rate)) = (report.us, report.tokens_per_second) {
        let _ = writeln!(
            text,
            "a token: {:.1} us (p10 {:.1}, p90 {:.1}), {rate:.1} tokens per second",
            us.median, us.p10, us.p90
        );
        let mut table = Table::new([
            "stage",
            "launches",
            "us each",
            "us",
            "MB",
            "us at the memory's rate",
        ]);
        for row in &report.stages {
            table.row([
                row.stage.clone(),
                row.launches.to_string(),
                format!("{:.2}", row.us / row.launches.max(1) as f64),
                format!("{:.1}", row.us),
                format!("{:.1}", row.bytes as f64 / 1e6),
                format!("{:.1}", row.roofline_us),
            ]);
        }
        let sum: f64 = report.stages.iter().map(|row| row.us).sum();
        text.push_str(&table.render());
        let _ = writeln!(text, "stages in graphs of their own add up to {sum:.1} us");
    }
    let reason = report.reason.as_deref().unwrap_or_default();
    match report.outcome {
        Outcome::Pass => text.push_str("pass\n"),
        outcome => {
            let _ = writeln!(text, "{outcome}: {reason}");
        }
    }
    text
}
