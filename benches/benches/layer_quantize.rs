//! layer_quantize: a whole layer, with the reference, every SIMD level and dense products of the same shape.
//!
//! `cargo bench -p aqlm-benches --bench layer_quantize`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 1] = ["layer_quantize-2x6g8-256x256-outliers-correlated-b4-single-closed-em-s1"];

fn layer_quantize(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, layer_quantize);
criterion_main!(benches);
