//! One test with one mutant, and one mutant with its tests.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::coverage::{Coverage, Test};
use crate::list::Mutant;
use crate::verdict::{Outcome, Verdict};

/// KiB of address space that a test may have; a mutant that asks for more fails.
const MEMORY: u64 = 16 << 20;

/// How one run of a test ended.
pub(crate) enum End {
    Passed,
    Failed,
    TookTooLong,
}

/// The command of one test, with `mutant` in its environment.
pub(crate) fn command(test: &Test, mutant: &str, scratch: &tempfile::TempDir) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -v {MEMORY}; exec \"$0\" \"$@\"")])
        .arg(&test.program)
        .args(["--exact", &test.name, "--test-threads", "1"])
        .current_dir(&test.folder)
        .env("MUTANT", mutant)
        .env("TMPDIR", scratch.path())
        .env("INSTA_UPDATE", "no")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command
}

/// Runs a command, at most for `limit`; then it and what it started are killed.
pub(crate) fn end(mut command: Command, limit: Duration) -> Result<(End, Duration)> {
    let begin = Instant::now();
    let mut child = command.spawn().context("a test")?;
    let mut pause = Duration::from_millis(1);
    let status: Option<ExitStatus> = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begin.elapsed() > limit {
            break None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    // also what a dead test left running
    let _ = Command::new("kill")
        .args(["-9", "--", &format!("-{}", child.id())])
        .stderr(Stdio::null())
        .status();
    let end = match status {
        Some(status) if status.success() => End::Passed,
        Some(status) if status.signal() == Some(9) => End::TookTooLong,
        Some(_) => End::Failed,
        None => {
            child.wait()?;
            End::TookTooLong
        }
    };
    Ok((end, begin.elapsed()))
}

/// Runs the tests that reach a mutant, the quickest first, until one fails or the budget is spent.
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
