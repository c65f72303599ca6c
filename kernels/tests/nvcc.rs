//! Every kernel compiles with nvcc for every scheme that has a fast path, and spills no register. Needs nvcc but no GPU; without nvcc
//! (`AQLM_NVCC`, or `nvcc` on the path) the test says so and is waived.

use std::path::Path;
use std::process::Command;

const CASES: &[(&str, &str, &[u32])] = &[
    (
        "matvec/k1_naive",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_OUT_G=1",
        &[80, 90],
    ),
    (
        "matvec/k1_naive",
        "-DAQLM_M=3 -DAQLM_B=5 -DAQLM_G=4 -DAQLM_OUT_G=2",
        &[80, 90],
    ),
    (
        "matvec/k2_shared_codebook",
        "-DAQLM_M=1 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_UNIT=4",
        &[80, 90],
    ),
    (
        "matvec/k2_shared_codebook",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_UNIT=2",
        &[80, 90],
    ),
    (
        "matvec/k2_shared_codebook",
        "-DAQLM_M=2 -DAQLM_B=12 -DAQLM_G=8 -DAQLM_REPLICAS=1 -DAQLM_UNIT=4",
        &[80, 90],
    ),
    (
        "matvec/k2_shared_codebook",
        "-DAQLM_M=1 -DAQLM_B=12 -DAQLM_G=8 -DAQLM_REPLICAS=1 -DAQLM_UNIT=8",
        &[80, 90],
    ),
    ("matvec/k3_lookup_table", "-DAQLM_M=1 -DAQLM_G=8", &[90]),
    ("matvec/k3_lookup_table", "-DAQLM_M=2 -DAQLM_G=8", &[90]),
    ("matvec/k3_lookup_table", "-DAQLM_M=3 -DAQLM_G=8", &[90]),
    ("matvec/k3_lookup_table", "-DAQLM_M=4 -DAQLM_G=8", &[90]),
    ("matvec/k3_lookup_table", "-DAQLM_M=1 -DAQLM_G=16", &[90]),
    ("matvec/k4_sliced_codebook", "-DAQLM_B=16 -DAQLM_G=8", &[90]),
    ("matvec/k4_sliced_codebook", "-DAQLM_B=15 -DAQLM_G=8", &[90]),
    ("matvec/k4_sliced_codebook", "-DAQLM_B=16 -DAQLM_G=16", &[90]),
];

#[test]
fn every_kernel_compiles_without_spills() {
    let nvcc = std::env::var("AQLM_NVCC").unwrap_or_else(|_| "nvcc".into());
    if Command::new(&nvcc).arg("--version").output().is_err() {
        println!("waived: no nvcc");
        return;
    }
    let folder = std::env::temp_dir().join(format!("aqlm-nvcc-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for kernel in aqlm_kernels::kernels() {
        assert!(
            CASES.iter().any(|(id, ..)| *id == kernel.id),
            "{} is never compiled",
            kernel.id
        );
    }
    for (id, defines, architectures) in CASES {
        let kernel = aqlm_kernels::kernel(id).unwrap();
        for architecture in *architectures {
            assert!(*architecture >= kernel.min_compute);
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(&kernel.file);
            let output = Command::new(&nvcc)
                .args([
                    "-std=c++17",
                    "-cubin",
                    "-Xptxas",
                    "-v",
                    "-Werror",
                    "all-warnings",
                    "-o",
                ])
                .arg(folder.join("k.cubin"))
                .arg(format!(
                    "-gencode=arch=compute_{architecture},code=sm_{architecture}"
                ))
                .args(defines.split(' '))
                .arg(source)
                .output()
                .unwrap();
            let log = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success(),
                "{id} {defines} sm_{architecture}:\n{log}"
            );
            assert!(
                log.contains(" 0 bytes spill stores, 0 bytes spill loads"),
                "{id} {defines} sm_{architecture}:\n{log}"
            );
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}
