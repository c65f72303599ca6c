//! Which tests reach which mutants, and how long each test takes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::test_binaries::TestBinary;
use crate::trial::{self, End};

/// One test.
pub(crate) struct Test {
    pub program: PathBuf,
    pub folder: PathBuf,
    pub binary: String,
    pub name: String,
    pub took: Duration,
}

/// The tests, the quickest first, and those that reach each mutant.
pub(crate) struct Coverage {
    pub tests: Vec<Test>,
    reached: BTreeMap<u32, Vec<usize>>,
}

impl Coverage {
    /// Indices of the tests that reach a mutant, the quickest first.
    pub(crate) fn reaching(&self, id: u32) -> &[usize] {
        self.reached.get(&id).map_or(&[], Vec::as_slice)
    }
}

/// The longest that a test may take without a mutant.
const LIMIT: Duration = Duration::from_secs(900);

/// Runs every test alone, without a mutant.
///
/// # Errors
/// A test fails: then it could tell nothing about mutants.
pub(crate) fn measure(binaries: &[TestBinary], jobs: usize) -> Result<Coverage> {
    let mut tests = Vec::new();
    for binary in binaries {
        let listed = Command::new(&binary.program)
            .current_dir(&binary.folder)
            .args(["--list", "--format", "terse"])
            .output()
            .with_context(|| binary.name.clone())?;
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            if let Some(name) = line.strip_suffix(": test") {
                tests.push(Test {
                    program: binary.program.clone(),
                    folder: binary.folder.clone(),
                    binary: binary.name.clone(),
                    name: name.to_owned(),
                    took: Duration::ZERO,
                });
            }
        }
    }
    let next = AtomicUsize::new(0);
    let measured = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(test) = tests.get(index) else {
                            return Ok(());
                        };
                        let scratch = tempfile::tempdir().context("a folder for tests")?;
                        let list = scratch.path().join("reached");
                        let mut command = trial::command(test, "reached", &scratch);
                        command.env("MUTANTS_REACHED", &list);
                        let (end, took) = trial::end(command, LIMIT)?;
                        if !matches!(end, End::Passed) {
                            bail!("{} {} fails without a mutant", test.binary, test.name);
                        }
                        let ids: Vec<u32> = match std::fs::read_to_string(&list) {
                            Ok(text) => text.lines().filter_map(|l| l.parse().ok()).collect(),
                            Err(_) => Vec::new(),
                        };
                        measured
                            .lock()
                            .map_err(|_| anyhow::anyhow!("another worker panicked"))?
                            .push((index, took, ids));
                    }
                })
            })
            .collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let mut measured = measured
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a worker panicked"))?;
    measured.sort_by_key(|&(index, took, _)| (took, index));

    let mut slots: Vec<_> = tests.into_iter().map(Some).collect();
    let mut coverage = Coverage {
        tests: Vec::new(),
        reached: BTreeMap::new(),
    };
    for (index, took, mut ids) in measured {
        let Some(mut test) = slots[index].take() else {
            continue;
        };
        test.took = took;
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            coverage.reached.entry(id).or_default().push(coverage.tests.len());
        }
        coverage.tests.push(test);
    }
    Ok(coverage)
}
