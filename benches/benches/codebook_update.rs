//! codebook_update: codebooks and scales for fixed codes, with the reference, every SIMD level and dense
//! products of the same shape.
//!
//! `cargo bench -p aqlm-benches --bench codebook_update`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 2] = [
    "codebook_update-2x8g8-256x256-outliers-correlated-closed-s1",
    "codebook_update-2x8g8-256x256-outliers-correlated-adam-s1",
];

fn codebook_update(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, codebook_update);
criterion_main!(benches);
