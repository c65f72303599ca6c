//! Which mutants compile: checks the instrumented tree and removes mutants with errors until none is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::list::Mutant;
use crate::schemata::{self, Instrumented};
use crate::tree;
use crate::verdict::{Outcome, Verdict};

/// The outcome of instrumenting, by mutant number.
pub(crate) struct Instrumentation {
    /// Contained in the instrumented tree and switchable.
    pub switched: BTreeSet<u32>,
    /// Do not compile.
    pub unviable: BTreeSet<u32>,
    /// Changes of constants and of anything else that can't change while a program runs. These need
    /// cargo-mutants itself.
    pub fixed: BTreeSet<u32>,
}

/// Maximum number of checks. Errors of a later compiler stage appear only once there are none of an earlier
/// stage.
const ROUNDS: usize = 40;

/// Inserts `mutants` into the `copy` of the tree and removes those that do not compile, starting with those
/// that did not compile in an `earlier` run. Files with the same result need no new build.
///
/// # Errors
/// When a compiler error is not in any mutant: the tree itself does not compile.
pub(crate) fn instrument(
    root: &Path,
    copy: &Path,
    mutants: &[Mutant],
    earlier: &BTreeMap<String, Verdict>,
) -> Result<Instrumentation> {
    let mut by_file: BTreeMap<&str, Vec<&Mutant>> = BTreeMap::new();
    for mutant in mutants {
        by_file.entry(&mutant.file).or_default().push(mutant);
    }
    let crates: BTreeSet<&str> = by_file.keys().filter_map(|f| f.split('/').next()).collect();
    let packages: BTreeSet<_> = crates.iter().map(|c| format!("aqlm-{c}")).collect();
    let roots: BTreeSet<_> = crates.iter().map(|c| format!("{c}/src/lib.rs")).collect();
    let ours: BTreeSet<_> = by_file
        .keys()
        .map(|f| (*f).to_owned())
        .chain(roots.iter().cloned())
        .chain(crates.iter().map(|c| format!("{c}/src/mutant.rs")))
        .collect();
    std::fs::create_dir_all(copy).with_context(|| format!("{}", copy.display()))?;
    tree::copy(root, copy, &ours)?;
    for one in &crates {
        tree::write_changed(&copy.join(one).join("src/mutant.rs"), schemata::SWITCH.as_bytes())?;
    }

    let (mut unviable, mut stuck) = (BTreeSet::<u32>::new(), BTreeSet::<u32>::new());
    for mutant in mutants {
        match earlier.get(&mutant.name) {
            // the name contains the position; the line confirms that it is the same code
            Some(v) if v.line == mutant.text && v.outcome == Outcome::Unviable => unviable.insert(mutant.id),
            Some(v) if v.line == mutant.text && v.outcome == Outcome::Fixed => stuck.insert(mutant.id),
            _ => false,
        };
    }
    for round in 1..=ROUNDS {
        let mut files: BTreeMap<String, Instrumented> = BTreeMap::new();
        for name in ours.iter().filter(|n| !n.ends_with("/mutant.rs")) {
            let source = std::fs::read_to_string(root.join(name)).with_context(|| name.clone())?;
            let kept: Vec<_> = by_file
                .get(name.as_str())
                .map_or(&[][..], Vec::as_slice)
                .iter()
                .copied()
                .filter(|m| !unviable.contains(&m.id) && !stuck.contains(&m.id))
                .collect();
            let mut file = schemata::instrument(&source, &kept).with_context(|| name.clone())?;
            if roots.contains(name) {
                file.text.push_str("\nmod mutant;\n");
            }
            tree::write_changed(&copy.join(name), file.text.as_bytes())?;
            files.insert(name.clone(), file);
        }
        let errors = check(copy, &packages)?;
        if errors.is_empty() {
            let switched: BTreeSet<_> = files.values().flat_map(|f| f.switched.iter().copied()).collect();
            let fixed = mutants
                .iter()
                .map(|m| m.id)
                .filter(|id| !switched.contains(id) && !unviable.contains(id))
                .collect();
            return Ok(Instrumentation {
                switched,
                unviable,
                fixed,
            });
        }
        println!("round {round}: {} errors", errors.len());
        for error in &errors {
            let layout = files.get(&error.file).map(|f| &f.layout);
            let within = |range: &std::ops::Range<usize>| {
                range.start <= error.at && error.at < range.end.max(range.start + 1)
            };
            let alternative = layout.and_then(|l| {
                l.alternatives
                    .iter()
                    .filter(|a| within(&a.0))
                    .min_by_key(|a| a.0.len())
            });
            let site = layout.and_then(|l| l.sites.iter().filter(|s| within(&s.0)).min_by_key(|s| s.0.len()));
            if let Some((_, id)) = alternative {
                unviable.insert(*id);
            } else if let Some((_, ids)) = site {
                stuck.extend(ids);
            } else {
                bail!("{}: {}: not in a mutant", error.file, error.message);
            }
        }
    }
    bail!("mutants still do not compile after {ROUNDS} rounds")
}

struct CompileError {
    file: String,
    at: usize,
    message: String,
}

/// The errors of `cargo check`, at their first position.
fn check(copy: &Path, packages: &BTreeSet<String>) -> Result<Vec<CompileError>> {
    let output = Command::new("cargo")
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", copy.join("target"))
        .args(["check", "--quiet", "--message-format=json"])
        .args(packages.iter().flat_map(|p| ["-p", p]))
        .output()
        .context("cargo check")?;
    let mut errors = Vec::new();
    for line in output.stdout.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        let document: serde_json::Value = serde_json::from_slice(line).context("a message of cargo check")?;
        let message = &document["message"];
        if document["reason"] != "compiler-message" || message["level"] != "error" {
            continue;
        }
        let spans = message["spans"].as_array().map_or(&[][..], Vec::as_slice);
        let Some(primary) = spans.iter().find(|s| s["is_primary"] == true) else {
            continue;
        };
        errors.push(CompileError {
            file: primary["file_name"].as_str().unwrap_or_default().to_owned(),
            at: primary["byte_start"].as_u64().unwrap_or_default() as usize,
            message: message["rendered"].as_str().unwrap_or_default().to_owned(),
        });
    }
    if errors.is_empty() && !output.status.success() {
        bail!("cargo check: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(errors)
}
