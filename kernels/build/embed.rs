//! Compiles every variant of embedded.json with nvcc into the crate, for machines that have only the driver.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::folder::kernel::Kernel;
use crate::folder::out_folder;

/// Machine code for these generations (code for 8.0 also runs on 8.6 and 8.9), and intermediate code for
/// newer ones.
const FROM_80: &[&str] = &[
    "arch=compute_80,code=sm_80",
    "arch=compute_90,code=sm_90",
    "arch=compute_90,code=compute_90",
];
const FROM_90: &[&str] = &["arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"];
const ONLY_90: &[&str] = &["arch=compute_90a,code=sm_90a"];

/// One kernel with its constants, as `NAME=VALUE` with spaces between them.
struct Variant {
    kernel: String,
    defines: String,
    source: PathBuf,
    generations: &'static [&'static str],
}

/// Compiles all variants and writes the list that the crate includes.
pub(crate) fn embed(kernels: &[Kernel]) -> Result<(), String> {
    println!("cargo::rerun-if-changed=embedded.json");
    for name in ["AQLM_NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let nvcc = nvcc()?;
    let out = out_folder()?;
    let variants = variants(kernels)?;
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(variant) = variants.get(number) else {
                        break;
                    };
                    if let Err(reason) = compile(&nvcc, variant, &out.join(format!("{number}.fatbin"))) {
                        failures
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .push(reason);
                    }
                }
            });
        }
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(first) = failures.first() {
        return Err(format!(
            "{} of {} kernels: {first}",
            failures.len(),
            variants.len()
        ));
    }
    let mut list = String::from("&[\n");
    for (number, variant) in variants.iter().enumerate() {
        let file = out.join(format!("{number}.fatbin"));
        let file = file
            .to_str()
            .ok_or_else(|| format!("{}: expected a path in UTF-8", file.display()))?;
        let _ = writeln!(
            list,
            "    ({:?}, {:?}, include_bytes!({:?}).as_slice()),",
            variant.kernel, variant.defines, file
        );
    }
    list.push_str("]\n");
    std::fs::write(out.join("embedded.rs"), list).map_err(|error| format!("writing embedded.rs: {error}"))
}

/// The first nvcc that runs: `AQLM_NVCC`, the toolkit's folder, the path.
fn nvcc() -> Result<PathBuf, String> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let candidates: Vec<PathBuf> = [
        variable("AQLM_NVCC"),
        variable("CUDA_HOME").map(|folder| folder.join("bin/nvcc")),
        variable("CUDA_PATH").map(|folder| folder.join("bin/nvcc")),
        Some("nvcc".into()),
    ]
    .into_iter()
    .flatten()
    .collect();
    candidates
        .iter()
        .find(|nvcc| Command::new(nvcc).arg("--version").output().is_ok_and(|output| output.status.success()))
        .cloned()
        .ok_or_else(|| {
            format!(
                "no nvcc answers, tried {candidates:?}; set AQLM_NVCC to one, or CUDA_HOME to a toolkit (kernels/requirements-nvcc.txt installs one)"
            )
        })
}

fn variants(kernels: &[Kernel]) -> Result<Vec<Variant>, String> {
    let text = std::fs::read_to_string("embedded.json").map_err(|error| format!("embedded.json: {error}"))?;
    let list: BTreeMap<String, Vec<String>> =
        serde_json::from_str(&text).map_err(|error| format!("embedded.json: {error}"))?;
    let mut variants = Vec::new();
    for (id, all) in list {
        let kernel = kernels
            .iter()
            .find(|kernel| kernel.id == id)
            .ok_or_else(|| format!("embedded.json: there is no kernel {id}"))?;
        let generations = match (kernel.min_compute, kernel.max_compute) {
            (_, Some(90)) => ONLY_90,
            (90, None) => FROM_90,
            (80, None) => FROM_80,
            other => return Err(format!("{id}: architectures {other:?}")),
        };
        for defines in all {
            // Splitting a context needs clusters, which exist from 9.0 on.
            let split = defines
                .split(' ')
                .any(|define| define.starts_with("AQLM_SPLITS=") && define != "AQLM_SPLITS=1");
            variants.push(Variant {
                kernel: id.clone(),
                defines,
                source: kernel.file.clone().into(),
                generations: if split { FROM_90 } else { generations },
            });
        }
    }
    Ok(variants)
}

fn compile(nvcc: &Path, variant: &Variant, output: &Path) -> Result<(), String> {
    let compiled = Command::new(nvcc)
        .args(["-std=c++17", "-fatbin", "-o"])
        .arg(output)
        .args(variant.generations.iter().map(|code| format!("-gencode={code}")))
        .args(
            variant
                .defines
                .split_whitespace()
                .map(|define| format!("-D{define}")),
        )
        .arg(&variant.source)
        .output()
        .map_err(|error| format!("{}: {error}", nvcc.display()))?;
    if compiled.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&compiled.stderr);
    let first = log.lines().find(|line| line.contains("error")).unwrap_or(&log);
    Err(format!("{} {}: {first}", variant.kernel, variant.defines))
}
