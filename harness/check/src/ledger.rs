//! Cases that are known to fail, each with its reason. Their rows are waived while they fail. A known failure
//! that passes fails the check, so that no entry outlives its mistake.

use crate::cases::Case;
use crate::{CaseRow, Outcome};

/// A known failure.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// whether the entry applies to this case on the backend of this name
    pub is: fn(&Case, &str) -> bool,
    /// what is wrong, and where the full description is
    pub reason: &'static str,
}

/// The known failures of this version.
pub const KNOWN: &[Known] = &[];

/// The row of a case after applying the ledger.
pub fn judged(ledger: &[Known], case: &Case, row: CaseRow) -> CaseRow {
    let Some(known) = ledger.iter().find(|known| (known.is)(case, &row.backend)) else {
        return row;
    };
    match row.outcome {
        Outcome::Fail => CaseRow {
            outcome: Outcome::Waived,
            reason: Some(format!(
                "known failure, {}: {}",
                known.reason,
                row.reason.as_deref().unwrap_or("no reason given")
            )),
            ..row
        },
        Outcome::Pass => CaseRow {
            outcome: Outcome::Fail,
            reason: Some(format!(
                "it passes, but harness/check/src/ledger.rs has it as a known failure ({}): remove me",
                known.reason
            )),
            ..row
        },
        Outcome::Unsupported | Outcome::Waived => row,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Comparison;

    #[test]
    fn a_known_failure_is_waived_and_one_that_passes_fails() {
        let ledger = [Known {
            is: |case, backend| backend == "cpu" && case.to_string().ends_with("-s1"),
            reason: "an artificial mistake",
        }];
        let row = |id: &str, backend: &str, value: f64| {
            let case: Case = id.parse().unwrap();
            let comparisons = vec![Comparison::new("x", value, 1.0)];
            judged(
                &ledger,
                &case,
                CaseRow::compared("decode", id, backend, comparisons),
            )
        };
        let (listed, other) = ("decode-1x1g4-1x4-b1-dyadic-s1", "decode-1x1g4-1x4-b1-dyadic-s2");
        let failing = row(listed, "cpu", 2.0);
        assert_eq!(failing.outcome, Outcome::Waived);
        assert!(failing.reason.unwrap().contains("an artificial mistake"));
        let passing = row(listed, "cpu", 0.5);
        assert_eq!(passing.outcome, Outcome::Fail);
        assert!(passing.reason.unwrap().contains("remove me"));
        // Other cases and backends are unaffected.
        assert_eq!(row(other, "cpu", 2.0).outcome, Outcome::Fail);
        assert_eq!(row(other, "cpu", 0.5).outcome, Outcome::Pass);
        assert_eq!(row(listed, "cuda", 2.0).outcome, Outcome::Fail);
    }
}
