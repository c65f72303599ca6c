use ndarray::{Array1, Array2, Array3, Array4, Axis};
use rayon::prelude::*;

use crate::decode;
use crate::decode::decode_scaled;
use crate::layer_error::check_shapes;
use crate::linalg::{Cholesky, product};
use crate::occurrences::{Occurrences, scatter};
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};

/// When conjugate gradients end, apart from a step too small for f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descent {
    /// steps at most
    pub steps: usize,
    /// two consecutive steps that together gain less than this share of the gain since the start are the last
    pub of_gain: f64,
    /// the same as a share of the loss
    pub of_loss: f64,
}

impl Descent {
    /// To the minimum, as far as f64 resolves it.
    pub const fn to_minimum(steps: usize) -> Self {
        Self {
            steps,
            of_gain: 0.0,
            of_loss: 0.0,
        }
    }

    /// The same with another number of steps.
    #[must_use]
    pub const fn with_steps(self, steps: usize) -> Self {
        Self { steps, ..self }
    }
}

/// Solves the least-squares problem of [`closed_form`](super::closed_form) without forming its normal matrix,
/// for codebooks for which that matrix would be too large. Takes at most `steps` steps of conjugate gradients
/// from the current codebooks.
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
    let image = |dense: &Array2<f64>| Ok(product(dense.view(), hessian.view()));
    descend(
        &image,
        weight,
        matrix.scales(),
        hessian,
        matrix,
        Descent::to_minimum(steps),
    )
}

/// Least squares for the codebooks under a quadratic loss of the error, by conjugate gradients from the
/// current ones.
///
/// `image` takes D [out_features, in_features] to the loss's matrix times D: D H under the layer error. A
/// step decodes a direction, takes its image and scatters it back to the codewords: out_features x
/// in_features^2 multiply-adds under the layer error, for codebooks of any size. Every step lowers the loss.
/// Iteration stops when a step's gain is too small for f64 to resolve, and where `descent` says. Codewords
/// that no group uses keep their values.
///
/// The preconditioner is the diagonal of the normal matrix in blocks, one per codeword: the sum of s^2 H_jj
/// over its places, with s of `scales`, which carry the weight of their output group in the loss.
///
/// # Errors
/// `NotPositiveDefinite` when H is indefinite; those of `image`.
pub(crate) fn descend<E: From<AqlmError>, F: Fn(&Array2<f64>) -> std::result::Result<Array2<f64>, E>>(
    image: &F,
    weight: &Array2<f64>,
    scales: &Array1<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    descent: Descent,
) -> std::result::Result<Array4<f64>, E> {
    let occurrences = Occurrences::of_matrix(matrix);
    let inverses = block_inverses(scales, hessian, matrix, &occurrences)?;
    let error = weight - &decode(matrix);
    let of_error = image(&error)?;
    let before = (&of_error * &error).sum();
    let mut loss = before;
    let mut residual = scatter(&of_error, matrix, &occurrences);
    let mut codebooks = matrix.codebooks().clone();
    let mut preconditioned = precondition(&inverses, &residual);
    let mut direction = preconditioned.clone();
    let mut slope = dot(&residual, &preconditioned);
    let mut last_gain = f64::INFINITY;
    for _ in 0..descent.steps {
        let dense = decode_scaled(matrix, direction.view());
        let of_direction = scatter(&image(&dense)?, matrix, &occurrences);
        let curvature = dot(&direction, &of_direction);
        // The step length slope / curvature lowers the loss by slope^2 / curvature.
        let gain = slope * slope / curvature;
        let worthwhile = curvature > 0.0 && gain > f64::EPSILON * loss;
        if !worthwhile {
            break;
        }
        codebooks.scaled_add(slope / curvature, &direction);
        residual.scaled_add(-slope / curvature, &of_direction);
        loss -= gain;
        if gain + last_gain < descent.of_loss * loss.max(0.0) + descent.of_gain * (before - loss) {
            break;
        }
        last_gain = gain;
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
    scales: &Array1<f64>,
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
            let metric = occurrences[i / states].metric(i % states, scales, hessian, gi);
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
    use crate::layer_error;
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
