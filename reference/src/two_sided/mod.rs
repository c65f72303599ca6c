//! The two-sided objective: tr(H_O E H E^T) with E = W - Q, H_O [out_features, out_features] and H
//! [in_features, in_features] (YAQA, arXiv:2505.22988).
//!
//! H_O = I is the layer error of the rest of this crate. Any other H_O couples the rows of E. Given all other
//! rows, a row is a problem of the usual kind with another target ([`two_sided_search`]). Codebooks and
//! scales each have a joint minimum ([`two_sided_update`]).
//!
//! An output group must be one row: two rows that share a code are two different places of H_O.

mod search;
mod update;

pub use search::two_sided_search;
pub use update::{two_sided_codebooks, two_sided_scales, two_sided_update};

use ndarray::Array2;

use crate::layer_error::check_shapes;
use crate::linalg::product;
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result, Scheme};

/// tr(H_O E H E^T) for E [out_features, in_features].
pub fn two_sided_loss(error: &Array2<f64>, outer: &Array2<f64>, hessian: &Array2<f64>) -> f64 {
    let image = product(error.view(), hessian.view());
    (product(outer.view(), image.view()) * error).sum()
}

/// H_O with a diagonal of mean 1, plus `damping`. The identity for an H_O of zeros, which no gradient
/// reached.
///
/// # Errors
/// `Shape` unless H_O is square, `NotFinite` naming it, `NotPositiveDefinite` for a negative diagonal entry,
/// `Argument` for a damping that is not a finite number >= 0.
pub fn damped_outer(outer: &Array2<f64>, damping: f64) -> Result<Array2<f64>> {
    let rows = outer.nrows();
    if outer.ncols() != rows {
        return Err(AqlmError::Shape {
            what: "H_O".into(),
            expected: vec![rows, rows],
            found: outer.shape().to_vec(),
        });
    }
    if let Some(((row, column), &value)) = outer.indexed_iter().find(|(_, value)| !value.is_finite()) {
        return Err(AqlmError::NotFinite {
            what: "H_O".into(),
            index: vec![row, column],
            value,
        });
    }
    if let Some(pivot) = outer.diag().iter().position(|&x| x < 0.0) {
        return Err(AqlmError::NotPositiveDefinite {
            what: "H_O".into(),
            pivot,
        });
    }
    if !(damping >= 0.0 && damping.is_finite()) {
        return Err(AqlmError::argument(
            "damping of H_O",
            "a finite number of at least 0",
            damping,
        ));
    }
    let mean = outer.diag().sum() / rows.max(1) as f64;
    if mean == 0.0 {
        return Ok(Array2::eye(rows));
    }
    let mut outer = outer / mean;
    outer.diag_mut().mapv_inplace(|x| x + damping);
    Ok(outer)
}

/// # Errors
/// `Unsupported` when output groups have several rows.
pub fn require_single_rows(scheme: Scheme) -> Result<()> {
    if scheme.out_group_size == 1 {
        return Ok(());
    }
    Err(AqlmError::Unsupported(format!(
        "the two-sided objective weighs rows one by one, and {scheme} has output groups of {} rows",
        scheme.out_group_size
    )))
}

/// # Errors
/// `Shape` when weight, H_O, H and matrix do not fit, `Unsupported` for output groups of several rows.
fn check(
    weight: &Array2<f64>,
    outer: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
) -> Result<()> {
    require_single_rows(matrix.scheme())?;
    check_shapes(weight, hessian, matrix)?;
    let rows = weight.nrows();
    if outer.dim() == (rows, rows) {
        return Ok(());
    }
    Err(AqlmError::Shape {
        what: "H_O".into(),
        expected: vec![rows, rows],
        found: outer.shape().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{gaussian, spd};
    use crate::{decode, layer_error};

    #[test]
    fn a_damping_without_meaning_is_refused() {
        let outer = spd(2, 3);
        for damping in [-0.1, f64::INFINITY, f64::NAN] {
            let error = damped_outer(&outer, damping).unwrap_err().to_string();
            assert!(error.contains("damping of H_O"), "{error}");
        }
        assert!(damped_outer(&outer, 0.0).is_ok());
    }

    #[test]
    fn the_loss_is_the_sum_of_its_definition() {
        let (error, outer, hessian) = (gaussian(1, 3, 4), spd(2, 3), spd(3, 4));
        let mut sum = 0.0;
        for a in 0..3 {
            for b in 0..3 {
                for i in 0..4 {
                    for j in 0..4 {
                        sum += outer[[a, b]] * error[[b, i]] * hessian[[i, j]] * error[[a, j]];
                    }
                }
            }
        }
        let found = two_sided_loss(&error, &outer, &hessian);
        // 144 products of four numbers each, of which none is larger than 100 times the sum
        assert!((found - sum).abs() <= 144.0 * 100.0 * 4.0 * f64::EPSILON * sum.abs());
    }

    #[test]
    fn without_coupling_it_is_the_layer_error() {
        let p = crate::problem::problem(4, "2x3g4", 6, 4);
        let error = &p.weight - &decode(&p.matrix);
        let found = two_sided_loss(&error, &Array2::eye(6), &p.hessian);
        let expected = layer_error(&p.weight, &decode(&p.matrix), &p.hessian);
        assert!((found - expected).abs() <= crate::problem::rounding(&p));
    }

    #[test]
    fn damping_normalises_and_survives_zeros() {
        let outer = spd(5, 7) * 1e-9;
        let found = damped_outer(&outer, 0.25).unwrap();
        assert!((found.diag().sum() - 7.0 * 1.25).abs() <= 100.0 * f64::EPSILON);
        assert_eq!(
            damped_outer(&Array2::zeros((3, 3)), 0.25).unwrap(),
            Array2::<f64>::eye(3)
        );
        let mut bad = outer;
        bad[[2, 2]] = -1.0;
        assert!(damped_outer(&bad, 0.0).is_err());
        bad[[2, 2]] = f64::NAN;
        assert!(damped_outer(&bad, 0.0).is_err());
    }

    #[test]
    fn rows_that_share_codes_are_refused_by_name() {
        let error = require_single_rows("2x3g4o2".parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("2x3g4o2"), "{error}");
    }
}
