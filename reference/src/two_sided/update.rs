use ndarray::{Array1, Array2, Array4, ArrayView1, Axis};

use super::{check, two_sided_loss};
use crate::codebook_update::{Descent, descend};
use crate::decode;
use crate::decode::decode_unscaled;
use crate::linalg::product;
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};

/// Most steps to the scales' minimum. A step is cheap, and the condition of A is that of H_O with a diagonal
/// of ones, which damping bounds.
const SCALE_STEPS: usize = 400;

/// Codebooks and scales updated in turn under tr(H_O E H E^T), `rounds` times; the codes stay.
///
/// The loss of the result is never above that of `matrix`: a step that would raise it is not taken.
///
/// # Errors
/// `Shape` when weight, H_O, H and matrix do not fit, `Unsupported` for output groups of several rows,
/// `NotPositiveDefinite` for an indefinite H_O or H.
pub fn two_sided_update(
    weight: &Array2<f64>,
    outer: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    descent: Descent,
    rounds: usize,
) -> Result<QuantizedMatrix> {
    check(weight, outer, hessian, matrix)?;
    let right = |dense: &Array2<f64>| Ok::<_, AqlmError>(product(dense.view(), hessian.view()));
    let both = |dense: &Array2<f64>| right(&product(outer.view(), dense.view()));
    let loss = |matrix: &QuantizedMatrix| two_sided_loss(&(weight - &decode(matrix)), outer, hessian);
    let mut best = (loss(matrix), matrix.clone());
    let consider = |candidate: QuantizedMatrix, best: &mut (f64, QuantizedMatrix)| {
        let loss = loss(&candidate);
        if loss < best.0 {
            *best = (loss, candidate);
        }
    };
    for _ in 0..rounds {
        let codebooks = two_sided_codebooks(&both, weight, outer.diag(), hessian, &best.1, descent)?;
        consider(best.1.clone().with_codebooks(codebooks)?, &mut best);
        let scales = two_sided_scales(&right, weight, outer, &best.1)?;
        consider(best.1.clone().with_scales(scales)?, &mut best);
    }
    Ok(best.1)
}

/// Least squares for the codebooks under tr(H_O E H E^T), by conjugate gradients from the current ones
///.
///
/// `image` returns H_O D H for D [out_features, in_features]. The preconditioner leaves out the coupling of
/// rows: a place of a codeword in row o counts with s_o^2 H_O\[o,o\] H_jj. `weights` is the diagonal of H_O.
///
/// # Errors
/// `NotPositiveDefinite` when H is indefinite; those of `image`.
pub fn two_sided_codebooks<E: From<AqlmError>, F: Fn(&Array2<f64>) -> std::result::Result<Array2<f64>, E>>(
    image: &F,
    weight: &Array2<f64>,
    weights: ArrayView1<'_, f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    descent: Descent,
) -> std::result::Result<Array4<f64>, E> {
    // s_o^2 H_O[o,o] as the square of a scale
    let scales = matrix.scales() * &weights.mapv(|x| x.max(0.0).sqrt());
    descend(image, weight, &scales, hessian, matrix, descent)
}

/// The scales of minimum loss tr(H_O E H E^T) for codes and codebooks of `matrix`, `[out_features]`.
///
/// With p_i the sum of row i's codewords before scaling, the loss is a quadratic function of all scales with
/// matrix A_ij = H_O\[i,j\] p_i H p_j^T and right side b_i = (H_O W)_i H p_i^T. Conjugate gradients approach
/// its minimum from the current scales; a row whose codewords add up to nothing keeps its scale. `right`
/// returns D H.
///
/// # Errors
/// Those of `right`.
pub fn two_sided_scales<E: From<AqlmError>, F: Fn(&Array2<f64>) -> std::result::Result<Array2<f64>, E>>(
    right: &F,
    weight: &Array2<f64>,
    outer: &Array2<f64>,
    matrix: &QuantizedMatrix,
) -> std::result::Result<Array1<f64>, E> {
    let plain = decode_unscaled(matrix, matrix.codebooks().view());
    let image = right(&plain)?;
    let system = outer * &product(plain.view(), image.t());
    let goal = (product(outer.view(), weight.view()) * &image).sum_axis(Axis(1));
    let own = system.diag();
    let precondition = |residual: &Array1<f64>| {
        Array1::from_shape_fn(residual.len(), |o| {
            if own[o] > 0.0 { residual[o] / own[o] } else { 0.0 }
        })
    };
    let mut scales = matrix.scales().clone();
    let mut residual = &goal - &system.dot(&scales);
    let mut direction = precondition(&residual);
    let mut slope = residual.dot(&direction);
    let first = slope;
    for _ in 0..SCALE_STEPS {
        let image = system.dot(&direction);
        let curvature = direction.dot(&image);
        let worthwhile = curvature > 0.0 && slope > f64::EPSILON * first;
        if !worthwhile {
            break;
        }
        scales.scaled_add(slope / curvature, &direction);
        residual.scaled_add(-slope / curvature, &image);
        let preconditioned = precondition(&residual);
        let next_slope = residual.dot(&preconditioned);
        direction *= next_slope / slope;
        direction += &preconditioned;
        slope = next_slope;
    }
    Ok(scales)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codebook_update::{closed_form, optimal_scales};
    use crate::problem::{config, gaussian, problem, rounding, spd};

    fn loss_of(p: &crate::problem::Problem, outer: &Array2<f64>, matrix: &QuantizedMatrix) -> f64 {
        two_sided_loss(&(&p.weight - &decode(matrix)), outer, &p.hessian)
    }

    proptest! {
        #![proptest_config(config(16))]
        #[test]
        fn no_other_codebooks_or_scales_are_better(seed: u64) {
            let p = problem(seed, "2x2g2", 6, 4);
            let outer = spd(seed ^ 9, 6);
            // many more steps than the 16 unknowns, because of rounding
            let descent = Descent::to_minimum(400);
            let right = |dense: &Array2<f64>| Ok::<_, AqlmError>(dense.dot(&p.hessian));
            let both = |dense: &Array2<f64>| right(&outer.dot(dense));
            let codebooks =
                two_sided_codebooks(&both, &p.weight, outer.diag(), &p.hessian, &p.matrix, descent).unwrap();
            let scales = two_sided_scales(&right, &p.weight, &outer, &p.matrix).unwrap();
            let moved = p.matrix.clone().with_codebooks(codebooks).unwrap();
            let scaled = p.matrix.clone().with_scales(scales).unwrap();
            let (best, scaled_best) = (loss_of(&p, &outer, &moved), loss_of(&p, &outer, &scaled));
            // At a minimum a step of relative size 1e-3 in any direction raises the loss by its square times
            // the curvature, far above rounding.
            for direction in 0..6 {
                let mut other = moved.clone();
                let noise = gaussian(seed ^ direction, 1, 16);
                other.tune(|mut codebooks, _| {
                    codebooks.iter_mut().zip(&noise).for_each(|(to, step)| *to += 1e-3 * step);
                });
                prop_assert!(best <= loss_of(&p, &outer, &other) * (1.0 + 1e-9));
                let mut other = scaled.clone();
                other.tune(|_, mut scales| scales.iter_mut().zip(&noise).for_each(|(to, step)| *to += 1e-3 * step));
                prop_assert!(scaled_best <= loss_of(&p, &outer, &other) * (1.0 + 1e-9));
            }
        }

        #[test]
        fn updates_never_raise_the_loss(seed: u64, steps in 0usize..8, rounds in 0usize..3) {
            let p = problem(seed, "2x3g4", 8, 4);
            let outer = spd(seed ^ 9, 8);
            let descent = Descent { steps, of_gain: 0.01, of_loss: 1e-5 };
            let updated = two_sided_update(&p.weight, &outer, &p.hessian, &p.matrix, descent, rounds).unwrap();
            prop_assert!(loss_of(&p, &outer, &updated) <= loss_of(&p, &outer, &p.matrix));
            prop_assert_eq!(updated.codes(), p.matrix.codes());
        }
    }

    #[test]
    fn an_update_is_as_good_as_each_of_its_steps() {
        for seed in 0..5 {
            let p = problem(seed, "2x2g2", 6, 4);
            let outer = spd(seed ^ 9, 6);
            let right = |dense: &Array2<f64>| Ok::<_, AqlmError>(dense.dot(&p.hessian));
            let both = |dense: &Array2<f64>| right(&outer.dot(dense));
            let descent = Descent::to_minimum(400);
            let codebooks =
                two_sided_codebooks(&both, &p.weight, outer.diag(), &p.hessian, &p.matrix, descent).unwrap();
            let moved = p.matrix.clone().with_codebooks(codebooks).unwrap();
            let updated = two_sided_update(&p.weight, &outer, &p.hessian, &p.matrix, descent, 1).unwrap();
            let of = |matrix: &QuantizedMatrix| loss_of(&p, &outer, matrix);
            // scales that were drawn at random are not those of the minimum
            assert!(of(&updated) < of(&moved) && of(&moved) < of(&p.matrix), "{seed}");
        }
    }

    #[test]
    fn a_descent_stops_after_two_steps_that_gain_too_little() {
        let mut p = problem(3, "2x2g2", 6, 4);
        // Far from its codebooks: a step gains a million times what it is measured in, so that the product of
        // two gains is no sum.
        p.weight *= 1e3;
        let outer = spd(5, 6);
        let both = |dense: &Array2<f64>| Ok::<_, AqlmError>(outer.dot(dense).dot(&p.hessian));
        let after = |steps, of_gain, of_loss| {
            let descent = Descent {
                steps,
                of_gain,
                of_loss,
            };
            two_sided_codebooks(&both, &p.weight, outer.diag(), &p.hessian, &p.matrix, descent).unwrap()
        };
        let [one, two, many] = [1, 2, 6].map(|steps| after(steps, 0.0, 0.0));
        assert!(one != two && two != many);
        // Before the second step no gain is small.
        assert_eq!(after(6, 0.0, f64::INFINITY), two);
        // Two gains are all gains so far, which is less than 1.1 times as much.
        assert_eq!(after(6, 1.1, 0.0), two);
    }

    #[test]
    fn without_coupling_they_are_those_of_one_side() {
        let p = problem(8, "2x2g4", 8, 4);
        let identity = Array2::eye(8);
        let right = |dense: &Array2<f64>| Ok::<_, AqlmError>(dense.dot(&p.hessian));
        let descent = Descent::to_minimum(400);
        let found = two_sided_codebooks(&right, &p.weight, identity.diag(), &p.hessian, &p.matrix, descent);
        let found = p.matrix.clone().with_codebooks(found.unwrap()).unwrap();
        let closed = closed_form(&p.weight, &p.hessian, &p.matrix).unwrap();
        let closed = p.matrix.clone().with_codebooks(closed).unwrap();
        let losses = [&found, &closed].map(|matrix| loss_of(&p, &identity, matrix));
        assert!((losses[0] - losses[1]).abs() <= rounding(&p), "{losses:?}");
        let scales = two_sided_scales(&right, &p.weight, &identity, &p.matrix).unwrap();
        let expected = optimal_scales(&p.weight, &p.hessian, &p.matrix).unwrap();
        // a diagonal system; H's sums have 16 terms twice
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e3 * f64::EPSILON * b.abs().max(1.0);
        assert!(scales.iter().zip(&expected).all(close), "{scales} {expected}");
    }

    #[test]
    fn unused_codewords_and_rows_without_codewords_stay() {
        let mut p = problem(5, "2x3g4", 6, 4);
        let codes = p.matrix.codes().mapv(|code| code % 5);
        p.matrix = p.matrix.with_codes(codes).unwrap();
        let outer = spd(3, 6);
        let right = |dense: &Array2<f64>| Ok::<_, AqlmError>(dense.dot(&p.hessian));
        let both = |dense: &Array2<f64>| right(&outer.dot(dense));
        let descent = Descent::to_minimum(30);
        let codebooks =
            two_sided_codebooks(&both, &p.weight, outer.diag(), &p.hessian, &p.matrix, descent).unwrap();
        for ((m, k, a, b), &value) in codebooks.indexed_iter() {
            assert_eq!(value == p.matrix.codebooks()[[m, k, a, b]], k >= 5);
        }
        let mut empty = p.matrix.clone();
        empty.tune(|mut codebooks, _| codebooks.fill(0.0));
        let scales = two_sided_scales(&right, &p.weight, &outer, &empty).unwrap();
        assert_eq!(scales, empty.scales());
    }
}
