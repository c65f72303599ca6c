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
    (
        "matmul/k1_naive",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_OUT_G=1",
        &[80, 90],
    ),
    // In the configurations that the H100's measurements prefer, for 16, 32, 64 and 128 rows of x.
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_ROW_WARPS=1 -DAQLM_TILES=11 -DAQLM_SLICES=8 -DAQLM_BATCH_TILES=1",
        &[80, 90],
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_ROW_WARPS=1 -DAQLM_TILES=11 -DAQLM_SLICES=8 -DAQLM_BATCH_TILES=2",
        &[80, 90],
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_ROW_WARPS=4 -DAQLM_TILES=6 -DAQLM_SLICES=2 -DAQLM_BATCH_TILES=4",
        &[80, 90],
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=8 -DAQLM_REPLICAS=0 -DAQLM_ROW_WARPS=1 -DAQLM_TILES=11 -DAQLM_SLICES=8 -DAQLM_BATCH_TILES=1",
        &[80, 90],
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=16 -DAQLM_REPLICAS=0 -DAQLM_ROW_WARPS=4 -DAQLM_TILES=3 -DAQLM_SLICES=2 -DAQLM_BATCH_TILES=8",
        &[80, 90],
    ),
    (
        "matmul/k2_fused_tensor",
        "-DAQLM_M=2 -DAQLM_B=12 -DAQLM_G=8 -DAQLM_REPLICAS=1 -DAQLM_ROW_WARPS=2 -DAQLM_TILES=4 -DAQLM_SLICES=4 -DAQLM_BATCH_TILES=1",
        &[80, 90],
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=2 -DAQLM_BATCH=16 -DAQLM_SPREAD=0",
        &[90],
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=2 -DAQLM_BATCH=128 -DAQLM_SPREAD=0",
        &[90],
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8 -DAQLM_WARPGROUPS=2 -DAQLM_SLICES=1 -DAQLM_CLUSTER=1 -DAQLM_BATCH=256 -DAQLM_SPREAD=0",
        &[90],
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=8 -DAQLM_REPLICAS=0 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=8 -DAQLM_BATCH=16 -DAQLM_SPREAD=4",
        &[90],
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=8 -DAQLM_REPLICAS=0 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=8 -DAQLM_BATCH=128 -DAQLM_SPREAD=4",
        &[90],
    ),
    (
        "matmul/k3_warpgroup",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=16 -DAQLM_REPLICAS=0 -DAQLM_WARPGROUPS=3 -DAQLM_SLICES=2 -DAQLM_CLUSTER=2 -DAQLM_BATCH=128 -DAQLM_SPREAD=0",
        &[90],
    ),
    (
        "decode/k1_naive",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_OUT_G=1",
        &[80, 90],
    ),
    (
        "decode/k2_tiles",
        "-DAQLM_M=2 -DAQLM_B=8 -DAQLM_G=8 -DAQLM_REPLICAS=8",
        &[80, 90],
    ),
    (
        "decode/k2_tiles",
        "-DAQLM_M=1 -DAQLM_B=16 -DAQLM_G=16 -DAQLM_REPLICAS=0",
        &[80, 90],
    ),
    (
        "matvec/k3_lookup_table",
        "-DAQLM_M=2 -DAQLM_G=8 -DAQLM_PARTS=3",
        &[90],
    ),
    (
        "matvec/k4_sliced_codebook",
        "-DAQLM_B=16 -DAQLM_G=8 -DAQLM_PARTS=2",
        &[90],
    ),
    ("embed/k1_rows", "-DNOTHING", &[80, 90]),
    (
        "rms_norm/k1_block_a_row",
        "-DAQLM_WIDTH=4096 -DAQLM_VECTOR=4 -DAQLM_THREADS=1024 -DAQLM_DELTA=1 -DAQLM_BIAS=0",
        &[80, 90],
    ),
    (
        "rms_norm/k1_block_a_row",
        "-DAQLM_WIDTH=33 -DAQLM_VECTOR=1 -DAQLM_THREADS=64 -DAQLM_DELTA=1 -DAQLM_BIAS=1",
        &[80, 90],
    ),
    (
        "rope/k1_pairs",
        "-DAQLM_HEAD=128 -DAQLM_PADDED=128 -DAQLM_BIAS=1",
        &[80, 90],
    ),
    (
        "attention/k1_warp_a_query",
        "-DAQLM_HEAD=128 -DAQLM_PADDED=128",
        &[80, 90],
    ),
    (
        "attention_step/k1_split_context",
        "-DAQLM_HEAD=128 -DAQLM_LANES=16 -DAQLM_QUERIES=1 -DAQLM_SPLITS=8 -DAQLM_BIAS=0",
        &[90],
    ),
    (
        "attention_step/k1_split_context",
        "-DAQLM_HEAD=128 -DAQLM_LANES=16 -DAQLM_QUERIES=4 -DAQLM_SPLITS=1 -DAQLM_BIAS=1",
        &[80, 90],
    ),
    ("swiglu/k1_elementwise", "-DAQLM_BIAS=1", &[80, 90]),
    ("dense/k1_warp_a_row", "-DAQLM_VECTOR=8 -DAQLM_WIDE=1", &[80, 90]),
    ("dense/k1_warp_a_row", "-DAQLM_VECTOR=1 -DAQLM_WIDE=0", &[80, 90]),
    ("argmax/k1_one_block", "-DNOTHING", &[80, 90]),
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
            // As at run time: wgmma needs the name with an a.
            let suffix = if *architecture == 90 { "a" } else { "" };
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
                    "-gencode=arch=compute_{architecture}{suffix},code=sm_{architecture}{suffix}"
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
