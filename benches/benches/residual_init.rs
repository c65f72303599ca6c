//! residual_init: initial codes and codebooks by residual k-means, with the reference, every SIMD level and
//! dense products of the same shape.
//!
//! `cargo bench -p aqlm-benches --bench residual_init`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 1] = ["residual_init-2x8g8-576x576-outliers-s1"];

fn residual_init(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, residual_init);
criterion_main!(benches);
