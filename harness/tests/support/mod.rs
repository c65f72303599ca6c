//! What the tests of the program share: starting it, reading its answers, its model and texts.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub(crate) const MODEL: &str = "tiny-stories-4m";

pub(crate) fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../golden/tiny-stories-4m")
        .join(file)
}

pub(crate) fn aqlm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aqlm"))
        .args(arguments)
        .output()
        .expect("the program starts")
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}\n{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// Runs a command that must be refused: exit code 2, nothing on standard output, a message with all the given words.
pub(crate) fn refused(arguments: &[&str], words: &[&str]) {
    let output = aqlm(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(
        output.stdout.is_empty(),
        "{arguments:?} printed {}",
        String::from_utf8_lossy(&output.stdout)
    );
    for word in words {
        assert!(
            message.contains(word),
            "{arguments:?}: expected {word:?} in {message:?}"
        );
    }
}

/// A short text: the first documents of the embedded model's evaluation stories.
pub(crate) fn short_text(folder: &Path, documents: usize) -> PathBuf {
    let text = std::fs::read_to_string(golden("eval.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().take(documents).collect();
    let path = folder.join(format!("short-{documents}.jsonl"));
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

pub(crate) fn model_bytes(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).expect("a finished model")
}
