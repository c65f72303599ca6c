use ndarray::{Array2, Array3, Array4, Axis};
use rayon::prelude::*;

use crate::decode::decode_scaled;
use crate::layer_error::check_shapes;
use crate::linalg::{Cholesky, product};
use crate::occurrences::{Occurrences, scatter};
use crate::{decode, layer_error};
use aqlm_vocabulary::{QuantizedMatrix, Result};

/// Solves the least-squares problem of [`closed_form`](super::closed_form) without forming its normal matrix,
/// for codebooks for which that matrix would be too large. Takes at most `steps` steps of conjugate gradients
/// from the current codebooks.
///
/// A step decodes a direction, multiplies it by H and scatters the result back to the codewords: out_features
/// x in_features^2 multiply-adds for codebooks of any size. The preconditioner is the diagonal of the normal
/// matrix in blocks, one per codeword. Every step lowers the loss. Iteration stops when a step's gain is too
/// small for f64 to resolve. Codewords that no group uses keep their values.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not fit,
/// `NotPositiveDefinite` when H is indefinite.
pub fn conjugate_gradients(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    steps: usize,
) -> Result<Array4<f64>> {
    check_shapes(weight, hessian, matrix)?;
    let occurrences = Occurrences::of_matrix(matrix);
    let inverses = block_inverses(hessian, matrix, &occurrences)?;
    let apply = |direction: &Array4<f64>| {
        let dense = decode_scaled(matrix, direction.view());
        scatter(&product(dense.view(), hessian.view()), matrix, &occurrences)
    };
    let error = weight - &decode(matrix);
    let mut loss = layer_error(weight, &decode(matrix), hessian);
    let mut residual = scatter(&product(error.view(), hessian.view()), matrix, &occurrences);
    let mut codebooks = matrix.codebooks().clone();
    let mut preconditioned = precondition(&inverses, &residual);
    let mut direction = preconditioned.clone();
    let mut slope = dot(&residual, &preconditioned);
    for _ in 0..steps {
        let image = apply(&direction);
        let curvature = dot(&direction, &image);
        // The step length slope / curvature lowers the loss by slope^2 / curvature.
        let gain = slope * slope / curvature;
        let worthwhile = curvature > 0.0 && gain > f64::EPSILON * loss;
        if !worthwhile {
            break;
        }
        codebooks.scaled_add(slope / curvature, &direction);
        residual.scaled_add(-slope / curvature, &image);
        loss -= gain;
        preconditioned = precondition(&inverses, &residual);
        let next_slope = dot(&residual, &preconditioned);
        direction *= next_slope / slope;
        direction += &preconditioned;
        slope = next_slope;
    }
    Ok(codebooks)
}

fn dot(a: &Array4<f64>, b: &Array4<f64>) -> f64 {
    // Sequential, so that the order of summation is fixed.
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The inverse of each codeword's diagonal block of the normal matrix, [M x 2^B, gi, gi]; zero for unused
/// codewords.
fn block_inverses(
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    occurrences: &[Occurrences],
) -> Result<Array3<f64>> {
    let gi = matrix.scheme().in_group_size;
    let states = matrix.scheme().codebook_size();
    let mut inverses = Array3::zeros((matrix.scheme().num_codebooks * states, gi, gi));
    inverses
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .enumerate()
        .try_for_each(|(i, mut inverse)| {
            let metric = occurrences[i / states].metric(i % states, matrix.scales(), hessian, gi);
            if metric.diag().iter().any(|&x| x != 0.0) {
                let factor = Cholesky::semidefinite(metric.view(), "metric of a codeword")?;
                inverse.assign(&factor.solve(Array2::eye(gi).view()));
            }
            Ok(())
        })?;
    Ok(inverses)
}

fn precondition(inverses: &Array3<f64>, residual: &Array4<f64>) -> Array4<f64> {
    let mut result = Array4::zeros(residual.raw_dim());
    let (_, states, _, _) = residual.dim();
    for (m, (mut result, residual)) in result.outer_iter_mut().zip(residual.outer_iter()).enumerate() {
        for (k, (mut result, residual)) in result.outer_iter_mut().zip(residual.outer_iter()).enumerate() {
            // the block is symmetric, so rows may be multiplied from either side
            result.assign(&residual.dot(&inverses.index_axis(Axis(0), m * states + k)));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codebook_update::closed_form;
    use crate::problem::{Problem, config, problem, rounding};

    fn loss(p: &Problem, codebooks: Array4<f64>) -> f64 {
        layer_error(&p.weight, &decode_scaled(&p.matrix, codebooks.view()), &p.hessian)
    }

    proptest! {
        #![proptest_config(config(24))]
        #[test]
        fn they_reach_the_closed_form(seed: u64, scheme in prop::sample::select(vec!["2x2g4", "1x3g4o2", "3x2g2"])) {
            let p = problem(seed, scheme, 8, 4);
            let closed = loss(&p, closed_form(&p.weight, &p.hessian, &p.matrix).unwrap());
            // In exact arithmetic, as many steps as unknowns suffice; rounding requires a few times more.
            let steps = 4 * p.matrix.codebooks().len();
            let cg = loss(&p, conjugate_gradients(&p.weight, &p.hessian, &p.matrix, steps).unwrap());
            prop_assert!((cg - closed).abs() <= rounding(&p), "{cg} against {closed}");
        }

        #[test]
        fn the_loss_falls_with_every_step(seed: u64) {
            let p = problem(seed, "2x3g4", 8, 4);
            let mut last = loss(&p, p.matrix.codebooks().clone());
            for steps in 1..12 {
                let now = loss(&p, conjugate_gradients(&p.weight, &p.hessian, &p.matrix, steps).unwrap());
                prop_assert!(now <= last + rounding(&p));
                last = now;
            }
        }
    }

    #[test]
    fn unused_codewords_keep_their_values() {
        let mut p = problem(5, "2x3g4", 6, 4);
        let codes = p.matrix.codes().mapv(|code| code % 5);
        p.matrix = p.matrix.with_codes(codes).unwrap();
        let codebooks = conjugate_gradients(&p.weight, &p.hessian, &p.matrix, 30).unwrap();
        for ((m, k, a, b), &value) in codebooks.indexed_iter() {
            assert_eq!(value == p.matrix.codebooks()[[m, k, a, b]], k >= 5);
        }
    }

    #[test]
    fn dead_inputs_are_no_obstacle() {
        let mut p = problem(6, "2x3g4", 6, 4);
        for i in [0, 1, 5] {
            p.hessian.row_mut(i).fill(0.0);
            p.hessian.column_mut(i).fill(0.0);
        }
        let closed = loss(&p, closed_form(&p.weight, &p.hessian, &p.matrix).unwrap());
        let cg = loss(
            &p,
            conjugate_gradients(&p.weight, &p.hessian, &p.matrix, 400).unwrap(),
        );
        assert!((cg - closed).abs() <= rounding(&p), "{cg} against {closed}");
    }
}
