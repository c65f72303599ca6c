use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The outcome of a case (docs/checking.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// compared, within the limit
    Pass,
    /// compared, outside the limit
    Fail,
    /// the backend does not implement this, and says why
    Unsupported,
    /// not tried: a requirement is missing on this machine
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

/// An element with an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// index along every axis, from zero
    pub index: Vec<usize>,
    /// the reference's value
    #[serde(deserialize_with = "super::null_is_nan")]
    pub expected: f64,
    /// the value found; NaN if nothing was written
    #[serde(deserialize_with = "super::null_is_nan")]
    pub found: f64,
    /// the measure of this element's error alone, as a share of the limit
    #[serde(deserialize_with = "super::null_is_nan")]
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

/// Number of elements kept of a failed comparison.
const SHOWN: usize = 10;

/// One compared quantity of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// the quantity and the measure by which it is compared
    pub what: String,
    /// measured difference
    #[serde(deserialize_with = "super::null_is_nan")]
    pub value: f64,
    /// largest allowed
    #[serde(deserialize_with = "super::null_is_nan")]
    pub limit: f64,
    /// the elements with the largest errors, if the comparison failed
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worst: Vec<Worst>,
}

impl Comparison {
    /// Compares `value` with `limit`.
    pub fn new(what: impl Into<String>, value: f64, limit: f64) -> Self {
        Self {
            what: what.into(),
            value,
            limit,
            worst: Vec::new(),
        }
    }

    /// Adds the elements with the largest errors if the comparison failed. `share` is the measure of one
    /// element's error alone, as a share of the limit. NaN sorts first.
    #[must_use]
    pub fn with_worst(mut self, found: &[f64], expected: &[f64], share: impl Fn(usize, f64) -> f64) -> Self {
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

    /// Converts the elements' flat indices to indices of an array of this shape.
    #[must_use]
    pub fn shaped(mut self, shape: &[usize]) -> Self {
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

    /// Whether the value is within its limit; false for NaN.
    pub fn holds(&self) -> bool {
        self.value <= self.limit
    }

    /// The value as a share of its limit; above 1 when the comparison failed, NaN included.
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseRow {
    /// the operation
    pub op: String,
    /// the case's id
    pub case: String,
    /// which backend was checked
    pub backend: String,
    /// the outcome
    pub outcome: Outcome,
    /// what was compared
    pub comparisons: Vec<Comparison>,
    /// why it failed, is unsupported or was waived
    pub reason: Option<String>,
    /// path of the saved operands of a failure
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "super::path_or_null"
    )]
    pub kept: Option<PathBuf>,
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

    /// The worst elements of the first failed comparison that has any.
    pub fn worst_elements(&self) -> &[Worst] {
        let broken = |comparison: &&Comparison| !comparison.holds() && !comparison.worst.is_empty();
        self.comparisons
            .iter()
            .find(broken)
            .map_or(&[], |comparison| &comparison.worst)
    }

    /// The comparison closest to its limit, or furthest over it.
    pub fn worst(&self) -> Option<&Comparison> {
        self.comparisons
            .iter()
            .max_by(|a, b| a.share().total_cmp(&b.share()))
    }
}

/// All rows of a check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// cases within their limits
    pub pass: usize,
    /// cases outside
    pub fail: usize,
    /// cases that a backend does not implement
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

/// One summary line: an operation on a backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// which operation
    pub op: String,
    /// which backend
    pub backend: String,
    /// cases
    pub cases: usize,
    /// cases within their limits
    pub pass: usize,
    /// cases outside
    pub fail: usize,
    /// cases that the backend does not implement
    pub unsupported: usize,
    /// cases not tried
    pub waived: usize,
    /// the comparison closest to its limit, or furthest over it
    pub worst: Option<Comparison>,
    /// the NMSE closest to its limit
    pub nmse: Option<Comparison>,
    /// the first reason why a case failed, was unsupported or was waived
    pub reason: Option<String>,
}

/// A whole cross-check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "CrossFields")]
pub struct CrossReport {
    /// one line for each operation and backend
    pub summary: Vec<Summary>,
    /// every case
    #[serde(flatten)]
    pub report: CheckReport,
}

impl CrossReport {
    /// Whether something was compared and nothing failed.
    pub fn holds(&self) -> bool {
        self.report.holds()
    }
}

/// The fields of a [`CrossReport`] as in JSON. Read without `flatten`, so that errors name the field.
#[derive(Deserialize)]
struct CrossFields {
    summary: Vec<Summary>,
    pass: usize,
    fail: usize,
    unsupported: usize,
    waived: usize,
    rows: Vec<CaseRow>,
}

impl From<CrossFields> for CrossReport {
    fn from(fields: CrossFields) -> Self {
        let CrossFields {
            summary,
            pass,
            fail,
            unsupported,
            waived,
            rows,
        } = fields;
        Self {
            summary,
            report: CheckReport {
                pass,
                fail,
                unsupported,
                waived,
                rows,
            },
        }
    }
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
    fn the_elements_furthest_off_are_kept_in_their_places_where_a_comparison_fails() {
        let (expected, found) = ([1.0, 2.0, 3.0, 4.0], [1.0, 2.5, f64::NAN, 5.0]);
        let share = |_, error: f64| 2.0 * error;
        let failed = Comparison::new("x", 2.0, 1.0).with_worst(&found, &expected, share);
        let failed = failed.shaped(&[2, 2]);
        let places: Vec<&[usize]> = failed.worst.iter().map(|worst| &worst.index[..]).collect();
        assert_eq!(places, [[1, 0], [1, 1], [0, 1]]);
        assert_eq!((failed.worst[1].found, failed.worst[1].share), (5.0, 2.0));
        assert!(failed.worst[0].found.is_nan() && failed.worst[0].share.is_infinite());
        let held = Comparison::new("x", 0.5, 1.0).with_worst(&found, &expected, share);
        assert!(held.worst.is_empty());
    }

    #[test]
    fn a_report_without_a_pass_does_not_hold() {
        assert!(!CheckReport::new(vec![]).holds());
        let waived = CaseRow::without("op", "case", "b", Outcome::Waived, "no device");
        assert!(!CheckReport::new(vec![waived]).holds());
    }
}
