//! block_backward: forward and backward of a block of SmolLM2-135M's shape over 512 tokens, with the
//! reference, every SIMD level and dense products of the same shape.
//!
//! `cargo bench -p aqlm-benches --bench block_backward`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 1] = ["block_backward-576x1536-k3-q3-d64-n2-t256-w0-nobias-plain-2x8g8-s1"];

fn block_backward(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, block_backward);
criterion_main!(benches);
