//! One run of one test, with or without a mutant.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// One test.
pub(crate) struct Test {
    pub program: PathBuf,
    pub folder: PathBuf,
    pub binary: String,
    pub name: String,
    pub took: Duration,
}

/// Maximum address space of a test in KiB; a mutant that allocates more fails.
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

/// Runs a command for at most `limit`, then kills it and the processes that it started.
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
    // also kills processes that a dead test left running
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
