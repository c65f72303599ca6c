//! The outcome of each mutant, in a file and in a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::known::{self, Known};
use crate::verdict::{Outcome, Verdict};

/// Reads verdicts by name; a later line replaces an earlier one.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, Verdict>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let mut verdicts = BTreeMap::new();
    for (line, number) in text.lines().zip(1..) {
        let verdict: Verdict =
            serde_json::from_str(line).with_context(|| format!("{}: line {number}", path.display()))?;
        verdicts.insert(verdict.name.clone(), verdict);
    }
    Ok(verdicts)
}

/// Rewrites the file with all verdicts.
pub(crate) fn write(path: &Path, verdicts: &BTreeMap<String, Verdict>) -> Result<()> {
    let mut file = std::fs::File::create(path).with_context(|| format!("{}", path.display()))?;
    for verdict in verdicts.values() {
        writeln!(file, "{}", serde_json::to_string(verdict)?)?;
    }
    Ok(())
}

#[derive(Default)]
struct Count {
    killed: usize,
    timeout: usize,
    survived: usize,
    unreached: usize,
    known: usize,
    fixed: usize,
    unviable: usize,
}

impl Count {
    fn add(&mut self, verdict: &Verdict, known: &[Known]) {
        match verdict.outcome {
            outcome if outcome.is_alive() && known::of(verdict, known).is_some() => self.known += 1,
            Outcome::Killed => self.killed += 1,
            Outcome::Timeout => self.timeout += 1,
            Outcome::Survived => self.survived += 1,
            Outcome::Unreached => self.unreached += 1,
            Outcome::Unviable => self.unviable += 1,
            Outcome::Fixed => self.fixed += 1,
        }
    }

    /// Killed mutants, in percent of those that could be killed.
    fn share(&self) -> f64 {
        let killed = self.killed + self.timeout;
        let all = killed + self.survived + self.unreached;
        if all == 0 {
            100.0
        } else {
            100.0 * killed as f64 / all as f64
        }
    }
}

/// Killed mutants, in percent of those that compile and are not known survivors.
pub(crate) fn killed_share(verdicts: &BTreeMap<String, Verdict>, known: &[Known]) -> f64 {
    let mut count = Count::default();
    for verdict in verdicts.values() {
        count.add(verdict, known);
    }
    count.share()
}

/// A table by file, then the survivors, in Markdown.
pub(crate) fn table(verdicts: &BTreeMap<String, Verdict>, known: &[Known]) -> String {
    let mut files: BTreeMap<&str, Count> = BTreeMap::new();
    let mut all = Count::default();
    for verdict in verdicts.values() {
        files.entry(&verdict.file).or_default().add(verdict, known);
        all.add(verdict, known);
    }
    let mut out = String::from(
        "| file | killed | timeout | survived | unreached | known | fixed | do not compile | killed of those that can be |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (file, c) in files.iter().map(|(f, c)| (*f, c)).chain([("all", &all)]) {
        let _ = writeln!(
            out,
            "| {file} | {} | {} | {} | {} | {} | {} | {} | {:.1} % |",
            c.killed,
            c.timeout,
            c.survived,
            c.unreached,
            c.known,
            c.fixed,
            c.unviable,
            c.share()
        );
    }
    let (listed, others): (Vec<_>, Vec<_>) = verdicts
        .values()
        .filter(|v| v.outcome.is_alive())
        .map(|v| (v, known::of(v, known)))
        .partition(|(_, entry)| entry.is_some());
    out.push_str("\nSurvivors that are not known:\n");
    for (verdict, _) in others {
        let what = if verdict.outcome == Outcome::Unreached {
            "unreached"
        } else {
            "survived"
        };
        let _ = writeln!(out, "- {what} {}: `{}`", verdict.name, verdict.line);
    }
    out.push_str("\n| known survivor | line | change | kind | reason |\n|---|---|---|---|---|\n");
    for (verdict, entry) in listed {
        if let Some(k) = entry {
            // a bar would end the cell
            let line = verdict.line.replace('|', "\\|");
            let _ = writeln!(
                out,
                "| {} {} | `{line}` | {} | {} | {} |",
                k.file,
                k.function,
                k.change.replace('|', "\\|"),
                k.kind,
                k.reason
            );
        }
    }
    out
}
