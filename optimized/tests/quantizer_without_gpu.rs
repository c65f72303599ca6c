//! The quantizer's host code for CUDA, run without a GPU: `kernels/shim/driver.cpp` stands in for the driver,
//! NVRTC and cuBLAS, and runs the kernels on the CPU. Every operation is compared with the reference by the
//! check, with guard bytes around all buffers. Without a C++ compiler the test says so and is waived.

#[path = "shim/stand_in.rs"]
mod stand_in;

use aqlm_check::{CrossOptions, Cuda, Machines, Outcome, cross_check};

/// Small cases of every operation, chosen so that each kernel runs.
const CASES: [&str; 14] = [
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
    "two_sided-2x3g4-9x16-dyadic-white-b1-single-s5",
    "gradient_sums-36x22-k2-q1-d8-n4-t5-w1-bias-plain-3x2g4-s5",
];

#[test]
#[ignore = "takes five minutes: every kernel is compiled and run thread by thread; docs/quantizer-cuda.md has the command"]
fn every_step_equals_the_reference_on_the_stand_in() {
    stand_in::on_stand_in("every_step_equals_the_reference_on_the_stand_in", check_cases);
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
