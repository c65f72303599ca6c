//! The copy of the tree into which mutants are inserted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The repository's root.
pub(crate) fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../..")
        .canonicalize()
        .context("the repository")
}

/// Makes `copy` equal to the files that git tracks or would add, except `besides`, which are left unchanged.
/// A file that is already equal keeps its timestamp, so that a second build has less to do.
pub(crate) fn copy(root: &Path, copy: &Path, besides: &BTreeSet<String>) -> Result<()> {
    let listed = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("git ls-files")?;
    if !listed.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    }
    let mut kept = besides.clone();
    for name in listed.stdout.split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let name = std::str::from_utf8(name).context("a file name that is not UTF-8")?;
        let from = root.join(name);
        if from.is_file() && kept.insert(name.to_owned()) {
            let bytes = std::fs::read(&from).with_context(|| name.to_owned())?;
            write_changed(&copy.join(name), &bytes)?;
        }
    }
    remove_others(copy, copy, &kept)
}

/// Removes files left by an earlier copy, except build outputs.
fn remove_others(copy: &Path, folder: &Path, kept: &BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        let name = path
            .strip_prefix(copy)
            .unwrap_or(&path)
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            if name != "target" {
                remove_others(copy, &path, kept)?;
            }
        } else if !kept.contains(&name) {
            std::fs::remove_file(&path).with_context(|| format!("{}", path.display()))?;
        }
    }
    Ok(())
}

/// Writes a file if its contents differ.
pub(crate) fn write_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    }
    std::fs::write(path, bytes).with_context(|| format!("{}", path.display()))
}
