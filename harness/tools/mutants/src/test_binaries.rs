//! Builds the tests of the instrumented tree.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// One test program.
pub(crate) struct TestBinary {
    pub program: PathBuf,
    /// The folder of its package, in which cargo would run it.
    pub folder: PathBuf,
    /// Package and target, for display.
    pub name: String,
}

/// Builds the tests of `packages`.
///
/// # Errors
/// When they do not build.
pub(crate) fn build(copy: &Path, packages: &[String]) -> Result<Vec<TestBinary>> {
    let output = Command::new("cargo")
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", copy.join("target"))
        .args([
            "test",
            "--no-run",
            "--lib",
            "--bins",
            "--tests",
            "--message-format=json",
        ])
        .args(packages.iter().flat_map(|p| ["-p", p]))
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cargo test --no-run")?;
    if !output.status.success() {
        bail!("the tests of the instrumented tree do not build");
    }
    let mut found = Vec::new();
    for line in output.stdout.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        let message: serde_json::Value = serde_json::from_slice(line).context("a message of cargo test")?;
        let (Some(program), Some(manifest)) =
            (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        if message["profile"]["test"] != true {
            continue;
        }
        let folder = Path::new(manifest)
            .parent()
            .context("a manifest without a folder")?;
        found.push(TestBinary {
            program: program.into(),
            folder: folder.into(),
            name: format!(
                "{}::{}",
                folder.file_name().unwrap_or_default().to_string_lossy(),
                message["target"]["name"].as_str().unwrap_or_default()
            ),
        });
    }
    Ok(found)
}
