//! Numbers in and out of kernels that run on the CPU, and their comparison.

use aqlm_check::limits::{Number, Rule};
use aqlm_optimized::cuda::llama::plan::Plan;
use ndarray::Array2;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::shim::{self, Launch};

/// One buffer after a launch; `None` without a compiler.
pub(crate) fn run(plan: &Plan, buffers: &[Vec<u8>], output: usize, name: &str) -> Option<Vec<u8>> {
    let launch = Launch::from(plan);
    let buffers: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
    let source = aqlm_kernels::kernel(plan.kernel).unwrap().source(None).unwrap();
    let found = shim::run(&launch, &source, &buffers, output, name)?;
    Some(found.unwrap_or_else(|outside| panic!("{}: a write {outside}", plan.kernel)))
}

/// Numbers that f32 represents exactly.
pub(crate) fn random(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Array2<f64> {
    Array2::from_shape_simple_fn((rows, columns), || {
        let value: f64 = rng.sample(StandardNormal);
        f64::from(value as f32)
    })
}

pub(crate) fn f32s<'a>(values: impl IntoIterator<Item = &'a f64>) -> Vec<u8> {
    let bytes = |value: &f64| (*value as f32).to_le_bytes();
    values.into_iter().flat_map(bytes).collect()
}

pub(crate) fn f64s<'a>(values: impl IntoIterator<Item = &'a f64>) -> Vec<u8> {
    values.into_iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn from_f32s(bytes: &[u8]) -> Vec<f64> {
    let fours = bytes.as_chunks::<4>().0.iter();
    fours.map(|&four| f64::from(f32::from_le_bytes(four))).collect()
}

pub(crate) fn from_f64s(bytes: &[u8]) -> Vec<f64> {
    let eights = bytes.as_chunks::<8>().0.iter();
    eights.map(|&eight| f64::from_le_bytes(eight)).collect()
}

/// Unwritten memory reads as NaN.
pub(crate) fn poison(bytes: usize) -> Vec<u8> {
    vec![0xff; bytes]
}

/// Checks that squared error over squares is at most that of sums of `terms` terms in f32.
pub(crate) fn close<'a>(
    found: &[f64],
    expected: impl IntoIterator<Item = &'a f64>,
    terms: usize,
    what: &str,
) {
    within(Rule::Squares.limit(Number::F32, terms), found, expected, what);
}

/// Checks that squared error over squares is at most a limit.
pub(crate) fn within<'a>(limit: f64, found: &[f64], expected: impl IntoIterator<Item = &'a f64>, what: &str) {
    let expected: Vec<f64> = expected.into_iter().copied().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    let error: f64 = found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum();
    let squares: f64 = expected.iter().map(|b| b * b).sum();
    let nmse = error / squares;
    assert!(
        nmse <= limit && squares > 0.0,
        "{what}: nmse {nmse:e}, limit {limit:e}"
    );
}
