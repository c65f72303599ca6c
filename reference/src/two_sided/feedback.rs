use ndarray::{Array2, Array3, s};

use super::check;
use crate::decode;
use crate::feedback_init::feedback_search;
use crate::linalg::{Cholesky, product, solve_transposed};
use aqlm_vocabulary::{AqlmError, GroupOrder, QuantizedMatrix, Result};

/// Codes for codebooks and scales of `matrix` by error feedback over rows and input groups. The codes of
/// `matrix` are not used.
///
/// With H_O = L L^T the loss is the sum over rows i of the layer error of (L^T E)_i, which depends only on
/// rows from i on. So rows are decided from the last to the first. For a block B of `rows` consecutive rows,
/// with R the rows behind it,
///
///   (L^T E)_B = L_BB^T (E_B + S), S = L_BB^-T L_RB^T E_R
///
/// and each row of the block is searched for the target W_B + S by [`feedback_search`]. Rows of a block do
/// not see each other; with blocks of one row the feedback is complete.
///
/// # Errors
/// `Shape` when weight, H_O, H and matrix do not fit, `Unsupported` for output groups of several rows,
/// `NotPositiveDefinite` for an indefinite H_O or H, `Argument` for no hypotheses or no rows.
pub fn two_sided_feedback(
    weight: &Array2<f64>,
    outer: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    hypotheses: usize,
    order: GroupOrder,
    rows: usize,
) -> Result<Array3<u16>> {
    check(weight, outer, hessian, matrix)?;
    if rows == 0 {
        return Err(AqlmError::argument("rows of a block", "at least 1 row", 0));
    }
    let lower = Cholesky::new(outer.view(), 0.0, "H_O")?.lower();
    let mut error = Array2::<f64>::zeros(weight.dim());
    let mut codes = matrix.codes().clone();
    for first in (0..weight.nrows()).step_by(rows).rev() {
        let end = weight.nrows().min(first + rows);
        let behind = product(lower.slice(s![end.., first..end]).t(), error.slice(s![end.., ..]));
        let shift = solve_transposed(lower.slice(s![first..end, first..end]), behind);
        let own = weight.slice(s![first..end, ..]);
        let part = QuantizedMatrix::new(
            matrix.scheme(),
            codes.slice(s![first..end, .., ..]).to_owned(),
            matrix.codebooks().clone(),
            matrix.scales().slice(s![first..end]).to_owned(),
        )?;
        let (found, _) = feedback_search(&(&own + &shift), hessian, &part, hypotheses, order)?;
        let decoded = decode(&part.with_codes(found.clone())?);
        error.slice_mut(s![first..end, ..]).assign(&(&own - &decoded));
        codes.slice_mut(s![first..end, .., ..]).assign(&found);
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{problem, spd};
    use crate::two_sided_loss;

    #[test]
    fn without_coupling_it_is_the_feedback_of_one_side() {
        let p = problem(3, "2x2g4", 5, 3);
        let order = GroupOrder::Natural;
        let (expected, _) = feedback_search(&p.weight, &p.hessian, &p.matrix, 3, order).unwrap();
        for rows in [1, 2, 5] {
            let found =
                two_sided_feedback(&p.weight, &Array2::eye(5), &p.hessian, &p.matrix, 3, order, rows).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_last_decision_is_optimal_given_all_others() {
        // The first row is decided last, knowing all others. With all hypotheses its code is the best of all.
        let p = problem(5, "1x2g4", 4, 2);
        let outer = spd(6, 4);
        let codes =
            two_sided_feedback(&p.weight, &outer, &p.hessian, &p.matrix, 16, GroupOrder::Natural, 1).unwrap();
        let loss = |codes: &Array3<u16>| {
            let matrix = p.matrix.clone().with_codes(codes.clone()).unwrap();
            two_sided_loss(&(&p.weight - &decode(&matrix)), &outer, &p.hessian)
        };
        let found = loss(&codes);
        for a in 0..4 {
            for b in 0..4 {
                let mut other = codes.clone();
                other[[0, 0, 0]] = a;
                other[[0, 1, 0]] = b;
                assert!(found <= loss(&other) * (1.0 + 1e-12), "{a} {b}");
            }
        }
    }

    #[test]
    fn feedback_over_rows_beats_none() {
        let (mut with, mut without) = (0.0, 0.0);
        for seed in 0..8 {
            let p = problem(seed, "2x3g4", 12, 4);
            let outer = spd(seed + 100, 12);
            let order = GroupOrder::Natural;
            let loss = |codes: Array3<u16>| {
                let matrix = p.matrix.clone().with_codes(codes).unwrap();
                let error = &p.weight - &decode(&matrix);
                two_sided_loss(&error, &outer, &p.hessian) / two_sided_loss(&p.weight, &outer, &p.hessian)
            };
            let rows = 1;
            with += loss(
                two_sided_feedback(&p.weight, &outer, &p.hessian, &p.matrix, 4, order, rows).unwrap(),
            );
            without += loss(feedback_search(&p.weight, &p.hessian, &p.matrix, 4, order).unwrap().0);
        }
        assert!(with < without, "{with} against {without}");
    }
}
