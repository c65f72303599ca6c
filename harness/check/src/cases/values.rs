use aqlm_vocabulary::Stream;
use half::f16;
use rand::RngExt;

use super::words;

words! {
    /// Kind of numbers in a case.
    Values, "values" {
        /// small multiples of a power of two: every sum is exact in f32, in any order (the exact tier)
        Dyadic = "dyadic",
        /// bell-shaped, with one number in a hundred twenty times as large
        Outliers = "outliers",
        /// as `Outliers`, but every codeword (or point) occurs at least twice
        Repeated = "repeated",
        /// numbers below the smallest normal one of their type
        Denormal = "denormal",
        /// every third row is zero
        ZeroRows = "zerorows",
        /// all rows are the same
        EqualRows = "equalrows",
    }
}

impl Values {
    /// Whether results must agree bit for bit.
    pub fn is_exact(self) -> bool {
        self == Self::Dyadic
    }
}

/// A multiple of 1/8 of size at most 1. Products of two are multiples of 1/64, and sums of fewer than 2^17
/// such products are exact in f32.
pub(super) fn dyadic(rng: &mut Stream) -> f64 {
    f64::from(rng.random_range(-8..=8)) / 8.0
}

/// A bell-shaped number of about unit size, one in a hundred twenty times as large. It is rounded to f16, so
/// that every backend can represent it.
pub(super) fn with_outliers(rng: &mut Stream) -> f64 {
    let bell: f64 = (0..4).map(|_| rng.random_range(-1.0..1.0)).sum();
    let value = if rng.random_bool(0.01) { 20.0 * bell } else { bell };
    to_f16(value)
}

/// A standard normal number (Box-Muller).
pub(super) fn normal(rng: &mut Stream) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

pub(super) fn to_f16(value: f64) -> f64 {
    f16::from_f64(value).to_f64()
}

/// A nonzero number below f16's smallest normal one, 2^-14.
pub(super) fn denormal_f16(rng: &mut Stream) -> f64 {
    let steps = f64::from(rng.random_range(1..1024));
    let sign = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
    sign * steps * 2f64.powi(-24)
}
