//! feedback_init: initial codes and codebooks by error feedback, with the reference, every SIMD level and
//! dense products of the same shape.
//!
//! `cargo bench -p aqlm-benches --bench feedback_init`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 1] = ["feedback_init-2x8g8-576x576-outliers-correlated-b1-s1"];

fn feedback_init(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, feedback_init);
criterion_main!(benches);
