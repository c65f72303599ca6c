//! em_init: initial codes and codebooks by EM under the H-metric, with the reference, every SIMD level and
//! dense products of the same shape.
//!
//! `cargo bench -p aqlm-benches --bench em_init`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 1] = ["em_init-2x8g8-576x576-outliers-correlated-s1"];

fn em_init(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, em_init);
criterion_main!(benches);
