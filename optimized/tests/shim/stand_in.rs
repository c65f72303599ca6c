//! Runs a test in a process of its own in which `kernels/shim/driver.cpp` stands in for the driver, NVRTC and
//! cuBLAS, so that host code for CUDA runs without a GPU.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::process::Command;

/// Set in the process that has the stand-in on its library path.
const INSIDE: &str = "AQLM_TEST_STAND_IN";

/// Calls `check` in the process with the stand-in; elsewhere starts it with the test `name`, which must call
/// this. Without a C++ compiler it says so and returns.
pub(crate) fn on_stand_in(name: &str, check: fn()) {
    on_stand_in_of("80", name, check);
}

/// [`on_stand_in`] of a device of compute capability 8.0 ("80") or 9.0 ("90"), which has clusters.
pub(crate) fn on_stand_in_of(compute: &str, name: &str, check: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        check();
        return;
    }
    let folder = std::env::temp_dir().join(format!("aqlm-stand-in-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/shim");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let library = folder.join("libcuda.so");
    let compiled = Command::new(compiler)
        .args(["-std=c++17", "-O2", "-w", "-shared", "-fPIC"])
        .arg(format!("-DAQLM_SHIM_FOLDER=\"{}\"", shim.display()))
        .arg("-o")
        .arg(&library)
        .arg(shim.join("driver.cpp"))
        .arg("-ldl")
        .output();
    let Ok(compiled) = compiled else {
        println!("waived: no C++ compiler");
        return;
    };
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    for other in ["libnvrtc.so", "libcublas.so"] {
        std::fs::copy(&library, folder.join(other)).unwrap();
    }
    let mut hasher = DefaultHasher::new();
    let sources = ["shim.h", "driver.cpp"].map(|file| std::fs::read(shim.join(file)).unwrap());
    sources.hash(&mut hasher);
    let kernels = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stand-in-{:016x}", hasher.finish()));
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .env("AQLM_STAND_IN_COMPUTE", compute)
        .env("LD_LIBRARY_PATH", &folder)
        // kept for later runs: an image's name has the hash of its source
        .env("AQLM_KERNEL_CACHE", kernels)
        .output()
        .unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(
        ran.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
}
