//! block_finetune: three epochs of a small block, with the reference, every SIMD level and dense products of
//! the same shape.
//!
//! `cargo bench -p aqlm-benches --bench block_finetune`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 1] = ["block_finetune-128x352-k2-q2-d32-n6-t64-w0-nobias-plain-2x6g8-s1"];

fn block_finetune(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, block_finetune);
criterion_main!(benches);
