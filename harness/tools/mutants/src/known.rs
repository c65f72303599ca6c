//! Survivors that are known, with the reason why no test can, or need, tell them from the original.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::verdict::Verdict;

/// A survivor and its reason. Named by the text of its line, so that it is still found when lines move.
#[derive(Debug, Deserialize)]
pub(crate) struct Known {
    pub file: String,
    pub function: String,
    /// The line of the source that the mutant begins on, without surrounding blanks.
    pub line: String,
    /// What cargo-mutants calls the change: `replace + with -`.
    pub change: String,
    /// `equivalent`: no result can differ. `speed`: only time or memory differ. `rounding`: results differ by
    /// rounding only.
    pub kind: String,
    pub reason: String,
}

/// Reads `harness/tools/mutants/known.json`.
///
/// # Errors
/// It is not there or not such a list.
pub(crate) fn read(root: &Path) -> Result<Vec<Known>> {
    let path = root.join("harness/tools/mutants/known.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}

/// The entry for a mutant.
pub(crate) fn of<'a>(verdict: &Verdict, known: &'a [Known]) -> Option<&'a Known> {
    known.iter().find(|k| {
        k.file == verdict.file
            && k.function == verdict.function
            && k.line == verdict.line
            && k.change == verdict.change
    })
}
