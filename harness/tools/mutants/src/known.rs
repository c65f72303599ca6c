//! Known survivors, each with the reason why no test can, or need, distinguish it from the original.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::verdict::Verdict;

/// A survivor and its reason. Identified by the text of its line, so that it is still found when lines move.
#[derive(Debug, Deserialize)]
pub(crate) struct Known {
    pub file: String,
    pub function: String,
    /// The source line on which the mutant begins, trimmed.
    pub line: String,
    /// The change in the words of cargo-mutants: `replace + with -`.
    pub change: String,
    /// `equivalent`: no result can differ. `speed`: only time or memory differs. `rounding`: results differ
    /// only by rounding.
    pub kind: String,
    pub reason: String,
}

/// Reads `harness/tools/mutants/known.json`.
///
/// # Errors
/// When the file is missing or is not such a list.
pub(crate) fn read(root: &Path) -> Result<Vec<Known>> {
    let path = root.join("harness/tools/mutants/known.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}

/// The entry for a mutant, if it is known.
pub(crate) fn of<'a>(verdict: &Verdict, known: &'a [Known]) -> Option<&'a Known> {
    known.iter().find(|k| {
        k.file == verdict.file
            && k.function == verdict.function
            && k.line == verdict.line
            && k.change == verdict.change
    })
}
