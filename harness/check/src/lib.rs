//! `aqlm check`: results compared with peers' and with one another, four outcomes, one line to replay a
//! failure (docs/checking.md).

mod breakage;
pub mod cases;
mod compare;
mod cross;
mod keep;
pub mod ledger;
pub mod limits;
mod ops;
mod peer_checkpoints;
mod peer_models;
mod peer_ops;
mod subject;
mod vectors;
mod whole_model;

use std::fmt;

use serde::Serialize;

pub use compare::{Against, Findings};
pub use cross::{CrossOptions, CrossReport, Summary, check_broken, cross_check, simplest_failure};
pub use ops::{Cost, ProductCheck, Work, matrix_bytes};
pub use subject::{CheckedBackend, Cpu, Cuda, Machines, Pools, Subject};
pub use vectors::{VectorOptions, check_vectors};

/// How a case ended (design.md 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// compared, within the limit
    Pass,
    /// compared, outside the limit
    Fail,
    /// the backend does not do this, and says why
    Unsupported,
    /// not tried: what it needs is not here
    Waived,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Unsupported => "unsupported",
            Self::Waived => "waived",
        })
    }
}

/// An element that is off.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worst {
    /// its place, counted from zero along every axis
    pub index: Vec<usize>,
    /// the reference's value
    pub expected: f64,
    /// what was found; NaN where nothing was written
    pub found: f64,
    /// what the difference alone comes to, as a share of the limit
    pub share: f64,
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            index,
            expected,
            found,
            share,
        } = self;
        write!(
            f,
            "{index:?}: expected {expected:.9e}, found {found:.9e}, {share:.3e} of the limit"
        )
    }
}

/// Elements shown of a comparison that does not hold.
const SHOWN: usize = 10;

/// One compared quantity of one case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// which quantity, and in what measure it is compared
    pub what: String,
    /// measured difference
    pub value: f64,
    /// largest allowed
    pub limit: f64,
    /// where it does not hold, the elements that are furthest off
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub worst: Vec<Worst>,
}

impl Comparison {
    /// `value` against `limit`.
    pub fn new(what: impl Into<String>, value: f64, limit: f64) -> Self {
        Self {
            what: what.into(),
            value,
            limit,
            worst: Vec::new(),
        }
    }

    /// The same with the elements that are furthest off, if it does not hold; `share` is what an error at a
    /// place comes to alone, as a share of the limit. NaN comes first.
    #[must_use]
    pub(crate) fn with_worst(
        mut self,
        found: &[f64],
        expected: &[f64],
        share: impl Fn(usize, f64) -> f64,
    ) -> Self {
        if self.holds() {
            return self;
        }
        let of = |i: usize| {
            let share = share(i, (found[i] - expected[i]).abs());
            if share.is_nan() { f64::INFINITY } else { share }
        };
        let shares: Vec<f64> = (0..found.len().min(expected.len())).map(of).collect();
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
        let furthest = order.into_iter().take(SHOWN).filter(|&i| shares[i] > 0.0);
        self.worst = furthest
            .map(|i| Worst {
                index: vec![i],
                expected: expected[i],
                found: found[i],
                share: shares[i],
            })
            .collect();
        self
    }

    /// The same with its elements' places in an array of this shape.
    #[must_use]
    pub(crate) fn shaped(mut self, shape: &[usize]) -> Self {
        for worst in &mut self.worst {
            let mut flat: usize = worst.index.iter().sum();
            let mut index: Vec<usize> = shape
                .iter()
                .rev()
                .map(|&side| {
                    let at = flat % side.max(1);
                    flat /= side.max(1);
                    at
                })
                .collect();
            index.reverse();
            worst.index = index;
        }
        self
    }

    /// Whether the value is within its limit; NaN never is.
    pub fn holds(&self) -> bool {
        self.value <= self.limit
    }

    /// The value as a share of its limit: above 1 when it does not hold, and so for NaN.
    pub fn share(&self) -> f64 {
        if self.value.is_nan() || self.limit.is_nan() {
            f64::INFINITY
        } else if self.limit > 0.0 {
            self.value / self.limit
        } else if self.value <= self.limit {
            0.0
        } else {
            f64::INFINITY
        }
    }
}

/// One row of `aqlm check`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaseRow {
    /// the operation
    pub op: String,
    /// the case's id
    pub case: String,
    /// which backend was checked
    pub backend: String,
    /// how it ended
    pub outcome: Outcome,
    /// what was compared
    pub comparisons: Vec<Comparison>,
    /// why it failed, is unsupported or was waived
    pub reason: Option<String>,
    /// where the operands of a failure lie
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<std::path::PathBuf>,
}

impl CaseRow {
    /// A row from its comparisons: a pass when there is at least one and all hold.
    pub fn compared(op: &str, case: &str, backend: &str, comparisons: Vec<Comparison>) -> Self {
        let broken = comparisons.iter().find(|comparison| !comparison.holds());
        let reason = match broken {
            Some(comparison) => Some(format!(
                "{}: {:.3e}, limit {:.1e}",
                comparison.what, comparison.value, comparison.limit
            )),
            None if comparisons.is_empty() => Some("nothing was compared".to_owned()),
            None => None,
        };
        let outcome = if reason.is_none() {
            Outcome::Pass
        } else {
            Outcome::Fail
        };
        Self {
            op: op.into(),
            case: case.into(),
            backend: backend.into(),
            outcome,
            comparisons,
            reason,
            kept: None,
        }
    }

    /// A row without comparisons.
    pub fn without(op: &str, case: &str, backend: &str, outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            op: op.into(),
            case: case.into(),
            backend: backend.into(),
            outcome,
            comparisons: Vec::new(),
            reason: Some(reason.into()),
            kept: None,
        }
    }

    /// The elements furthest off, of the first comparison that does not hold and has any.
    pub fn worst_elements(&self) -> &[Worst] {
        let broken = |comparison: &&Comparison| !comparison.holds() && !comparison.worst.is_empty();
        self.comparisons
            .iter()
            .find(broken)
            .map_or(&[], |comparison| &comparison.worst)
    }

    /// The comparison nearest to (or farthest over) its limit.
    pub fn worst(&self) -> Option<&Comparison> {
        self.comparisons
            .iter()
            .max_by(|a, b| a.share().total_cmp(&b.share()))
    }
}

/// All rows of a check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    /// cases within their limits
    pub pass: usize,
    /// cases outside
    pub fail: usize,
    /// cases a backend does not do
    pub unsupported: usize,
    /// cases not tried
    pub waived: usize,
    /// every case
    pub rows: Vec<CaseRow>,
}

impl CheckReport {
    /// Counts the outcomes.
    pub fn new(rows: Vec<CaseRow>) -> Self {
        let count = |outcome| rows.iter().filter(|row| row.outcome == outcome).count();
        Self {
            pass: count(Outcome::Pass),
            fail: count(Outcome::Fail),
            unsupported: count(Outcome::Unsupported),
            waived: count(Outcome::Waived),
            rows,
        }
    }

    /// Whether something was compared and nothing failed.
    pub fn holds(&self) -> bool {
        self.fail == 0 && self.pass > 0
    }
}

/// |a - b| / |b| in the Euclidean norm; the absolute |a| when b is zero.
pub(crate) fn relative_difference<'a>(
    found: impl IntoIterator<Item = &'a f64>,
    expected: impl IntoIterator<Item = &'a f64>,
) -> f64 {
    let (difference, norm) = squares(found, expected);
    if norm == 0.0 {
        difference.sqrt()
    } else {
        (difference / norm).sqrt()
    }
}

/// sum((a - b)^2) / sum(b^2); NaN (and so a failure) when the reference is zero.
pub(crate) fn nmse<'a>(
    found: impl IntoIterator<Item = &'a f64>,
    expected: impl IntoIterator<Item = &'a f64>,
) -> f64 {
    let (difference, norm) = squares(found, expected);
    difference / norm
}

/// The largest of some differences; NaN when one of them is, which `f64::max` would pass over.
pub(crate) fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(
        0.0,
        |top: f64, value| if top.is_nan() || value <= top { top } else { value },
    )
}

/// sum((a - b)^2) and sum(b^2).
fn squares<'a>(
    found: impl IntoIterator<Item = &'a f64>,
    expected: impl IntoIterator<Item = &'a f64>,
) -> (f64, f64) {
    found
        .into_iter()
        .zip(expected)
        .fold((0.0, 0.0), |(difference, norm), (found, expected)| {
            (difference + (found - expected).powi(2), norm + expected.powi(2))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_compared_and_nan_are_failures() {
        assert_eq!(
            CaseRow::compared("op", "case", "b", vec![]).outcome,
            Outcome::Fail
        );
        let nan = Comparison::new("x", f64::NAN, 1.0);
        assert_eq!(
            CaseRow::compared("op", "case", "b", vec![nan]).outcome,
            Outcome::Fail
        );
        let good = Comparison::new("x", 1e-9, 1e-6);
        assert_eq!(
            CaseRow::compared("op", "case", "b", vec![good]).outcome,
            Outcome::Pass
        );
    }

    #[test]
    fn a_report_without_a_pass_does_not_hold() {
        assert!(!CheckReport::new(vec![]).holds());
        let waived = CaseRow::without("op", "case", "b", Outcome::Waived, "no device");
        assert!(!CheckReport::new(vec![waived]).holds());
    }

    #[test]
    fn the_largest_of_differences_keeps_nan() {
        assert_eq!(largest([0.5, 2.0, 1.0]), 2.0);
        assert!(largest([0.5, f64::NAN, 1.0]).is_nan());
        assert!(largest([f64::NAN]).is_nan());
    }

    #[test]
    fn a_zero_reference_never_passes_nmse() {
        assert!(nmse(&[0.0], &[0.0]).is_nan());
    }
}
