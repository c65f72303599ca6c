//! The quantizer's host code for CUDA, run without a GPU: `kernels/shim/driver.cpp` stands in for the driver,
//! NVRTC and cuBLAS, and runs the kernels on the CPU. Every operation is compared with the reference by the
//! check, with guard bytes around all buffers. Without a C++ compiler the test says so and is waived.

use std::path::Path;
use std::process::Command;

use aqlm_check::{CrossOptions, Cuda, Machines, Outcome, cross_check};

/// Set in the process that has the stand-in on its library path.
const INSIDE: &str = "AQLM_TEST_STAND_IN";

/// Small cases of every operation, chosen so that each kernel runs.
const CASES: [&str; 12] = [
    "kmeans-5x8-k32-outliers-s2",
    "residual_init-2x4g4o2-64x32-equalrows-s3",
    "em_init-2x3g8-40x32-outliers-ill-s4",
    "feedback_init-2x3g4-9x16-dyadic-white-b1-s7",
    "feedback_init-3x3g4o2-20x24-outliers-ill-b3-s4",
    "beam_search-2x3g4-9x16-dyadic-white-b1-single-s5",
    "beam_search-2x3g4-9x16-dyadic-white-b4-single-s6",
    "beam_search-2x3g4-9x16-dyadic-white-b1-pairs-s5",
    "beam_search-3x3g4o2-20x24-outliers-ill-b2-pairs-s14",
    "codebook_update-2x3g4o2-40x32-outliers-correlated-adam-s3",
    "codebook_update-1x3g8-33x8-equalrows-white-closed-s966",
    "layer_quantize-1x1g4-1x4-dyadic-white-b1-single-closed-residual-s6",
];

#[test]
#[ignore = "takes minutes: every kernel is compiled and run thread by thread"]
fn every_step_equals_the_reference_on_the_stand_in() {
    if std::env::var_os(INSIDE).is_some() {
        check_cases();
        return;
    }
    let folder = std::env::temp_dir().join(format!("aqlm-stand-in-{}", std::process::id()));
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
    let ran = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "every_step_equals_the_reference_on_the_stand_in",
            "--nocapture",
            "--ignored",
        ])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", &folder)
        .env("AQLM_KERNEL_CACHE", folder.join("kernels"))
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

fn check_cases() {
    let machines = vec![Machines {
        backend: "cuda",
        subjects: Cuda::first().map(|cuda| vec![cuda]),
    }];
    for case in CASES {
        let options = CrossOptions::of_case(case.parse().unwrap(), machines.clone());
        let report = cross_check(&options, &mut |_| ()).unwrap();
        for row in &report.report.rows {
            assert!(matches!(row.outcome, Outcome::Pass), "{row:?}");
        }
    }
}
