use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::progress::Progress;
use super::table::Table;
use super::{Output, say};
use aqlm_check::cases::Case;
use aqlm_check::{
    CaseRow, CheckReport, Comparison, CrossOptions, CrossReport, Machines, Outcome, VectorOptions,
    check_vectors, cross_check, simplest_failure,
};
use aqlm_formats::Result;

/// Maximum number of steps to shrink a failing case.
const SHRINKING_STEPS: usize = 60;

/// Compares every backend with the reference, and checks the properties of the reference.
pub(crate) fn against_one_another(options: &CrossOptions, output: Output) -> Result<bool> {
    let mut progress = Progress::new(options.planned()? as u64);
    let report = cross_check(options, &mut |row| {
        progress.message(format!("{} on {}", row.op, row.backend));
        progress.advance(1);
        if row.outcome == Outcome::Fail {
            progress.line(&complaint(options, row));
        }
    })?;
    drop(progress);
    output.result(&report, || cross_text(&report))?;
    Ok(report.holds())
}

/// What failed and how to reproduce it: the worst elements, the saved operands, the case, and a simpler
/// failing case if there is one.
fn complaint(options: &CrossOptions, row: &CaseRow) -> String {
    let mut text = replays(options, row);
    for worst in row.worst_elements() {
        let _ = write!(text, "\n     {worst}");
    }
    if let Some(folder) = &row.kept {
        let _ = write!(text, "\n     operands kept in {}", folder.display());
    }
    text
}

fn replays(options: &CrossOptions, row: &CaseRow) -> String {
    let (op, backend) = (&row.op, &row.backend);
    let reason = row.reason.as_deref().unwrap_or_default();
    let failed = format!("FAIL {op} {backend}: {reason}; replay: aqlm check");
    let Ok(case) = row.case.parse::<Case>() else {
        // All cases together have no id; their number and seed reproduce them.
        let CrossOptions { cases, seed, .. } = options;
        return format!("{failed} --op {op} --backend {backend} --cases {cases} --seed {seed}");
    };
    let failed = format!("{failed} --backend {backend} --case {case}");
    let is = |machines: &&Machines| machines.backend == backend;
    let known = options.machines.iter().find(is);
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
            line.op.clone(),
            line.backend.clone(),
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

/// Compares with vectors that peers computed.
pub(crate) fn against_vectors(vectors: &Path, options: &VectorOptions, output: Output) -> Result<bool> {
    let report = check_vectors(vectors, options, &mut |row| {
        if row.outcome == Outcome::Fail {
            let models: Vec<String> = options
                .models
                .iter()
                .map(|model| format!(" --model {}", model.display()))
                .collect();
            say(format_args!(
                "FAIL {} {}: {}; replay: aqlm check --vectors {}{} --backend {} --op {} --case {}",
                row.op,
                row.case,
                row.reason.as_deref().unwrap_or_default(),
                vectors.display(),
                models.concat(),
                options.backend,
                row.op,
                row.case,
            ));
        }
    })?;
    output.result(&report, || vectors_text(&report))?;
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
