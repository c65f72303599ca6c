//! `aqlm check` without vectors: every backend against the reference, and the reference against what must
//! hold for it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::compare::{Against, Findings, is_unsupported, pooled};
use super::limits::Number;
use super::ops::{CHECKS, Check, Prepared};
use super::subject::{Subject, Subjects, subjects};
use super::{CaseRow, CheckReport, Comparison, CrossReport, Outcome, Summary};
use crate::cases::{Case, Operation, cases, corners};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::{Error, Result};

/// What `aqlm check` is asked to do.
#[derive(Debug, Clone)]
pub struct CrossOptions {
    /// only this backend
    pub backend: Option<BackendKind>,
    /// only this operation
    pub operation: Option<Operation>,
    /// only this case
    pub case: Option<Case>,
    /// drawn cases of each operation, besides the corners that are always checked
    pub cases: usize,
    /// seed of the drawn cases
    pub seed: u64,
}

impl CrossOptions {
    fn backends(&self) -> Vec<BackendKind> {
        self.backend
            .map_or(BackendKind::ALL.to_vec(), |backend| vec![backend])
    }

    fn checks(&self) -> impl Iterator<Item = &'static Check> {
        let wanted = self.case.map(|case| case.operation).or(self.operation);
        CHECKS
            .iter()
            .filter(move |check| wanted.is_none_or(|wanted| wanted == check.operation))
    }

    fn cases_of(&self, operation: Operation) -> Result<Vec<Case>> {
        match self.case {
            Some(case) => Ok(vec![case]),
            None => all_cases(operation, self.cases, self.seed),
        }
    }

    /// How many cases will be tried, each on every backend.
    ///
    /// # Errors
    /// As [`cross_check`].
    pub fn planned(&self) -> Result<usize> {
        let counts = self
            .checks()
            .map(|check| Ok(self.cases_of(check.operation)?.len()));
        Ok(counts.sum::<Result<usize>>()? * self.backends().len())
    }
}

/// Runs the check; `progress` hears of every case.
///
/// # Errors
/// `Argument` when a case is of another operation than the one asked for.
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
    let backends = options.backends();
    let mut rows = Vec::new();
    let mut summary = Vec::new();
    for check in options.checks() {
        let cases = options.cases_of(check.operation)?;
        for &backend in &backends {
            let of_backend = check_backend(check, backend, &cases);
            of_backend.iter().for_each(&mut *progress);
            summary.push(summarize(check.operation, backend.name(), &of_backend));
            rows.extend(of_backend);
        }
    }
    Ok(CrossReport {
        summary,
        report: CheckReport::new(rows),
    })
}

/// Checks cases of one operation on one subject, whatever backend that claims to be: what tests of the check
/// itself use. The last row, where there is one, is that of all cases together.
///
/// # Errors
/// `Argument` without cases.
pub fn check_subject(cases: &[Case], subject: &dyn Fn(&Case) -> Box<dyn Subject>) -> Result<Vec<CaseRow>> {
    let operation = cases.first().map(|case| case.operation);
    let check = CHECKS.iter().find(|check| Some(check.operation) == operation);
    let Some(check) = check else {
        return Err(Error::argument("cases", "at least one", "none"));
    };
    Ok(check_subjects(check, "subject", cases, &|case| {
        Ok(vec![subject(case)])
    }))
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

/// A runner whose draws depend on the operation and the seed alone.
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

/// All cases of one operation on one backend, and the comparison of all of them together.
fn check_backend(check: &Check, backend: BackendKind, cases: &[Case]) -> Vec<CaseRow> {
    match backend {
        BackendKind::Reference => cases.iter().map(|case| properties(check, case)).collect(),
        BackendKind::Cpu | BackendKind::Cuda => {
            check_subjects(check, backend.name(), cases, &|case| subjects(backend, case))
        }
    }
}

/// The same for whatever subjects there are for a case.
fn check_subjects(
    check: &Check,
    backend: &str,
    cases: &[Case],
    subjects: &dyn Fn(&Case) -> Subjects,
) -> Vec<CaseRow> {
    let mut rows = Vec::new();
    let mut excesses = Vec::new();
    for case in cases {
        let row = match subjects(case) {
            Ok(subjects) => {
                let mut answers = Answers::default();
                match caught(|| (check.prepare)(case)) {
                    Ok(prepared) => subjects
                        .iter()
                        .for_each(|subject| answers.add(&prepared, &**subject)),
                    Err(error) => answers.failures.push(format!("reference: {error}")),
                }
                // The ways of one backend mostly agree: their mean is one answer, not several independent
                // ones.
                if !answers.excesses.is_empty() {
                    excesses.push(answers.excesses.iter().sum::<f64>() / answers.excesses.len() as f64);
                }
                answers.row(case, backend)
            }
            Err(reason) => {
                let (operation, id) = (case.operation.word(), case.to_string());
                CaseRow::without(operation, &id, backend, Outcome::Waived, reason)
            }
        };
        rows.push(row);
    }
    let together = Against {
        operation: check.operation,
        number: Number::F32,
    };
    // Every case says what it is on its own; all of them together say whether losses are worse on average.
    match pooled(together, &excesses) {
        Ok(None) => {}
        Ok(Some(comparison)) => {
            rows.push(CaseRow::compared(
                check.operation.word(),
                "all",
                backend,
                vec![comparison],
            ));
        }
        Err(error) => {
            let operation = check.operation.word();
            rows.push(CaseRow::without(
                operation,
                "all",
                backend,
                Outcome::Fail,
                error.to_string(),
            ));
        }
    }
    rows
}

fn properties(check: &Check, case: &Case) -> CaseRow {
    let (operation, id) = (check.operation.word(), case.to_string());
    match caught(|| (check.properties)(case)) {
        Ok(comparisons) => CaseRow::compared(operation, &id, "reference", comparisons),
        Err(error) => CaseRow::without(operation, &id, "reference", Outcome::Fail, error.to_string()),
    }
}

/// What all ways of one backend answered to one case.
#[derive(Default)]
struct Answers {
    comparisons: Vec<Comparison>,
    excesses: Vec<f64>,
    unsupported: Vec<String>,
    failures: Vec<String>,
}

impl Answers {
    fn add(&mut self, prepared: &Prepared, subject: &dyn Subject) {
        let variant = subject.variant();
        match caught(|| prepared(subject)) {
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

/// A panic becomes an error: one broken kernel must not end the check of all others.
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

/// The simplest case that still fails on a backend, starting from one that does: shrunk as proptest shrinks,
/// in at most `steps` steps.
///
/// # Errors
/// `Argument` when the strategy of the operation yields nothing.
pub fn simplest_failure(
    backend: BackendKind,
    options: &CrossOptions,
    failed: &Case,
    steps: usize,
) -> Result<Case> {
    let operation = failed.operation;
    let Some(check) = CHECKS.iter().find(|check| check.operation == operation) else {
        return Ok(*failed);
    };
    let fails = |case: &Case| {
        let rows = check_backend(check, backend, &[*case]);
        rows.iter().any(|row| row.outcome == Outcome::Fail)
    };
    // The tree that the case was drawn from; corners have none and stay as they are.
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
