//! The same solves with a second library, LAPACK through ndarray-linalg, and spectra, which only this module
//! computes.

use ndarray::{Array1, Array2, ArrayView2};
use ndarray_linalg::error::LinalgError;
use ndarray_linalg::{Eigh, SolveC, UPLO};

use aqlm_vocabulary::{AqlmError, Result};

fn refused(what: &str, expected: &str, error: &LinalgError) -> AqlmError {
    AqlmError::argument(what, expected, format!("one of which LAPACK says: {error}"))
}

/// X of A X = B for a symmetric positive definite A of shape [n, n] and B of shape [n, k], by Cholesky
/// (dpotrf, dpotrs).
///
/// # Errors
/// `Argument` with LAPACK's message when A is not positive definite.
pub fn solve_spd(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>, what: &str) -> Result<Array2<f64>> {
    let a = a.to_owned();
    let mut x = Array2::zeros(b.raw_dim());
    for (column, mut solution) in b.columns().into_iter().zip(x.columns_mut()) {
        let solved = a
            .solvec(&column.to_owned())
            .map_err(|error| refused(what, "a positive definite matrix", &error))?;
        solution.assign(&solved);
    }
    Ok(x)
}

/// Eigenvalues of a symmetric matrix of shape [n, n], ascending.
///
/// # Errors
/// `Argument` with LAPACK's message when the iteration does not converge.
pub fn eigenvalues(a: ArrayView2<'_, f64>, what: &str) -> Result<Array1<f64>> {
    let (values, _) = a
        .to_owned()
        .eigh(UPLO::Lower)
        .map_err(|error| refused(what, "a symmetric matrix of finite numbers", &error))?;
    Ok(values)
}

/// Largest eigenvalue divided by the smallest, of a symmetric positive definite matrix; infinite when it is
/// singular.
///
/// # Errors
/// As [`eigenvalues`].
pub fn condition_number(a: ArrayView2<'_, f64>, what: &str) -> Result<f64> {
    let values = eigenvalues(a, what)?;
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(0.0, f64::max);
    Ok(if smallest > 0.0 {
        largest / smallest
    } else {
        f64::INFINITY
    })
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::problem::{gaussian, spd};

    #[test]
    fn both_libraries_solve_alike() {
        for seed in 0..8 {
            let (a, b) = (spd(seed, 24), gaussian(seed + 100, 24, 3));
            let faer = crate::linalg::solve_spd(a.view(), b.view(), "a").unwrap();
            let lapack = solve_spd(a.view(), b.view(), "a").unwrap();
            // Forward error of either solver: n eps times the condition number, relative to the largest
            // entry.
            let limit = 24.0 * f64::EPSILON * condition_number(a.view(), "a").unwrap();
            let largest = lapack.iter().fold(0.0, |top: f64, x| top.max(x.abs()));
            assert_relative_eq!(faer, lapack, epsilon = limit * largest, max_relative = 0.0);
        }
    }

    #[test]
    fn spectra_of_a_diagonal_matrix_are_its_diagonal() {
        let a = Array2::from_diag(&ndarray::arr1(&[4.0, 1.0, 16.0]));
        assert_eq!(
            eigenvalues(a.view(), "a").unwrap(),
            ndarray::arr1(&[1.0, 4.0, 16.0])
        );
        assert_eq!(condition_number(a.view(), "a").unwrap(), 16.0);
        assert_eq!(
            condition_number(Array2::zeros((2, 2)).view(), "a").unwrap(),
            f64::INFINITY
        );
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        let a = Array2::from_diag(&ndarray::arr1(&[1.0, -1.0]));
        assert!(solve_spd(a.view(), a.view(), "a").is_err());
    }
}
