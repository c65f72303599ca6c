//! Runs all mutants listed by `cargo mutants --list` from a single build.
//!
//! cargo-mutants builds the tree once per mutant, which for these crates would take days on two cores. Here a
//! copy of the tree contains all mutants at once, each behind a comparison with a number read from the
//! environment (mutant schemata: Untch, Offutt and Harrold, 1993). The tests are built once. Each mutant is
//! then a run of the tests that reach it, quickest first, until one fails.
//!
//! ```text
//! cargo run --release -p aqlm-mutants -- --file reference/src/mrf.rs      one file
//! cargo run --release -p aqlm-mutants -- --sample 100 --seed 3            some of all
//! cargo run --release -p aqlm-mutants -- --results mutants.jsonl          all; an interrupted run goes on
//! ```

mod coverage;
mod known;
mod list;
mod report;
mod schemata;
mod test_binaries;
mod test_run;
mod tree;
mod trial;
mod verdict;
mod viability;
mod workers;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;

use crate::list::Mutant;
use crate::verdict::{Outcome, Verdict};

#[derive(Parser)]
#[command(about = "Run the mutants that cargo-mutants lists, from one build")]
struct Arguments {
    /// Folders or files whose mutants are run, relative to the repository; may be repeated
    #[arg(long = "file", default_values = ["reference/src", "optimized/src/cpu"])]
    files: Vec<String>,
    /// Packages whose tests are run; may be repeated
    #[arg(long = "test-package", default_values = ["aqlm-reference", "aqlm-optimized", "aqlm-check", "aqlm-engine", "aqlm-formats", "aqlm"])]
    test_packages: Vec<String>,
    /// Test programs that are left out, such as `faults`; may be repeated
    #[arg(long)]
    without: Vec<String>,
    /// Run this many mutants, drawn at random, instead of all
    #[arg(long)]
    sample: Option<usize>,
    /// Seed of the draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seconds of tests after which a mutant that no test has failed on counts as survived
    #[arg(long, default_value_t = 60.0)]
    budget: f64,
    /// Tests that run at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Where verdicts are written, one JSON document a line; those already there are not found again
    #[arg(long, default_value = "target/mutants/results.jsonl")]
    results: PathBuf,
    /// Find survivors of an earlier run again
    #[arg(long)]
    again: bool,
    /// Fail if fewer than this share (in percent) of the mutants that compile and are not known as equivalent
    /// is killed
    #[arg(long)]
    at_least: Option<f64>,
    /// Print the table as Markdown and stop, without running anything
    #[arg(long)]
    report: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let root = tree::root()?;
    let known = known::read(&root)?;
    if arguments.report {
        let verdicts = report::read(&arguments.results)?;
        print!("{}", report::table(&verdicts, &known));
        return Ok(());
    }

    let mut mutants = list::mutants(&root, &arguments.files)?;
    println!("{} mutants in {}", mutants.len(), arguments.files.join(", "));
    let copy = root.join("target/mutants/tree");
    let mut verdicts = if arguments.results.is_file() {
        report::read(&arguments.results)?
    } else {
        BTreeMap::new()
    };
    let instrumented = viability::instrument(&root, &copy, &mutants, &verdicts)?;
    println!(
        "{} compile, {} do not, {} cannot be switched at run time",
        instrumented.switched.len(),
        instrumented.unviable.len(),
        instrumented.fixed.len()
    );

    let mut binaries = test_binaries::build(&copy, &arguments.test_packages)?;
    binaries.retain(|b| {
        !arguments
            .without
            .iter()
            .any(|w| b.name.ends_with(&format!("::{w}")))
    });
    let settled = [
        (&instrumented.unviable, Outcome::Unviable),
        (&instrumented.fixed, Outcome::Fixed),
    ];
    for (ids, outcome) in settled {
        for id in ids {
            let mutant = &mutants[*id as usize - 1];
            verdicts.insert(mutant.name.clone(), Verdict::new(mutant, outcome));
        }
    }
    let lines: BTreeMap<&str, &str> = mutants
        .iter()
        .map(|m| (m.name.as_str(), m.text.as_str()))
        .collect();
    // Drops verdicts on requested files if their mutant is no longer in the tree or is now on another line.
    // Also drops survivors that are to be tried again.
    verdicts.retain(|name, v| {
        let same = lines.get(name.as_str()).is_some_and(|line| *line == v.line);
        let asked = arguments.files.iter().any(|f| v.file.starts_with(f.as_str()));
        (same || !asked) && !(arguments.again && v.outcome.is_alive())
    });

    mutants.retain(|m| instrumented.switched.contains(&m.id) && !verdicts.contains_key(&m.name));
    if let Some(sample) = arguments.sample {
        mutants.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(arguments.seed));
        mutants.truncate(sample);
        mutants.sort_by_key(|m| m.id);
    }
    // before the tests: a run that resumes here has the same files and needs no new build
    report::write(&arguments.results, &verdicts)?;
    let coverage = coverage::measure(
        &binaries,
        arguments.jobs,
        &root.join("target/mutants/coverage.jsonl"),
    )?;
    println!(
        "{} tests in {:.0} s, {} mutants to run",
        coverage.tests.len(),
        coverage.tests.iter().map(|t| t.took.as_secs_f64()).sum::<f64>(),
        mutants.len()
    );
    let ran = run(&arguments, &mutants, &coverage)?;
    for verdict in &ran {
        verdicts.insert(verdict.name.clone(), verdict.clone());
    }
    // All verdicts on the requested files; for a sample, only those of the sample.
    let shown: BTreeMap<_, _> = if arguments.sample.is_some() {
        ran.into_iter().map(|v| (v.name.clone(), v)).collect()
    } else {
        verdicts
    };
    print!("{}", report::table(&shown, &known));
    let share = report::killed_share(&shown, &known);
    println!("killed of those that can be: {share:.1} %");
    match arguments.at_least {
        Some(least) if share < least => {
            bail!("{share:.1} % of the mutants are killed, at least {least} % was asked for")
        }
        _ => Ok(()),
    }
}

/// Runs every mutant and appends each verdict to the results immediately.
fn run(arguments: &Arguments, mutants: &[Mutant], coverage: &coverage::Coverage) -> Result<Vec<Verdict>> {
    let out = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&arguments.results)
        .with_context(|| format!("{}", arguments.results.display()))?;
    let found = Mutex::new((out, Vec::new()));
    let budget = Duration::from_secs_f64(arguments.budget.max(0.0));
    workers::for_each_index(arguments.jobs, mutants.len(), |index| {
        let verdict = trial::verdict(&mutants[index], coverage, budget)?;
        let line = serde_json::to_string(&verdict)?;
        let mut found = found
            .lock()
            .map_err(|_| anyhow::anyhow!("another worker panicked"))?;
        writeln!(found.0, "{line}")?;
        found.1.push(verdict);
        let done = found.1.len();
        if done.is_multiple_of(50) || done == mutants.len() {
            println!("{done} of {}", mutants.len());
        }
        Ok(())
    })?;
    Ok(found
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a worker panicked"))?
        .1)
}
