//! Comparisons that the operations share. All keep NaN from passing, and none passes on nothing.

use std::sync::{Mutex, OnceLock, PoisonError};

use aqlm_vocabulary::AqlmError;
use rayon::ThreadPool;

use super::limits::{self, Measure, Number};
use super::{Comparison, largest, nmse};
use crate::cases::Operation;
use aqlm_formats::{Error, Result};

/// What one subject's answer to one case came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// everything compared
    pub comparisons: Vec<Comparison>,
    /// ln(loss / the reference's loss), where searches are compared over many cases
    pub excess: Option<f64>,
}

/// A comparer for one operation and arithmetic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Against {
    pub(super) operation: Operation,
    pub(super) number: Number,
}

impl Against {
    /// `value` of a measure against its limit for `terms`.
    pub(super) fn value(self, measure: Measure, terms: usize, what: &str, value: f64) -> Result<Comparison> {
        limits::compare(self.operation, self.number, measure, terms, what, value)
    }

    /// NMSE of `found` against `expected`; NaN, which never holds, when their numbers differ or `expected` is
    /// zero.
    pub(super) fn nmse<'a>(
        self,
        terms: usize,
        what: &str,
        found: impl IntoIterator<Item = &'a f64>,
        expected: impl IntoIterator<Item = &'a f64>,
    ) -> Result<Comparison> {
        let found: Vec<&f64> = found.into_iter().collect();
        let expected: Vec<&f64> = expected.into_iter().collect();
        let value = if found.len() == expected.len() {
            nmse(found, expected)
        } else {
            f64::NAN
        };
        self.value(Measure::Nmse, terms, what, value)
    }

    /// How many elements differ.
    pub(super) fn exact(self, what: &str, found: &[f64], expected: &[f64]) -> Result<Comparison> {
        let different = found.iter().zip(expected).filter(|(a, b)| a != b).count();
        let value = if found.len() != expected.len() || expected.iter().all(|&x| x == 0.0) {
            f64::NAN
        } else {
            different as f64
        };
        self.value(Measure::Exact, 0, what, value)
    }

    /// The worst element's error as a share of its magnitude, and the NMSE. Beyond `terms` roundings of its
    /// magnitude an element may be off by its own `extra`, which is known exactly, and by the rounding of
    /// denormal numbers.
    pub(super) fn elements(
        self,
        terms: usize,
        what: &str,
        found: &[f64],
        expected: &Expected,
        extra: impl Fn(usize) -> f64,
    ) -> Result<Vec<Comparison>> {
        let limit = limits::row(self.operation, self.number, Measure::Element)?
            .rule
            .limit(self.number, terms);
        let denormal = terms as f64 * self.number.denormal_rounding();
        let (mut worst, mut squares, mut allowed) = (0.0, 0.0, 0.0);
        for (i, (value, magnitude)) in expected.values.iter().zip(&expected.magnitudes).enumerate() {
            let error = (found.get(i).copied().unwrap_or(f64::NAN) - value).abs();
            let free = extra(i) * (1.0 + limit) + denormal;
            let share = if error <= free {
                0.0
            } else {
                (error - free) / magnitude
            };
            worst = largest([worst, share]);
            squares += error * error;
            allowed += (free + limit * magnitude).powi(2);
        }
        let norm: f64 = expected.values.iter().map(|x| x * x).sum();
        if found.len() != expected.values.len() || norm == 0.0 {
            worst = f64::NAN;
        }
        Ok(vec![
            Comparison::new(format!("{}: {what}", Measure::Element), worst, limit),
            Comparison::new(
                format!("{}: {what}", Measure::Nmse),
                squares / norm,
                allowed / norm,
            ),
        ])
    }
}

/// What a product is compared to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    /// the exact results
    pub(super) values: Vec<f64>,
    /// the sums of magnitudes behind each, which roundings are relative to
    pub(super) magnitudes: Vec<f64>,
}

/// One answer at a time in the pools. A worker that waits for a part of its own work takes up what else its
/// pool has, and if that were another answer, which waits for the SIMD level that the first one holds, it
/// would wait for itself.
static POOLS_IN_USE: Mutex<()> = Mutex::new(());

/// Runs `f` on one thread and twice on two: its answer, and how many of the other two differ from it.
pub(super) fn repeated<T: PartialEq + Send>(
    against: Against,
    what: &str,
    f: impl Fn() -> Result<T> + Sync,
) -> Result<(T, Comparison)> {
    let [one, two] = pools()?;
    let _alone = POOLS_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let first = one.install(&f)?;
    let others = [two.install(&f)?, two.install(&f)?];
    let different = others.iter().filter(|other| **other != first).count();
    let comparison = against.value(Measure::Repeat, 0, what, different as f64)?;
    Ok((first, comparison))
}

/// Pools of one and two threads.
fn pools() -> Result<&'static [ThreadPool; 2]> {
    static POOLS: OnceLock<std::result::Result<[ThreadPool; 2], String>> = OnceLock::new();
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    POOLS
        .get_or_init(|| {
            let pools =
                || -> std::result::Result<_, rayon::ThreadPoolBuildError> { Ok([pool(1)?, pool(2)?]) };
            pools().map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(|error| Error::argument("threads", "a pool of two", error.clone()))
}

/// Bits of floating-point numbers, so that equal means the same bytes and NaN equals itself.
pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Whether an error says that the backend does not do this.
pub(super) fn is_unsupported(error: &Error) -> bool {
    matches!(error, Error::Aqlm(AqlmError::Unsupported(_)))
}

/// The mean of excesses over the reference against its standard error, one comparison for all cases of an
/// operation.
///
/// The limit is the share of the reference's loss that any two optima may differ by, plus the standard errors
/// of the table.
pub(super) fn pooled(against: Against, excesses: &[f64]) -> Result<Option<Comparison>> {
    let n = excesses.len() as f64;
    if excesses.len() < FEWEST_POOLED {
        return Ok(None);
    }
    let mean = excesses.iter().sum::<f64>() / n;
    let variance = excesses.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let errors = limits::row(against.operation, against.number, Measure::Pooled)?
        .rule
        .limit(against.number, 0);
    let limit = limits::SAME_LOSS + errors * (variance / n).sqrt();
    let what = format!(
        "{}: mean of ln(loss / reference's) over {n} cases",
        Measure::Pooled
    );
    Ok(Some(Comparison::new(what, mean, limit)))
}

/// Fewer cases than these say nothing about a mean.
const FEWEST_POOLED: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    const MATVEC: Against = Against {
        operation: Operation::Matvec,
        number: Number::F32,
    };

    fn expected() -> Expected {
        Expected {
            values: vec![1.0, -2.0, 0.0],
            magnitudes: vec![2.0, 2.0, 1.0],
        }
    }

    fn holds(found: &[f64]) -> bool {
        let comparisons = MATVEC.elements(10, "y", found, &expected(), |_| 0.0).unwrap();
        comparisons.iter().all(Comparison::holds)
    }

    #[test]
    fn elements_within_their_roundings_pass_and_others_fail() {
        assert!(holds(&[1.0, -2.0, 0.0]));
        assert!(holds(&[1.0 + 1e-6, -2.0, 5e-7]));
        assert!(!holds(&[1.0 + 2e-6, -2.0, 0.0]));
        assert!(!holds(&[1.0, -2.0, f64::NAN]));
        assert!(!holds(&[f64::NAN, -2.0, 0.0]));
        assert!(!holds(&[1.0, -2.0]));
        let zeros = Expected {
            values: vec![0.0],
            magnitudes: vec![1.0],
        };
        let comparisons = MATVEC.elements(10, "y", &[0.0], &zeros, |_| 0.0).unwrap();
        assert!(!comparisons.iter().all(Comparison::holds));
    }

    #[test]
    fn an_answer_that_changes_is_found() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let calls = AtomicUsize::new(0);
        let (_, comparison) = repeated(MATVEC, "y", || Ok(calls.fetch_add(1, Ordering::Relaxed))).unwrap();
        assert!(!comparison.holds());
        let (_, comparison) = repeated(MATVEC, "y", || Ok(rayon::current_num_threads())).unwrap();
        assert!(!comparison.holds());
        let (_, comparison) = repeated(MATVEC, "y", || Ok(7)).unwrap();
        assert!(comparison.holds());
    }

    #[test]
    fn a_mean_is_found_worse_only_beyond_its_noise() {
        let search = Against {
            operation: Operation::BeamSearch,
            number: Number::F32,
        };
        let noise = |shift: f64| -> Vec<f64> {
            (0..16)
                .map(|i| shift + if i % 2 == 0 { 0.02 } else { -0.02 })
                .collect()
        };
        let of = |excesses: &[f64]| pooled(search, excesses).unwrap().unwrap();
        assert!(of(&noise(0.0)).holds());
        assert!(of(&noise(0.01)).holds());
        assert!(!of(&noise(0.05)).holds());
        assert!(of(&[0.0; 12]).holds());
        assert!(!of(&[0.002; 12]).holds());
        assert!(!of(&[f64::NAN; 12]).holds());
        assert!(pooled(search, &[0.0; 11]).unwrap().is_none());
    }
}
