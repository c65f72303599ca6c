//! One mutant and its tests.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::coverage::Coverage;
use crate::list::Mutant;
use crate::test_run::{End, command, end};
use crate::verdict::{Outcome, Verdict};

/// Runs the tests that reach a mutant, quickest first, until one fails or the budget is spent.
pub(crate) fn verdict(mutant: &Mutant, coverage: &Coverage, budget: Duration) -> Result<Verdict> {
    let scratch = tempfile::tempdir().context("a folder for tests")?;
    let reaching = coverage.reaching(mutant.id);
    let mut verdict = Verdict::new(mutant, Outcome::Survived);
    if reaching.is_empty() {
        verdict.outcome = Outcome::Unreached;
    }
    let mut spent = Duration::ZERO;
    for &index in reaching {
        let test = &coverage.tests[index];
        if spent > budget {
            verdict.left += 1;
            continue;
        }
        let limit = Duration::from_secs(20) + 10 * test.took;
        let (end, took) = end(command(test, &mutant.id.to_string(), &scratch), limit)?;
        spent += took;
        verdict.tests += 1;
        verdict.outcome = match end {
            End::Passed => continue,
            End::Failed => Outcome::Killed,
            End::TookTooLong => Outcome::Timeout,
        };
        verdict.by = format!("{} {}", test.binary, test.name);
        break;
    }
    verdict.seconds = spent.as_secs_f64();
    Ok(verdict)
}
