//! The arrows of the architecture (docs/architecture.md): which crate may use which, and how much of it.
//!
//! `optimized` is checked against `reference`, so the two must be independent implementations: of `reference` the
//! optimized crate may see the shared vocabulary and nothing else. Cargo can't express that, so this test reads the
//! sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates of the workspace and the workspace crates that each may depend on, in any kind of dependency.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("aqlm-reference", &[]),
    ("aqlm-kernels", &[]),
    ("aqlm-optimized", &["aqlm-reference", "aqlm-kernels"]),
    (
        "aqlm-harness",
        &["aqlm-reference", "aqlm-optimized", "aqlm-kernels"],
    ),
    (
        "aqlm-benches",
        &["aqlm-reference", "aqlm-optimized", "aqlm-kernels", "aqlm-harness"],
    ),
    ("aqlm-mutants", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Dependencies that `ALLOWED` doesn't have, as `A -> B`, out of the document that `cargo metadata` prints.
fn forbidden_dependencies(metadata: &serde_json::Value) -> Vec<String> {
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name");
        let Some(targets) = allowed.get(name) else {
            found.push(format!("{name} is not in the table of arrows"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let target = dependency["name"].as_str().expect("name");
            if allowed.contains_key(target) && !targets.contains(&target) {
                found.push(format!("{name} -> {target}"));
            }
            // The source scan below looks for the crate by its own name.
            if allowed.contains_key(target) && !dependency["rename"].is_null() {
                found.push(format!("{name} renames {target}"));
            }
        }
    }
    found
}

/// The words and punctuation of Rust source without comments, strings and characters.
///
/// Only as exact as the scan for paths needs: identifiers whole, `::` as one token, anything else a character each.
fn tokens(source: &str) -> Vec<String> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = Vec::new();
    let mut i = 0;
    while i < text.len() {
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < text.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 1;
                i += 2;
                while i < text.len() && depth > 0 {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                }
            }
            '"' => i = after_string(&text, i),
            // A raw string: r"…", r#"…"#, br#"…"#.
            'r' if (at(i + 1) == '"' || at(i + 1) == '#') && raw_string_end(&text, i + 1).is_some() => {
                i = raw_string_end(&text, i + 1).unwrap_or(text.len());
            }
            // A character, unless it is a lifetime: 'x' or an escape.
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < text.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            c if is_word(c) => {
                let start = i;
                while i < text.len() && is_word(at(i)) {
                    i += 1;
                }
                // The prefix of a byte or C string is no word of its own.
                if !(matches!(at(i), '"') && i - start <= 2) {
                    out.push(text[start..i].iter().collect());
                }
            }
            ':' if at(i + 1) == ':' => {
                out.push("::".into());
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    out.push(c.into());
                }
                i += 1;
            }
        }
    }
    out
}

/// The position after the string literal that starts at `start`.
fn after_string(text: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < text.len() && text[i] != '"' {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The position after a raw string whose hashes (or quote) start at `start`; `None` when it is a raw identifier.
fn raw_string_end(text: &[char], start: usize) -> Option<usize> {
    let hashes = text[start..].iter().take_while(|&&c| c == '#').count();
    if text.get(start + hashes) != Some(&'"') {
        return None;
    }
    let mut i = start + hashes + 1;
    while i < text.len() {
        if text[i] == '"' && text[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes {
            return Some(i + 1 + hashes);
        }
        i += 1;
    }
    Some(text.len())
}

/// Every use of the module or crate `base` that reaches something other than `base::only`, as source text.
///
/// A group `base::{a, b::c}` is looked into; renaming `base` itself, importing all of it or naming it without a path
/// counts as reaching the rest.
fn paths_outside(source: &str, base: &str, only: &str) -> Vec<String> {
    let tokens = tokens(source);
    let word = |i: usize| tokens.get(i).map_or("", String::as_str);
    let mut found = Vec::new();
    for i in (0..tokens.len()).filter(|&i| tokens[i] == base) {
        // `pub(crate)` is a visibility, not a path.
        if word(i.wrapping_sub(1)) == "(" && word(i.wrapping_sub(2)) == "pub" {
            continue;
        }
        if word(i + 1) != "::" {
            found.push(format!("{base} {}", word(i + 1)));
        } else if word(i + 2) != "{" {
            if word(i + 2) != only {
                found.push(format!("{base}::{}", word(i + 2)));
            }
        } else {
            let mut depth = 1;
            let mut first = true;
            let mut j = i + 3;
            while j < tokens.len() && depth > 0 {
                match word(j) {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    "," if depth == 1 => first = true,
                    item if first && depth == 1 => {
                        first = false;
                        if item != only {
                            found.push(format!("{base}::{item}"));
                        }
                    }
                    _ => {}
                }
                j += 1;
            }
        }
    }
    found
}

/// All Rust files under a folder, which may be a single file or absent.
fn rust_files(path: &Path) -> BTreeSet<PathBuf> {
    if path.is_file() {
        return BTreeSet::from([path.to_path_buf()]);
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return BTreeSet::new();
    };
    entries
        .map(|entry| entry.expect("readable folder").path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|e| e == "rs"))
        .flat_map(|path| rust_files(&path))
        .collect()
}

/// `paths_outside` over files, each finding with its file.
fn findings(files: &BTreeSet<PathBuf>, base: &str, only: &str) -> Vec<String> {
    assert!(
        !files.is_empty(),
        "no sources found: the test looks in the wrong place"
    );
    let mut found = Vec::new();
    for file in files {
        let source = std::fs::read_to_string(file).expect("readable source");
        for path in paths_outside(&source, base, only) {
            found.push(format!("{}: {path}", file.display()));
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
fn optimized_uses_only_the_vocabulary_of_the_reference() {
    // Its library and build script with their unit tests. `optimized/tests` may compare with the reference.
    let mut files = rust_files(&root().join("optimized/src"));
    files.extend(rust_files(&root().join("optimized/build.rs")));
    assert_eq!(
        findings(&files, "aqlm_reference", "vocabulary"),
        Vec::<String>::new()
    );
}

#[test]
fn the_vocabulary_reaches_no_algorithm() {
    // Otherwise an algorithm of the reference could be had through the vocabulary.
    let files = rust_files(&root().join("reference/src/vocabulary"));
    assert_eq!(findings(&files, "crate", "vocabulary"), Vec::<String>::new());
    for file in &files {
        let source = std::fs::read_to_string(file).expect("readable source");
        let tokens = tokens(&source);
        // The vocabulary is one level deep, so two `super` in its files leave it, but for the tests inside them.
        let leaves = tokens
            .windows(5)
            .any(|w| w[0] == "super" && w[2] == "super" && w[4] == "super");
        assert!(!leaves, "{}: a path leaves the vocabulary", file.display());
    }
    let module = std::fs::read_to_string(root().join("reference/src/vocabulary/mod.rs")).expect("mod.rs");
    assert!(
        !tokens(&module).contains(&"super".to_string()),
        "mod.rs re-exports from outside the vocabulary"
    );
}

#[test]
fn the_scanner_sees_every_way_around() {
    let bad = [
        ("use aqlm_reference::beam_search;", "aqlm_reference::beam_search"),
        (
            "use aqlm_reference::{vocabulary::Scheme, decode};",
            "aqlm_reference::decode",
        ),
        (
            "use aqlm_reference::{vocabulary::{Scheme, Result}, hessian::{self}};",
            "aqlm_reference::hessian",
        ),
        ("use ::aqlm_reference::*;", "aqlm_reference::*"),
        ("use aqlm_reference as r;", "aqlm_reference as"),
        ("extern crate aqlm_reference;", "aqlm_reference ;"),
        (
            "let w = aqlm_reference\n    ::decode(q);",
            "aqlm_reference::decode",
        ),
        ("use {aqlm_reference, ndarray};", "aqlm_reference ,"),
        (
            "let c = '\"'; aqlm_reference::decode(\"a\")",
            "aqlm_reference::decode",
        ),
        (
            "let c = '\\''; aqlm_reference::decode(q) // '",
            "aqlm_reference::decode",
        ),
        (
            "fn f<'a>(x: &'a str) { r#type(); aqlm_reference::decode(x) }",
            "aqlm_reference::decode",
        ),
    ];
    for (source, expected) in bad {
        assert_eq!(
            paths_outside(source, "aqlm_reference", "vocabulary"),
            [expected],
            "{source}"
        );
    }
}

#[test]
fn the_scanner_passes_what_is_allowed() {
    let good = [
        "use aqlm_reference::vocabulary::{Scheme, Result};",
        "use aqlm_reference::vocabulary as words;",
        "use aqlm_reference::{vocabulary::Scheme, vocabulary::LayerKind};",
        "//! checked against `aqlm_reference::decode`\n/* aqlm_reference::x /* nested */ aqlm_reference::y */",
        "let s = \"aqlm_reference::decode\\\"\"; let r = r#\"aqlm_reference::\"x\"#;",
        "my_aqlm_reference::decode()",
    ];
    for source in good {
        assert_eq!(
            paths_outside(source, "aqlm_reference", "vocabulary"),
            Vec::<String>::new(),
            "{source}"
        );
    }
    assert_eq!(
        paths_outside(
            "pub(crate) fn f() {} use crate::vocabulary::X;",
            "crate",
            "vocabulary"
        ),
        Vec::<String>::new()
    );
}

#[test]
fn a_wrong_dependency_is_named() {
    let metadata = serde_json::json!({ "packages": [
        { "name": "aqlm-reference", "dependencies": [
            { "name": "ndarray", "rename": null }, { "name": "aqlm-optimized", "rename": null } ] },
        { "name": "aqlm-optimized", "dependencies": [ { "name": "aqlm-reference", "rename": "slow" } ] },
        { "name": "aqlm-extra", "dependencies": [] },
    ] });
    assert_eq!(
        forbidden_dependencies(&metadata),
        [
            "aqlm-reference -> aqlm-optimized",
            "aqlm-optimized renames aqlm-reference",
            "aqlm-extra is not in the table of arrows"
        ]
    );
}
