//! Shared by the tests of the program: starting it, reading its output, its model and texts.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub(crate) const MODEL: &str = "tiny-stories-4m";

/// Arguments of the quickest possible quantization: one round, few tokens.
pub(crate) const QUICK: [&str; 14] = [
    "--scheme",
    "1x4g8",
    "--seqlen",
    "32",
    "--sequences",
    "6",
    "--validation",
    "2",
    "--max-rounds",
    "1",
    "--beam",
    "1",
    "--init",
    "residual",
];

/// Arguments of a quick quantization with one epoch of fine-tuning.
pub(crate) fn quantization<'a>(calibration: &'a Path, out: &'a Path, extra: &[&'a str]) -> Vec<&'a str> {
    let paths = [calibration, out].map(|path| path.to_str().unwrap());
    let mut arguments = vec!["quantize", MODEL, "--calib", paths[0], "--out", paths[1]];
    arguments.extend(["--finetune-epochs", "1", "--json"]);
    arguments.extend(QUICK);
    arguments.extend(extra);
    arguments
}

pub(crate) fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/tiny-stories-4m")
        .join(file)
}

pub(crate) fn aqlm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aqlm"))
        .args(arguments)
        // Help is as wide as the terminal; without COLUMNS, as wide as without a terminal.
        .env_remove("COLUMNS")
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

/// Runs a command that must be rejected: exit code 2, nothing on standard output, and an error message with
/// all the given words.
pub(crate) fn refused(arguments: &[&str], words: &[&str]) {
    let output = aqlm(arguments);
    let message = message(&output);
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
    first_documents(folder, "eval.jsonl", documents)
}

/// The first documents of one of the embedded model's texts.
pub(crate) fn first_documents(folder: &Path, file: &str, documents: usize) -> PathBuf {
    let text = std::fs::read_to_string(golden(file)).unwrap();
    let lines: Vec<&str> = text.lines().take(documents).collect();
    let path = folder.join(format!("first-{documents}-{file}"));
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

/// The messages that a command printed besides its result.
pub(crate) fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn model_bytes(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).expect("a finished model")
}
