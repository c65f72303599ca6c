//! perplexity: token losses of two blocks of SmolLM2-135M's shape over 512 tokens, with the reference, every
//! SIMD level and dense products of the same shape.
//!
//! `cargo bench -p aqlm-benches --bench perplexity`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 1] = ["perplexity-576x1536-k3-q3-d64-n2-t256-w0-nobias-plain-2x8g8-s1"];

fn perplexity(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, perplexity);
criterion_main!(benches);
