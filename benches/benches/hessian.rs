//! hessian: the mean of x xT over samples, with the reference, every SIMD level and dense products of the
//! same shape.
//!
//! `cargo bench -p aqlm-benches --bench hessian`

mod support;

use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 1] = ["hessian-4096x576-k4-outliers-s1"];

fn hessian(criterion: &mut Criterion) {
    support::bench(criterion, &CASES);
}

criterion_group!(benches, hessian);
criterion_main!(benches);
