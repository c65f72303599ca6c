//! Comparisons shared by the operations. None passes with NaN or with nothing to compare.

use aqlm_vocabulary::AqlmError;

use super::limits::{self, Measure, Number, Sizes};
use super::{Comparison, largest, nmse};
use crate::operation::Operation;
use crate::subject::Pools;
use aqlm_formats::{Error, Result};

/// Result of comparing one subject's answer to one case.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// all comparisons
    pub comparisons: Vec<Comparison>,
    /// ln(loss / the reference's loss), if searches are compared over many cases
    pub excess: Option<f64>,
}

impl From<Vec<Comparison>> for Findings {
    fn from(comparisons: Vec<Comparison>) -> Self {
        Self {
            comparisons,
            excess: None,
        }
    }
}

/// A comparer for one operation, arithmetic and case.
#[derive(Debug, Clone, Copy)]
pub struct Against {
    /// the operation
    pub operation: Operation,
    /// the arithmetic of the compared answer
    pub number: Number,
    /// sizes from which limits count their terms
    pub sizes: Sizes,
}

impl Against {
    /// The limit from the table for a measure of `what`.
    ///
    /// # Errors
    /// `Argument` when the table has no row for it.
    pub(crate) fn limit(self, measure: Measure, what: &str) -> Result<f64> {
        let row = limits::row(self.operation, self.number, measure, what)?;
        Ok(row.rule.limit(self.number, (row.terms)(&self.sizes)))
    }

    /// Compares a measure's `value` with its limit.
    ///
    /// # Errors
    /// Like all comparisons: `Argument` when the table of limits has no row for it.
    pub fn value(self, measure: Measure, what: &str, value: f64) -> Result<Comparison> {
        let limit = self.limit(measure, what)?;
        Ok(Comparison::new(format!("{measure}: {what}"), value, limit))
    }

    /// NMSE of `found` against `expected`. NaN, which never holds, when their lengths differ or `expected` is
    /// zero.
    ///
    /// # Errors
    /// As [`Against::value`].
    pub fn nmse<'a>(
        self,
        what: &str,
        found: impl IntoIterator<Item = &'a f64>,
        expected: impl IntoIterator<Item = &'a f64>,
    ) -> Result<Comparison> {
        let found: Vec<f64> = found.into_iter().copied().collect();
        let expected: Vec<f64> = expected.into_iter().copied().collect();
        let value = if found.len() == expected.len() {
            nmse(&found, &expected)
        } else {
            f64::NAN
        };
        let comparison = self.value(Measure::Nmse, what, value)?;
        let allowed = comparison.limit * expected.iter().map(|x| x * x).sum::<f64>();
        Ok(comparison.with_worst(&found, &expected, |_, error| error * error / allowed))
    }

    /// Gradients against numerical slopes, as pairs (gradient, slope): the difference relative to the
    /// gradients. NaN when all gradients are zero.
    ///
    /// # Errors
    /// As [`Against::value`].
    pub(crate) fn slopes(self, what: &str, pairs: Vec<(f64, f64)>) -> Result<Comparison> {
        let (gradients, slopes): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        self.value(Measure::Gradient, what, nmse(&slopes, &gradients).sqrt())
    }

    /// Number of elements that differ.
    ///
    /// # Errors
    /// As [`Against::value`].
    pub fn exact(self, what: &str, found: &[f64], expected: &[f64]) -> Result<Comparison> {
        let different = found.iter().zip(expected).filter(|(a, b)| a != b).count();
        let value = if found.len() != expected.len() || expected.iter().all(|&x| x == 0.0) {
            f64::NAN
        } else {
            different as f64
        };
        let comparison = self.value(Measure::Exact, what, value)?;
        Ok(comparison.with_worst(
            found,
            expected,
            |_, error| {
                if error == 0.0 { 0.0 } else { f64::INFINITY }
            },
        ))
    }

    /// The worst element's error as a share of its magnitude, and the NMSE. Beyond the roundings relative to
    /// its magnitude, an element may also differ by its own `extra`, which is known exactly, and by the
    /// rounding of denormal numbers.
    pub(crate) fn elements(
        self,
        what: &str,
        found: &[f64],
        expected: &Expected,
        extra: impl Fn(usize) -> f64,
    ) -> Result<Vec<Comparison>> {
        let row = limits::row(self.operation, self.number, Measure::Element, what)?;
        let terms = (row.terms)(&self.sizes);
        let limit = row.rule.limit(self.number, terms);
        let denormal = terms as f64 * self.number.denormal_rounding();
        let free = |i: usize| extra(i) * (1.0 + limit) + denormal;
        let (mut worst, mut squares, mut allowed) = (0.0, 0.0, 0.0);
        for (i, (value, magnitude)) in expected.values.iter().zip(&expected.magnitudes).enumerate() {
            let error = (found.get(i).copied().unwrap_or(f64::NAN) - value).abs();
            let free = free(i);
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
        let element = Comparison::new(format!("{}: {what}", Measure::Element), worst, limit);
        Ok(vec![
            element.with_worst(found, &expected.values, |i, error| {
                error / (free(i) + limit * expected.magnitudes[i])
            }),
            Comparison::new(
                format!("{}: {what}", Measure::Nmse),
                squares / norm,
                allowed / norm,
            ),
        ])
    }

    /// Squared error from errors of one epsilon in every number, where `size` is the sum of squared
    /// magnitudes. Losses below this floor are treated as equal.
    pub(crate) fn floor(self, size: f64) -> Result<f64> {
        Ok(self.limit(Measure::Floor, "loss")? * size)
    }
}

/// Exact results of a product, and the scale of their roundings.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    /// the exact results
    pub(super) values: Vec<f64>,
    /// the sum of magnitudes behind each value; roundings are relative to it
    pub(super) magnitudes: Vec<f64>,
}

/// Runs `f` once on one thread and twice on two threads. Returns the first answer and how many of the others
/// differ.
pub(super) fn repeated<T: PartialEq + Send>(
    against: Against,
    pools: &Pools,
    f: impl Fn() -> Result<T> + Sync,
) -> Result<(T, Comparison)> {
    let first = pools.one.install(&f)?;
    let others = [pools.two.install(&f)?, pools.two.install(&f)?];
    let different = others.iter().filter(|other| **other != first).count();
    let comparison = against.value(Measure::Repeat, "answers that differ", different as f64)?;
    Ok((first, comparison))
}

/// Numbers compared by their bytes, so that NaN equals itself.
#[derive(Debug, Clone)]
pub(crate) struct Bits(pub(crate) Vec<f64>);

impl PartialEq for Bits {
    fn eq(&self, other: &Self) -> bool {
        let bits = |values: &[f64]| -> Vec<u64> { values.iter().map(|value| value.to_bits()).collect() };
        bits(&self.0) == bits(&other.0)
    }
}

impl FromIterator<f32> for Bits {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        Self(values.into_iter().map(f64::from).collect())
    }
}

/// Whether an error means that the backend does not implement the operation.
pub(super) fn is_unsupported(error: &Error) -> bool {
    matches!(error, Error::Aqlm(AqlmError::Unsupported(_)))
}

/// The mean excess over the reference, compared with its standard error: one comparison for all cases of an
/// operation.
///
/// The limit is the share of the reference's loss by which any two optima may differ, plus the number of
/// standard errors from the table.
pub(super) fn pooled(against: Against, excesses: &[f64]) -> Result<Option<Comparison>> {
    let n = excesses.len() as f64;
    if excesses.len() < FEWEST_POOLED {
        return Ok(None);
    }
    let mean = excesses.iter().sum::<f64>() / n;
    let variance = excesses.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let errors = against.limit(Measure::Pooled, "")?;
    let limit = limits::SAME_LOSS + errors * (variance / n).sqrt();
    let what = format!(
        "{}: mean of ln(loss / reference's) over {n} cases",
        Measure::Pooled
    );
    Ok(Some(Comparison::new(what, mean, limit)))
}

/// Fewer cases than this do not determine a mean.
const FEWEST_POOLED: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    const MATVEC: Against = Against {
        operation: Operation::Matvec,
        number: Number::F32,
        // ten terms
        sizes: Sizes {
            inputs: 5,
            codebooks: 1,
            ..Sizes::NONE
        },
    };

    fn expected() -> Expected {
        Expected {
            values: vec![1.0, -2.0, 0.0],
            magnitudes: vec![2.0, 2.0, 1.0],
        }
    }

    fn holds(found: &[f64]) -> bool {
        let comparisons = MATVEC.elements("y", found, &expected(), |_| 0.0).unwrap();
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
        let comparisons = MATVEC.elements("y", &[0.0], &zeros, |_| 0.0).unwrap();
        assert!(!comparisons.iter().all(Comparison::holds));
    }

    #[test]
    fn an_answer_that_changes_is_found() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let calls = AtomicUsize::new(0);
        let pools = Pools::at(aqlm_optimized::cpu::SimdLevel::current()).unwrap();
        let (_, comparison) = repeated(MATVEC, &pools, || Ok(calls.fetch_add(1, Ordering::Relaxed))).unwrap();
        assert!(!comparison.holds());
        let (_, comparison) = repeated(MATVEC, &pools, || Ok(rayon::current_num_threads())).unwrap();
        assert!(!comparison.holds());
        let (_, comparison) = repeated(MATVEC, &pools, || Ok(7)).unwrap();
        assert!(comparison.holds());
    }

    #[test]
    fn a_mean_is_found_worse_only_beyond_its_noise() {
        let search = Against {
            operation: Operation::BeamSearch,
            number: Number::F32,
            sizes: Sizes::NONE,
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
