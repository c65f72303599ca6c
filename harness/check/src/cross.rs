//! `aqlm check` without vectors: every backend against the reference, and properties of the reference itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::compare::{Against, Findings, is_unsupported, pooled};
use super::ledger::{self, Known};
use super::limits::{Number, Sizes};
use super::ops::Prepared;
use super::subject::{Machines, Subject};
use super::{CaseRow, CheckReport, Comparison, CrossReport, Outcome, Summary};
use crate::cases::{Case, Operation, cases, corners};
use aqlm_formats::{Error, Result};

/// Options of `aqlm check`.
#[derive(Clone)]
pub struct CrossOptions {
    /// the machines to check, one row of the result each
    pub machines: Vec<Machines>,
    /// only this operation
    pub operation: Option<Operation>,
    /// only this case
    pub case: Option<Case>,
    /// number of drawn cases per operation, in addition to the corners
    pub cases: usize,
    /// seed of the drawn cases
    pub seed: u64,
    /// folder for the operands of failing cases; `None` keeps none
    pub keep: Option<PathBuf>,
}

impl CrossOptions {
    /// Checks one case on the given machines.
    pub fn of_case(case: Case, machines: Vec<Machines>) -> Self {
        Self {
            machines,
            operation: None,
            case: Some(case),
            cases: 0,
            seed: 0,
            keep: None,
        }
    }

    fn operations(&self) -> impl Iterator<Item = Operation> {
        let wanted = self.case.map(|case| case.operation).or(self.operation);
        let all = Operation::ALL.iter().copied();
        all.filter(move |&operation| wanted.is_none_or(|wanted| wanted == operation))
    }

    fn cases_of(&self, operation: Operation) -> Result<Vec<Case>> {
        match self.case {
            Some(case) => Ok(vec![case]),
            None => all_cases(operation, self.cases, self.seed),
        }
    }

    /// Number of cases that will be tried, each on every backend.
    ///
    /// # Errors
    /// As [`cross_check`].
    pub fn planned(&self) -> Result<usize> {
        let counts = self
            .operations()
            .map(|operation| Ok(self.cases_of(operation)?.len()));
        Ok(counts.sum::<Result<usize>>()? * self.machines.len())
    }
}

/// Runs the check; `progress` is called for every case.
///
/// # Errors
/// `Argument` when the requested case belongs to another operation than the requested one.
pub fn cross_check(options: &CrossOptions, progress: &mut dyn FnMut(&CaseRow)) -> Result<CrossReport> {
    if let (Some(operation), Some(case)) = (options.operation, options.case)
        && operation != case.operation
    {
        return Err(Error::argument(
            "case",
            &format!("a case of {operation}"),
            format!("`{case}`"),
        ));
    }
    let mut rows = Vec::new();
    let mut summary = Vec::new();
    for operation in options.operations() {
        let cases = options.cases_of(operation)?;
        for machines in &options.machines {
            let of_backend = Checking {
                machines,
                broken: None,
                keep: options.keep.as_deref(),
                ledger: ledger::KNOWN,
            }
            .rows(operation, &cases);
            of_backend.iter().for_each(&mut *progress);
            summary.push(summarize(operation, machines.backend, &of_backend));
            rows.extend(of_backend);
        }
    }
    Ok(CrossReport {
        summary,
        report: CheckReport::new(rows),
    })
}

/// For tests of the check itself: checks cases of one operation on machines with one of its breakages
/// ([`Operation::breakages`]), or with none. Operands of failures are saved in `keep`. The last row, if
/// present, covers all cases together.
///
/// # Errors
/// `Argument` without cases.
/// `Argument` without cases.
pub fn check_broken(
    cases: &[Case],
    machines: &Machines,
    broken: Option<&str>,
    keep: Option<&Path>,
) -> Result<Vec<CaseRow>> {
    let Some(first) = cases.first() else {
        return Err(Error::argument("cases", "at least one", "none"));
    };
    let checking = Checking {
        machines,
        broken,
        keep,
        ledger: &[],
    };
    Ok(checking.rows(first.operation, cases))
}

/// The corners, then drawn cases.
fn all_cases(operation: Operation, count: usize, seed: u64) -> Result<Vec<Case>> {
    let mut all = corners(operation)?;
    let mut runner = runner(operation, seed);
    let strategy = cases(operation);
    for _ in 0..count {
        all.push(draw(&strategy.new_tree(&mut runner))?);
    }
    Ok(all)
}

/// A runner whose draws depend only on the operation and the seed.
fn runner(operation: Operation, seed: u64) -> TestRunner {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(operation as u64).to_le_bytes());
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &key))
}

fn draw<T: ValueTree<Value = Case>>(
    tree: &std::result::Result<T, proptest::test_runner::Reason>,
) -> Result<Case> {
    match tree {
        Ok(tree) => Ok(tree.current()),
        Err(reason) => Err(Error::argument("cases", "one that is valid", reason.to_string())),
    }
}

/// Parameters of a check.
struct Checking<'a> {
    machines: &'a Machines,
    broken: Option<&'a str>,
    keep: Option<&'a Path>,
    ledger: &'a [Known],
}

impl Checking<'_> {
    /// A row per case of one operation, and the comparison over all cases together.
    fn rows(&self, operation: Operation, cases: &[Case]) -> Vec<CaseRow> {
        let mut excesses = Vec::new();
        let row = |case| {
            let row = self.row(case, &mut excesses);
            let row = ledger::judged(self.ledger, case, row);
            self.kept(case, row)
        };
        let mut rows: Vec<CaseRow> = cases.iter().map(row).collect();
        let together = Against {
            operation,
            number: Number::F32,
            sizes: Sizes::NONE,
        };
        let (operation, backend) = (operation.word(), self.machines.backend);
        // Each case is judged by itself. All cases together show whether losses are worse on average.
        match pooled(together, &excesses) {
            Ok(None) => {}
            Ok(Some(comparison)) => {
                rows.push(CaseRow::compared(operation, "all", backend, vec![comparison]));
            }
            Err(error) => {
                let reason = error.to_string();
                rows.push(CaseRow::without(operation, "all", backend, Outcome::Fail, reason));
            }
        }
        rows
    }

    fn row(&self, case: &Case, excesses: &mut Vec<f64>) -> CaseRow {
        let (operation, id, backend) = (case.operation.word(), case.to_string(), self.machines.backend);
        let subjects = match &self.machines.subjects {
            Ok(subjects) => subjects,
            Err(reason) => return CaseRow::without(operation, &id, backend, Outcome::Waived, reason),
        };
        if matches!(subjects[..], [Subject::Reference]) && self.broken.is_none() {
            // No subject stands above the reference, so its properties are checked instead of a comparison.
            return match caught(|| case.operation.checked().properties(case)) {
                Ok(comparisons) => CaseRow::compared(operation, &id, backend, comparisons),
                Err(error) => CaseRow::without(operation, &id, backend, Outcome::Fail, error.to_string()),
            };
        }
        let mut answers = Answers::default();
        let prepared = caught(|| {
            let prepared = case.operation.checked().prepare(case)?;
            prepared.expect()?;
            Ok(prepared)
        });
        match prepared {
            Ok(prepared) => {
                for subject in subjects.iter().flat_map(|machine| prepared.ways(machine)) {
                    answers.add(&*prepared, &subject, self.broken);
                }
            }
            Err(error) => answers.failures.push(format!("reference: {error}")),
        }
        // The ways of one backend mostly agree, so their mean counts as one answer, not as several
        // independent ones.
        if !answers.excesses.is_empty() {
            excesses.push(answers.excesses.iter().sum::<f64>() / answers.excesses.len() as f64);
        }
        answers.row(case, backend)
    }

    /// Adds to the row of a failure where its operands are saved, or why they could not be saved.
    fn kept(&self, case: &Case, mut row: CaseRow) -> CaseRow {
        let (Some(folder), Outcome::Fail) = (self.keep, row.outcome) else {
            return row;
        };
        let keep = || {
            let prepared = case.operation.checked().prepare(case)?;
            prepared.operands().keep(folder, &case.to_string())
        };
        match caught(keep) {
            Ok(folder) => row.kept = Some(folder),
            Err(error) => {
                row.reason = row
                    .reason
                    .map(|reason| format!("{reason} (operands not kept: {error})"));
            }
        }
        row
    }
}

/// Answers of all ways of one backend to one case.
#[derive(Default)]
struct Answers {
    comparisons: Vec<Comparison>,
    excesses: Vec<f64>,
    unsupported: Vec<String>,
    failures: Vec<String>,
}

impl Answers {
    fn add(&mut self, prepared: &dyn Prepared, subject: &Subject, broken: Option<&str>) {
        let variant = subject.variant();
        match caught(|| prepared.findings(subject, broken)) {
            Ok(Findings { comparisons, excess }) => {
                self.comparisons
                    .extend(comparisons.into_iter().map(|comparison| Comparison {
                        what: format!("{variant}, {}", comparison.what),
                        ..comparison
                    }));
                self.excesses.extend(excess);
            }
            Err(error) if is_unsupported(&error) => self.unsupported.push(format!("{variant}: {error}")),
            Err(error) => self.failures.push(format!("{variant}: {error}")),
        }
    }

    fn row(self, case: &Case, backend: &str) -> CaseRow {
        let (operation, id) = (case.operation.word(), case.to_string());
        if let Some(failure) = self.failures.into_iter().next() {
            return CaseRow {
                comparisons: self.comparisons,
                ..CaseRow::without(operation, &id, backend, Outcome::Fail, failure)
            };
        }
        match self.unsupported.into_iter().next() {
            Some(reason) if self.comparisons.is_empty() => {
                CaseRow::without(operation, &id, backend, Outcome::Unsupported, reason)
            }
            _ => CaseRow::compared(operation, &id, backend, self.comparisons),
        }
    }
}

/// Turns a panic into an error: one broken kernel must not end the check of all others.
fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Error::argument(
            "answer",
            "one",
            format!("a panic: {}", message.unwrap_or("of no words")),
        ))
    })
}

fn summarize(operation: Operation, backend: &str, rows: &[CaseRow]) -> Summary {
    let count = |outcome| rows.iter().filter(|row| row.outcome == outcome).count();
    let worst_of = |nmse: bool| {
        let rows = rows.iter().filter_map(|row| {
            let comparisons = row.comparisons.iter();
            let relevant = comparisons.filter(|comparison| !nmse || comparison.what.contains("nmse:"));
            relevant.max_by(|a, b| a.share().total_cmp(&b.share()))
        });
        rows.max_by(|a, b| a.share().total_cmp(&b.share())).cloned()
    };
    let bad = |row: &&CaseRow| row.outcome != Outcome::Pass;
    let failed = rows.iter().find(|row| row.outcome == Outcome::Fail);
    Summary {
        op: operation.word().into(),
        backend: backend.into(),
        cases: rows.len(),
        pass: count(Outcome::Pass),
        fail: count(Outcome::Fail),
        unsupported: count(Outcome::Unsupported),
        waived: count(Outcome::Waived),
        worst: worst_of(false),
        nmse: worst_of(true),
        reason: failed
            .or(rows.iter().find(bad))
            .and_then(|row| row.reason.clone()),
    }
}

/// The simplest case that still fails on a backend, shrunk by proptest from a failing case in at most `steps`
/// steps.
///
/// # Errors
/// `Argument` when the operation's strategy yields nothing.
pub fn simplest_failure(
    machines: &Machines,
    options: &CrossOptions,
    failed: &Case,
    steps: usize,
) -> Result<Case> {
    let operation = failed.operation;
    let checking = Checking {
        machines,
        broken: None,
        keep: None,
        ledger: ledger::KNOWN,
    };
    let fails = |case: &Case| {
        let rows = checking.rows(operation, &[*case]);
        rows.iter().any(|row| row.outcome == Outcome::Fail)
    };
    // The value tree from which the case was drawn. Corners have none and are not shrunk.
    let mut runner = runner(operation, options.seed);
    let strategy = cases(operation);
    for _ in 0..options.cases {
        let mut tree = strategy
            .new_tree(&mut runner)
            .map_err(|reason| Error::argument("cases", "one that is valid", reason.to_string()))?;
        if tree.current() != *failed {
            continue;
        }
        let mut simplest = *failed;
        for _ in 0..steps {
            let moved = if fails(&tree.current()) {
                simplest = tree.current();
                tree.simplify()
            } else {
                tree.complicate()
            };
            if !moved {
                break;
            }
        }
        return Ok(simplest);
    }
    Ok(*failed)
}
