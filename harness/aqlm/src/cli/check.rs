use std::collections::BTreeSet;
use std::path::PathBuf;

use super::Output;
use super::progress::Progress;
use super::table::Table;
use aqlm_check::cases::{Case, Operation};
use aqlm_check::{
    CaseRow, CheckReport, CheckedBackend, Comparison, CrossOptions, CrossReport, Outcome, VectorOptions,
    check_vectors, cross_check, simplest_failure,
};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::{Error, Result};

/// Options of `aqlm check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Compare with vectors computed by peers instead: a folder with index.json, of AQLM checkpoints with
    /// expected.safetensors, or of NAME.safetensors with a model's token losses
    #[arg(long, value_name = "DIR")]
    vectors: Option<PathBuf>,
    /// With --vectors: a model for NAME.safetensors: its folder or file, or a folder of several
    #[arg(long, value_name = "PATH", requires = "vectors")]
    model: Vec<PathBuf>,
    /// Only this backend; with --vectors the one that runs models [default: all; with --vectors: reference]
    #[arg(long, value_enum)]
    backend: Option<CheckedBackend>,
    /// Only this operation
    #[arg(long)]
    op: Option<String>,
    /// Only the case of this id, or with --vectors of this name
    #[arg(long, value_name = "ID")]
    case: Option<String>,
    /// Cases to draw for each operation, besides the corner cases
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "vectors")]
    cases: usize,
    /// Seed of the drawn cases
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "vectors")]
    seed: u64,
}

/// How many steps a failing case may take to become simple.
const SHRINKING_STEPS: usize = 60;

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    match &args.vectors {
        Some(vectors) => against_vectors(args, vectors, output),
        None => against_one_another(args, output),
    }
}

fn against_one_another(args: &Args, output: Output) -> Result<bool> {
    let options = CrossOptions {
        backend: args.backend,
        operation: args.op.as_deref().map(str::parse::<Operation>).transpose()?,
        case: args.case.as_deref().map(str::parse::<Case>).transpose()?,
        cases: args.cases,
        seed: args.seed,
    };
    let mut progress = Progress::new(options.planned()? as u64);
    let report = cross_check(&options, &mut |row| {
        progress.message(format!("{} on {}", row.op, row.backend));
        progress.advance(1);
        if row.outcome == Outcome::Fail {
            progress.line(&complaint(&options, row));
        }
    })?;
    drop(progress);
    output.result(&report, || cross_text(&report));
    Ok(report.holds())
}

/// What failed and how to see it again: the case, and a simpler one that fails as well where there is one.
fn complaint(options: &CrossOptions, row: &CaseRow) -> String {
    let (op, backend) = (&row.op, &row.backend);
    let reason = row.reason.as_deref().unwrap_or_default();
    let failed = format!("FAIL {op} {backend}: {reason}; replay: aqlm check");
    let Ok(case) = row.case.parse::<Case>() else {
        // All cases together have no id; their number and seed draw them again.
        let CrossOptions { cases, seed, .. } = options;
        return format!("{failed} --op {op} --backend {backend} --cases {cases} --seed {seed}");
    };
    let failed = format!("{failed} --backend {backend} --case {case}");
    let known = CheckedBackend::ALL
        .into_iter()
        .find(|known| known.name() == backend);
    let (Some(known), None) = (known, options.case) else {
        return failed;
    };
    match simplest_failure(known, options, &case, SHRINKING_STEPS) {
        Ok(simplest) if simplest != case => {
            format!("{failed}\n     simpler: aqlm check --backend {backend} --case {simplest}")
        }
        Ok(_) => failed,
        Err(error) => format!("{failed}\n     not simplified: {error}"),
    }
}

fn cross_text(report: &CrossReport) -> String {
    let mut table = Table::new([
        "operation",
        "backend",
        "cases",
        "pass",
        "fail",
        "unsup.",
        "waived",
        "worst NMSE",
        "limit",
        "nearest to its limit",
    ]);
    let mut notes = BTreeSet::new();
    for line in &report.summary {
        let (value, limit) = line.nmse.as_ref().map_or(("-".into(), "-".into()), numbers);
        let nearest = line.worst.as_ref().map_or_else(String::new, |worst| {
            format!("{:.0} % {}", 100.0 * worst.share(), worst.what)
        });
        table.row([
            line.op.to_string(),
            line.backend.to_owned(),
            line.cases.to_string(),
            line.pass.to_string(),
            line.fail.to_string(),
            line.unsupported.to_string(),
            line.waived.to_string(),
            value,
            limit,
            nearest,
        ]);
        if let (Some(reason), true) = (&line.reason, line.waived > 0) {
            notes.insert(format!("waived: {}: {reason}\n", line.backend));
        }
    }
    let notes: String = notes.into_iter().collect();
    format!("{}{notes}{}", table.render(), counts(&report.report))
}

fn numbers(comparison: &Comparison) -> (String, String) {
    (
        format!("{:.1e}", comparison.value),
        format!("{:.1e}", comparison.limit),
    )
}

fn counts(report: &CheckReport) -> String {
    let CheckReport {
        pass,
        fail,
        unsupported,
        waived,
        ..
    } = report;
    format!("{pass} pass, {fail} fail, {unsupported} unsupported, {waived} waived\n")
}

fn against_vectors(args: &Args, vectors: &std::path::Path, output: Output) -> Result<bool> {
    let backend = match args.backend {
        None | Some(CheckedBackend::Reference) => BackendKind::Reference,
        Some(CheckedBackend::Cpu) => BackendKind::Cpu,
        Some(CheckedBackend::Cuda) => {
            return Err(Error::argument(
                "--backend with --vectors",
                "reference or cpu",
                "cuda",
            ));
        }
    };
    let options = VectorOptions {
        backend,
        op: args.op.clone(),
        case: args.case.clone(),
        models: args.model.clone(),
    };
    let report = check_vectors(vectors, &options, &mut |row| {
        if row.outcome == Outcome::Fail {
            let models: Vec<String> = args
                .model
                .iter()
                .map(|model| format!(" --model {}", model.display()))
                .collect();
            let models = models.concat();
            eprintln!(
                "FAIL {} {}: {}; replay: aqlm check --vectors {}{models} --backend {backend} --op {} --case {}",
                row.op,
                row.case,
                row.reason.as_deref().unwrap_or_default(),
                vectors.display(),
                row.op,
                row.case,
            );
        }
    })?;
    output.result(&report, || vectors_text(&report));
    Ok(report.holds())
}

fn vectors_text(report: &CheckReport) -> String {
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
    format!("{}{}", table.render(), counts(report))
}
