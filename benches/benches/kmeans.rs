//! kmeans: 25 of Lloyd's iterations, with the reference, every SIMD level and dense products of the same
//! shape.
//!
//! `cargo bench -p aqlm-benches --bench kmeans`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 2] = [
    "kmeans-41472x8-k256-outliers-s1",
    "kmeans-20736x16-k256-outliers-s1",
];

fn kmeans(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, kmeans);
criterion_main!(benches);
