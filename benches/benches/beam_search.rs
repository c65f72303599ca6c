//! beam_search: one sweep for codes, with the reference, every SIMD level and dense products of the same
//! shape.
//!
//! `cargo bench -p aqlm-benches --bench beam_search`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 2] = [
    "beam_search-2x8g8-256x256-outliers-correlated-b1-single-s1",
    "beam_search-2x8g8-256x256-outliers-correlated-b4-single-s1",
];

fn beam_search(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, beam_search);
criterion_main!(benches);
