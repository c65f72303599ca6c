//! The outcome of a mutant.

use serde::{Deserialize, Serialize};

use crate::list::Mutant;

/// The outcome of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// a test failed
    Killed,
    /// a test did not end
    Timeout,
    /// no test failed
    Survived,
    /// no test reaches it
    Unreached,
    /// does not compile
    Unviable,
    /// can't be switched at run time
    Fixed,
}

impl Outcome {
    /// Whether no test distinguished it from the original.
    pub(crate) fn is_alive(self) -> bool {
        matches!(self, Self::Survived | Self::Unreached)
    }
}

/// The outcome of one mutant, with details.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// cargo-mutants' name: position and change.
    pub name: String,
    pub file: String,
    pub function: String,
    /// The source line on which it begins, trimmed.
    pub line: String,
    /// The change without its position and function.
    pub change: String,
    pub outcome: Outcome,
    /// The test that failed.
    #[serde(default)]
    pub by: String,
    /// Tests run, and tests left when the budget was spent.
    #[serde(default)]
    pub tests: usize,
    #[serde(default)]
    pub left: usize,
    #[serde(default)]
    pub seconds: f64,
}

impl Verdict {
    /// A verdict before any test has run.
    pub(crate) fn new(mutant: &Mutant, outcome: Outcome) -> Self {
        let function = mutant.function.as_ref().map_or("", |f| f.function_name.as_str());
        let change = mutant.name.splitn(4, ':').nth(3).unwrap_or_default().trim();
        let change = change.strip_suffix(&format!(" in {function}")).unwrap_or(change);
        Self {
            name: mutant.name.clone(),
            file: mutant.file.clone(),
            function: function.to_owned(),
            line: mutant.text.clone(),
            change: change.to_owned(),
            outcome,
            by: String::new(),
            tests: 0,
            left: 0,
            seconds: 0.0,
        }
    }
}
