//! The arrows of the architecture (docs/architecture.md): which crate may use which.
//!
//! `optimized` is checked against `reference`, so the two must be independent implementations. Both see the
//! vocabulary, which computes nothing, and neither sees the other. Cargo rejects a path to an undeclared
//! dependency; this test rejects the declaration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A crate, the workspace crates that its library may depend on, and those that its tests may also use. Names
/// stand without the prefix `aqlm-`; `aqlm` itself depends on crates, no crate depends on it.
type Arrows = (&'static str, &'static str, &'static str);

/// From the bottom to the top: a crate depends only on crates above it in this table.
const ALLOWED: [Arrows; 10] = [
    ("aqlm-vocabulary", "", ""),
    ("aqlm-kernels", "", ""),
    ("aqlm-reference", "vocabulary", ""),
    ("aqlm-optimized", "vocabulary kernels", "reference check"),
    ("aqlm-formats", "vocabulary", ""),
    ("aqlm-engine", "vocabulary reference optimized formats", "check"),
    (
        "aqlm-check",
        "vocabulary reference optimized kernels formats engine",
        "",
    ),
    (
        "aqlm",
        "vocabulary reference optimized kernels formats engine check",
        "",
    ),
    (
        "aqlm-benches",
        "vocabulary reference optimized engine check",
        "formats",
    ),
    ("aqlm-mutants", "", ""),
];

/// The crates of a list in [`ALLOWED`].
fn names(list: &str) -> Vec<String> {
    list.split_whitespace()
        .map(|name| format!("aqlm-{name}"))
        .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Dependencies that are not in `ALLOWED`, as `A -> B`, from the output of `cargo metadata`.
fn forbidden_dependencies(metadata: &serde_json::Value) -> Vec<String> {
    let allowed: BTreeMap<_, _> = ALLOWED
        .into_iter()
        .map(|(name, library, tests)| (name, (names(library), names(tests))))
        .collect();
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name");
        let Some((library, tests)) = allowed.get(name) else {
            found.push(format!("{name} is not in the table of arrows"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let target = dependency["name"].as_str().expect("name");
            let only_tests = dependency["kind"].as_str() == Some("dev");
            let is_in = |names: &[String]| names.iter().any(|name| name == target);
            let is_allowed = is_in(library) || only_tests && is_in(tests);
            if allowed.contains_key(target) && !is_allowed {
                found.push(format!("{name} -> {target}"));
            }
        }
    }
    found
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().map_or(0, Vec::len);
    assert_eq!(packages, ALLOWED.len(), "a crate is missing from the workspace");
    assert_eq!(forbidden_dependencies(&metadata), Vec::<String>::new());
}

#[test]
fn the_table_of_arrows_runs_one_way() {
    for (at, (name, library, _)) in ALLOWED.iter().enumerate() {
        for target in names(library) {
            let position = ALLOWED.iter().position(|(other, ..)| *other == target);
            assert!(
                position.is_some_and(|position| position < at),
                "{name} -> {target}"
            );
        }
    }
}

#[test]
fn a_wrong_dependency_is_named() {
    let metadata = serde_json::json!({ "packages": [
        { "name": "aqlm-reference", "dependencies": [
            { "name": "ndarray", "kind": null }, { "name": "aqlm-optimized", "kind": "dev" } ] },
        { "name": "aqlm-optimized", "dependencies": [
            { "name": "aqlm-reference", "kind": "dev" }, { "name": "aqlm-reference", "kind": null } ] },
        { "name": "aqlm-extra", "dependencies": [] },
    ] });
    assert_eq!(
        forbidden_dependencies(&metadata),
        [
            "aqlm-reference -> aqlm-optimized",
            "aqlm-optimized -> aqlm-reference",
            "aqlm-extra is not in the table of arrows"
        ]
    );
}
