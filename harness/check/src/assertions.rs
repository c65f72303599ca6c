//! Assertions of the tests that compare results in f32 with those of the reference.

use crate::limits::{Number, Rule};
use crate::nmse;

/// The NMSE limit for f32 sums whose lengths along the longest chain add up to `terms`: [`Rule::Squares`].
pub fn limit(terms: usize) -> f64 {
    Rule::Squares.limit(Number::F32, terms)
}

/// Asserts that `found` is within NMSE `limit` of `expected`.
///
/// # Panics
/// When it is not, when the numbers of elements differ, when `expected` is zero, and on NaN.
#[track_caller]
pub fn assert_close<'a>(
    what: &str,
    found: impl IntoIterator<Item = impl Into<f64>>,
    expected: impl IntoIterator<Item = &'a f64>,
    limit: f64,
) {
    let found: Vec<f64> = found.into_iter().map(Into::into).collect();
    let expected: Vec<f64> = expected.into_iter().copied().collect();
    assert_eq!(found.len(), expected.len(), "{what}: number of elements");
    let error = nmse(&found, &expected);
    // written so that NaN, also from a reference of zeros, fails
    assert!(error <= limit, "{what}: NMSE {error:e}, limit {limit:e}");
}

/// Runs `f` on a thread pool of its own.
///
/// # Panics
/// When the system starts no more threads.
pub fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("the system starts a few threads").install(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_close_numbers_are_close() {
        let is_close = |found: &[f32], expected: &[f64]| {
            let found = found.to_vec();
            std::panic::catch_unwind(|| assert_close("x", found, expected, limit(4))).is_ok()
        };
        assert!(is_close(&[1.0, 2.0 + 2.0 * f32::EPSILON], &[1.0, 2.0]));
        for (found, expected) in [
            (&[1.0, 2.0 + 20.0 * f32::EPSILON][..], &[1.0, 2.0]),
            (&[1.0], &[1.0, 2.0]),
            (&[1.0, f32::NAN], &[1.0, 2.0]),
            (&[0.0, 0.0], &[0.0, 0.0]),
        ] {
            assert!(!is_close(found, expected), "{found:?}");
        }
    }
}
