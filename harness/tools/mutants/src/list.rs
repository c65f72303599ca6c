//! The mutants, as cargo-mutants lists them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// A position in a source file: lines and columns from 1, columns in characters.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub line: usize,
    pub column: usize,
}

/// From the first character to one past the last.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Span {
    pub start: Place,
    pub end: Place,
}

/// The function that contains a mutant.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Function {
    pub function_name: String,
    pub return_type: String,
}

/// One change of the source.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Mutant {
    /// From 1; 0 means no mutant.
    #[serde(skip)]
    pub id: u32,
    /// The source line on which it begins, trimmed.
    #[serde(skip)]
    pub text: String,
    pub file: String,
    pub function: Option<Function>,
    pub genre: String,
    pub name: String,
    pub replacement: String,
    pub span: Span,
}

/// The mutants of the files and folders `wanted`, numbered from 1 in the order of cargo-mutants.
///
/// # Errors
/// When cargo-mutants is not installed, or fails.
pub(crate) fn mutants(root: &Path, wanted: &[String]) -> Result<Vec<Mutant>> {
    let output = Command::new("cargo")
        .args(["mutants", "--list", "--json", "--dir"])
        .arg(root)
        .output()
        .context("cargo mutants")?;
    if !output.status.success() {
        bail!(
            "cargo mutants --list failed (install it with `cargo install cargo-mutants --locked`): {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let all: Vec<Mutant> = serde_json::from_slice(&output.stdout).context("the list of cargo mutants")?;
    let mut mutants: Vec<_> = all
        .into_iter()
        .filter(|m| wanted.iter().any(|w| Path::new(&m.file).starts_with(w)))
        .collect();
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    for (mutant, id) in mutants.iter_mut().zip(1..) {
        mutant.id = id;
        if !sources.contains_key(&mutant.file) {
            let source =
                std::fs::read_to_string(root.join(&mutant.file)).with_context(|| mutant.file.clone())?;
            sources.insert(mutant.file.clone(), source);
        }
        let line = sources[&mutant.file].lines().nth(mutant.span.start.line - 1);
        line.unwrap_or_default().trim().clone_into(&mut mutant.text);
    }
    if mutants.is_empty() {
        bail!("no mutants in {}", wanted.join(", "));
    }
    Ok(mutants)
}
