//! Which tests reach which mutants, and the time of each test.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::test_binaries::TestBinary;
use crate::test_run::{self, End, Test};
use crate::workers;

/// All tests, quickest first, and the tests that reach each mutant.
pub(crate) struct Coverage {
    pub tests: Vec<Test>,
    reached: BTreeMap<u32, Vec<usize>>,
}

impl Coverage {
    /// Indices of the tests that reach a mutant, quickest first.
    pub(crate) fn reaching(&self, id: u32) -> &[usize] {
        self.reached.get(&id).map_or(&[], Vec::as_slice)
    }
}

/// The mutants that one test reaches, as saved between runs.
#[derive(Serialize, Deserialize)]
struct Measured {
    program: PathBuf,
    /// When the program was built, in nanoseconds since 1970. Results of another build are not used.
    built: u128,
    name: String,
    seconds: f64,
    reached: Vec<u32>,
}

/// When a program was built, in nanoseconds since 1970.
fn built(program: &Path) -> Result<u128> {
    let modified = std::fs::metadata(program)
        .and_then(|m| m.modified())
        .with_context(|| format!("{}", program.display()))?;
    Ok(modified.duration_since(std::time::UNIX_EPOCH)?.as_nanos())
}

/// Maximum time of a test without a mutant.
const LIMIT: Duration = Duration::from_mins(15);

/// Runs every test alone, without a mutant. Tests with a result in the file `kept`, from an earlier run, are
/// not run again.
///
/// # Errors
/// When a test fails: it could then say nothing about mutants.
pub(crate) fn measure(binaries: &[TestBinary], jobs: usize, kept: &Path) -> Result<Coverage> {
    let tests = tests(binaries)?;
    let mut known: BTreeMap<(PathBuf, u128, String), Measured> = BTreeMap::new();
    for line in std::fs::read_to_string(kept).unwrap_or_default().lines() {
        // a killed run may have left an incomplete line
        if let Ok(one) = serde_json::from_str::<Measured>(line) {
            known.insert((one.program.clone(), one.built, one.name.clone()), one);
        }
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(kept)
        .with_context(|| format!("{}", kept.display()))?;
    let found = Mutex::new((file, Vec::new()));
    workers::for_each_index(jobs, tests.len(), |index| {
        let test = &tests[index];
        let key = (test.program.clone(), built(&test.program)?, test.name.clone());
        let (took, reached) = if let Some(one) = known.get(&key) {
            (Duration::from_secs_f64(one.seconds), one.reached.clone())
        } else {
            let (took, reached) = alone(test)?;
            let one = Measured {
                program: key.0,
                built: key.1,
                name: key.2,
                seconds: took.as_secs_f64(),
                reached,
            };
            let line = serde_json::to_string(&one)?;
            let mut found = found
                .lock()
                .map_err(|_| anyhow::anyhow!("another worker panicked"))?;
            writeln!(found.0, "{line}")?;
            (took, one.reached)
        };
        let mut found = found
            .lock()
            .map_err(|_| anyhow::anyhow!("another worker panicked"))?;
        found.1.push((index, took, reached));
        Ok(())
    })?;
    let mut found = found
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a worker panicked"))?
        .1;
    found.sort_by_key(|&(index, took, _)| (took, index));

    let mut slots: Vec<_> = tests.into_iter().map(Some).collect();
    let mut coverage = Coverage {
        tests: Vec::new(),
        reached: BTreeMap::new(),
    };
    for (index, took, ids) in found {
        let Some(mut test) = slots[index].take() else {
            continue;
        };
        test.took = took;
        for id in ids {
            coverage.reached.entry(id).or_default().push(coverage.tests.len());
        }
        coverage.tests.push(test);
    }
    Ok(coverage)
}

/// The names of all tests.
fn tests(binaries: &[TestBinary]) -> Result<Vec<Test>> {
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
    Ok(tests)
}

/// Runs one test; returns its time and the mutants that it reaches.
fn alone(test: &Test) -> Result<(Duration, Vec<u32>)> {
    let scratch = tempfile::tempdir().context("a folder for tests")?;
    let list = scratch.path().join("reached");
    let mut command = test_run::command(test, "reached", &scratch);
    command.env("MUTANTS_REACHED", &list);
    let (end, took) = test_run::end(command, LIMIT)?;
    if !matches!(end, End::Passed) {
        bail!("{} {} fails without a mutant", test.binary, test.name);
    }
    let mut ids: Vec<u32> = match std::fs::read_to_string(&list) {
        Ok(text) => text.lines().filter_map(|l| l.parse().ok()).collect(),
        Err(_) => Vec::new(),
    };
    ids.sort_unstable();
    ids.dedup();
    Ok((took, ids))
}
