use std::path::PathBuf;

use super::Output;
use super::table::Table;
use crate::backend::BackendKind;
use crate::check::{CheckReport, Outcome, VectorOptions, check_vectors};
use crate::error::Result;

/// Options of `aqlm check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Vectors computed by peers: a folder with index.json, of AQLM checkpoints with expected.safetensors, or of
    /// NAME.safetensors with a model's token losses
    #[arg(long, value_name = "DIR")]
    vectors: PathBuf,
    /// A model for NAME.safetensors: its folder or file, or a folder of several
    #[arg(long, value_name = "PATH")]
    model: Vec<PathBuf>,
    /// Which backend to check
    #[arg(long, value_enum, default_value = "reference")]
    backend: BackendKind,
    /// Only this operation
    #[arg(long)]
    op: Option<String>,
    /// Only the case of this name
    #[arg(long)]
    case: Option<String>,
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let options = VectorOptions {
        backend: args.backend,
        op: args.op.clone(),
        case: args.case.clone(),
        models: args.model.clone(),
    };
    let report = check_vectors(&args.vectors, &options, &mut |row| {
        if row.outcome == Outcome::Fail {
            let models: Vec<String> = args
                .model
                .iter()
                .map(|model| format!(" --model {}", model.display()))
                .collect();
            let models = models.concat();
            eprintln!(
                "FAIL {} {}: {}; replay: aqlm check --vectors {}{models} --backend {} --op {} --case {}",
                row.op,
                row.case,
                row.reason.as_deref().unwrap_or_default(),
                args.vectors.display(),
                args.backend,
                row.op,
                row.case,
            );
        }
    })?;
    output.result(&report, || text(&report));
    Ok(report.holds())
}

fn text(report: &CheckReport) -> String {
    let mut table = Table::new(["case", "operation", "backend", "outcome", "worst", "limit", "of"]);
    for row in &report.rows {
        let (value, limit) = row.worst().map_or(("-".into(), "-".into()), |worst| {
            (format!("{:.2e}", worst.value), format!("{:.1e}", worst.limit))
        });
        let what = row
            .reason
            .clone()
            .or_else(|| row.worst().map(|worst| worst.what.clone()))
            .unwrap_or_default();
        table.row([
            row.case.clone(),
            row.op.clone(),
            row.backend.clone(),
            row.outcome.to_string(),
            value,
            limit,
            what,
        ]);
    }
    let CheckReport {
        pass,
        fail,
        unsupported,
        waived,
        ..
    } = report;
    format!(
        "{}{pass} pass, {fail} fail, {unsupported} unsupported, {waived} waived\n",
        table.render()
    )
}
