//! Calibration on CUDA, run without a GPU: `kernels/shim/driver.cpp` stands in for the driver, NVRTC and
//! cuBLAS, with guard bytes around all buffers. Without a C++ compiler the tests say so and are waived.

#[path = "shim/stand_in.rs"]
mod stand_in;

use aqlm_check::{CrossOptions, Cuda, Machines, cross_check};

/// Each of these ways of computing the cases is compared and within its limits. The stand-in has no products
/// in f16, so other ways may fail.
fn pass(cases: &[&str], ways: &[&str]) {
    let machines = vec![Machines {
        backend: "cuda",
        subjects: Cuda::first().map(|cuda| vec![cuda]),
    }];
    for case in cases {
        let options = CrossOptions::of_case(case.parse().unwrap(), machines.clone());
        let report = cross_check(&options, &mut |_| ()).unwrap();
        for way in ways {
            let rows = report.report.rows.iter().flat_map(|row| &row.comparisons);
            let own: Vec<_> = rows
                .filter(|comparison| comparison.what.starts_with(way))
                .collect();
            assert!(own.len() > 1, "{case} {way}: {:?}", report.report.rows);
            for comparison in own {
                assert!(comparison.value <= comparison.limit, "{case}: {comparison:?}");
            }
        }
    }
}

/// Both ways: products in f32, and samples rounded to bf16. The second case has more samples than one sum
/// takes in f32, the third a width that fills no tile.
#[test]
fn hessians_pass_the_check() {
    stand_in::on_stand_in("hessians_pass_the_check", || {
        let cases = [
            "hessian-70x40-k4-denormal-s4",
            "hessian-5000x24-k1-outliers-s2",
            "hessian-60x33-k2-dyadic-s3",
        ];
        pass(&cases, &["f32, ", "bf16, "]);
    });
}

/// Passes through blocks in f32 and with hidden states and factors in bf16, and tuning in every precision.
#[test]
fn blocks_pass_the_check() {
    stand_in::on_stand_in("blocks_pass_the_check", || {
        let case = "block_forward-36x22-k2-q1-d8-n4-t5-w1-bias-plain-3x2g4-s5";
        pass(&[case], &["f32, ", "bf16, "]);
        let case = "block_finetune-4x2-k1-q1-d4-n1-t2-w0-nobias-plain-1x1g4-s4";
        pass(&[case], &["f32, ", "mixed, ", "tf32, ", "bf16, "]);
    });
}
