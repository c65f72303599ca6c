//! model_forward: two blocks of SmolLM2-135M's shape, whole and token by token, with the reference, every
//! SIMD level and dense products of the same shape.
//!
//! The CPU backend also computes the first sequence token by token; the reference does not.
//!
//! `cargo bench -p aqlm-benches --bench model_forward`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 1] = ["model_forward-576x1536-k3-q3-d64-n2-t64-w0-nobias-plain-2x8g8-s1"];

fn model_forward(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, model_forward);
criterion_main!(benches);
