//! Small linear systems in f64: one for each codeword, or one for the codebooks of a small problem.

use aqlm_vocabulary::{AqlmError, Result};

/// The Cholesky factor of A + jitter I for a symmetric positive semidefinite A.
#[derive(Debug, Clone)]
pub(crate) struct SmallCholesky {
    order: usize,
    /// lower triangle, row-major
    factor: Vec<f64>,
}

impl SmallCholesky {
    /// Factors A + jitter I, with A [order, order] in standard layout. The jitter is zero if that works.
    /// Otherwise it starts at the rounding error of the factorisation (order x epsilon x the largest diagonal
    /// entry) and grows a hundredfold with each attempt.
    ///
    /// # Errors
    /// `NotPositiveDefinite` when a jitter of a thousandth of the largest diagonal entry fails: then A is
    /// indefinite, or has NaN.
    pub(super) fn new(a: &[f64], order: usize, what: &str) -> Result<Self> {
        let largest = (0..order).fold(0.0f64, |top, i| top.max(a[i * (order + 1)].abs()));
        let mut jitter = 0.0;
        loop {
            let mut factor = a.to_vec();
            for i in 0..order {
                factor[i * (order + 1)] += jitter;
            }
            match factor_in_place(&mut factor, order) {
                Ok(()) => return Ok(Self { order, factor }),
                Err(pivot) if jitter > 1e-3 * largest || largest == 0.0 || !largest.is_finite() => {
                    return Err(AqlmError::NotPositiveDefinite {
                        what: what.into(),
                        pivot,
                    });
                }
                Err(_) => jitter = (100.0 * jitter).max(order as f64 * f64::EPSILON * largest),
            }
        }
    }

    /// Half the logarithm of the determinant of A + jitter I.
    pub(super) fn log_volume(&self) -> f64 {
        (0..self.order)
            .map(|i| self.factor[i * (self.order + 1)].ln())
            .sum()
    }

    /// Overwrites b by the solution of (A + jitter I) x = b.
    pub(super) fn solve(&self, b: &mut [f64]) {
        let n = self.order;
        for i in 0..n {
            let row = &self.factor[i * n..i * n + i];
            let sum = dot(row, &b[..i]);
            b[i] = (b[i] - sum) / self.factor[i * (n + 1)];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|r| self.factor[r * n + i] * b[r]).sum();
            b[i] = (b[i] - sum) / self.factor[i * (n + 1)];
        }
    }
}

/// Overwrites the lower triangle by the factor. Fails with the index of the bad pivot: a pivot must be above
/// the rounding error of the terms subtracted from it.
fn factor_in_place(a: &mut [f64], order: usize) -> std::result::Result<(), usize> {
    for i in 0..order {
        for j in 0..=i {
            let value = a[i * order + j] - dot(&a[i * order..][..j], &a[j * order..][..j]);
            if i == j {
                let resolved = order as f64 * f64::EPSILON * a[i * (order + 1)].abs();
                let usable = value > resolved;
                if !usable {
                    return Err(i);
                }
                a[i * (order + 1)] = value.sqrt();
            } else {
                a[i * order + j] = value / a[j * (order + 1)];
            }
        }
    }
    Ok(())
}

/// Eight partial sums, which the compiler vectorises, plus one of the remaining terms. Up to eight terms are
/// added in order.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut lanes = [0.0; 8];
    for (a, b) in whole_a.iter().zip(whole_b) {
        for i in 0..8 {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f64 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_solved() {
        let a = [4.0, 2.0, 0.0, 2.0, 5.0, 2.0, 0.0, 2.0, 5.0];
        let mut b = [8.0, 18.0, 19.0];
        SmallCholesky::new(&a, 3, "a").unwrap().solve(&mut b);
        for (x, expected) in b.iter().zip([1.0, 2.0, 3.0]) {
            assert!((x - expected).abs() < 64.0 * f64::EPSILON);
        }
    }

    #[test]
    fn singular_systems_get_a_jitter_and_indefinite_ones_an_error() {
        let mut b = [2.0, 2.0];
        SmallCholesky::new(&[1.0, 1.0, 1.0, 1.0], 2, "a")
            .unwrap()
            .solve(&mut b);
        assert!((b[0] + b[1] - 2.0).abs() < 1e-6);
        for bad in [[1.0, 2.0, 2.0, 1.0], [f64::NAN, 0.0, 0.0, 1.0], [0.0; 4]] {
            let result = SmallCholesky::new(&bad, 2, "a");
            assert!(
                matches!(result, Err(AqlmError::NotPositiveDefinite { .. })),
                "{bad:?}"
            );
        }
    }
}
