use ndarray::{Array1, Array2, Array4, ArrayView2, s};
use rayon::prelude::*;

use crate::decode;
use crate::layer_error::check_shapes;
use crate::linalg::{Cholesky, product};
use crate::occurrences::{Occurrences, scatter};
use aqlm_vocabulary::{QuantizedMatrix, Result};

/// Maximum number of refinement steps. Each step divides the error along an eigenvector of eigenvalue e by
/// 1 + e / jitter, so only directions with almost no effect on the loss need more than one.
const REFINEMENTS: usize = 20;

/// The codebooks of minimum layer error for the codes and scales of `matrix`, [M, 2^B, go, gi]: the
/// least-squares problem that paper section 3.3 leaves to future work.
///
/// Its normal equations A c = b have, for codewords (m, k) and (m', k'), the gi x gi block
///
///   sum over o of s_o^2 times the sum of H_jj' over all j that use (m, k) and j' that use (m', k') in output
///   group o.
///
/// A has M 2^B gi rows and columns. The rows of a group that spans several outputs are additional right-hand
/// sides.
///
/// A is always singular for M > 1, because adding a vector to all codewords of one codebook and subtracting
/// it from all codewords of another changes nothing. A is scaled to a unit diagonal and factored with a
/// jitter of the size of its rounding error. The solution for the change from the current codebooks is then
/// refined. The result is a minimiser near the current codebooks, and codewords that no group uses keep their
/// values.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not fit,
/// `NotPositiveDefinite` when H is indefinite.
pub fn closed_form(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
) -> Result<Array4<f64>> {
    check_shapes(weight, hessian, matrix)?;
    let occurrences = Occurrences::of_matrix(matrix);
    let mut normal = normal_matrix(hessian, matrix, &occurrences);
    let scaling: Array1<f64> = normal
        .diag()
        .iter()
        .map(|&x| if x > 0.0 { x.sqrt().recip() } else { 0.0 })
        .collect();
    if scaling.iter().all(|&x| x == 0.0) {
        return Ok(matrix.codebooks().clone());
    }
    for (mut row, &factor) in normal.outer_iter_mut().zip(&scaling) {
        row.zip_mut_with(&scaling, |x, other| *x *= factor * other);
    }
    let factor = Cholesky::semidefinite(normal.view(), "normal matrix of the codebooks")?;

    // b - A c is the current error scattered to the codewords.
    let error = weight - &decode(matrix);
    let gradient = scatter(&product(error.view(), hessian.view()), matrix, &occurrences);
    let mut residual = unknowns_of(&gradient);
    for (mut row, &factor) in residual.outer_iter_mut().zip(&scaling) {
        row *= factor;
    }
    let mut change = Array2::<f64>::zeros(residual.raw_dim());
    let mut total_gain = 0.0;
    for _ in 0..REFINEMENTS {
        let step = factor.solve(residual.view());
        let next = &residual - &product(normal.view(), step.view());
        let gain = (&step * &(&residual + &next)).sum();
        // Also false for NaN. The first step that gains nothing more is dropped.
        let worthwhile = gain > f64::EPSILON * total_gain;
        if !worthwhile {
            break;
        }
        total_gain += gain;
        change += &step;
        residual = next;
    }
    for (mut row, &factor) in change.outer_iter_mut().zip(&scaling) {
        row *= factor;
    }
    let mut codebooks = matrix.codebooks().clone();
    add_unknowns(&mut codebooks, change.view());
    Ok(codebooks)
}

/// A, [M 2^B gi, M 2^B gi].
fn normal_matrix(
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    occurrences: &[Occurrences],
) -> Array2<f64> {
    let (_, in_groups) = matrix.groups();
    let gi = matrix.scheme().in_group_size;
    let states = matrix.scheme().codebook_size();
    let codewords = matrix.scheme().num_codebooks * states;
    let tile = gi * gi;
    // H as contiguous tiles H_jj', so that the inner loop adds consecutive numbers.
    let tiles: Vec<f64> = (0..in_groups * in_groups)
        .flat_map(|i| {
            let (j, other) = (i / in_groups, i % in_groups);
            hessian
                .slice(s![j * gi..(j + 1) * gi, other * gi..(other + 1) * gi])
                .iter()
                .copied()
                .collect::<Vec<_>>()
        })
        .collect();
    // Each codeword's tiles with itself and all codewords before it: half of the symmetric A.
    let rows: Vec<Vec<f64>> = (0..codewords)
        .into_par_iter()
        .map(|codeword| {
            let (m, k) = (codeword / states, codeword % states);
            let mut row = vec![0.0; (codeword + 1) * tile];
            for &(o, j) in occurrences[m].of(k) {
                let weight = matrix.scales()[o] * matrix.scales()[o];
                for other in 0..in_groups {
                    let from = &tiles[(j * in_groups + other) * tile..][..tile];
                    for n in 0..=m {
                        let column = n * states + usize::from(matrix.codes()[[o, other, n]]);
                        if column <= codeword {
                            let to = &mut row[column * tile..][..tile];
                            for (to, from) in to.iter_mut().zip(from) {
                                *to += weight * from;
                            }
                        }
                    }
                }
            }
            row
        })
        .collect();
    Array2::from_shape_fn((codewords * gi, codewords * gi), |(r, c)| {
        let (r, c) = (r.max(c), r.min(c));
        rows[r / gi][c / gi * tile + r % gi * gi + c % gi]
    })
}

/// Codebooks [M, 2^B, go, gi] as the unknowns [M 2^B gi, go].
fn unknowns_of(codebooks: &Array4<f64>) -> Array2<f64> {
    let (_, states, go, gi) = codebooks.dim();
    Array2::from_shape_fn((codebooks.len() / go, go), |(i, a)| {
        codebooks[[i / gi / states, i / gi % states, a, i % gi]]
    })
}

fn add_unknowns(codebooks: &mut Array4<f64>, unknowns: ArrayView2<'_, f64>) {
    let (_, states, _, gi) = codebooks.dim();
    for ((m, k, a, b), value) in codebooks.indexed_iter_mut() {
        *value += unknowns[[(m * states + k) * gi + b, a]];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer_error;
    use crate::problem::{config, problem, rounding};

    proptest! {
        #![proptest_config(config(32))]
        #[test]
        fn finite_differences_vanish_at_the_solution(seed: u64, scheme in prop::sample::select(vec!["2x2g4", "1x3g4o2", "3x2g2"])) {
            let mut p = problem(seed, scheme, 8, 4);
            let solved = closed_form(&p.weight, &p.hessian, &p.matrix).unwrap();
            p.matrix = p.matrix.with_codebooks(solved).unwrap();
            let at = |index: [usize; 4], step: f64| {
                let mut moved = p.matrix.clone();
                moved.tune(|mut codebooks, _| codebooks[index] += step);
                layer_error(&p.weight, &decode(&moved), &p.hessian)
            };
            let (_, states, go, gi) = p.matrix.codebooks().dim();
            for i in 0..p.matrix.codebooks().len() {
                let index = [i / gi / go / states, i / gi / go % states, i / gi % go, i % gi];
                // The loss is a parabola along a coordinate, so a step of one half is as exact as a small
                // one. The loss far from the solution bounds the rounding of the difference.
                let slope = at(index, 0.5) - at(index, -0.5);
                prop_assert!(slope.abs() <= 2.0 * rounding(&p) + 64.0 * f64::EPSILON * at(index, 0.5), "{slope:e} at {index:?}");
            }
        }
    }

    #[test]
    fn the_normal_matrix_is_the_second_derivative() {
        // With weight and current codebooks zero, the loss of codebooks c is cT A c.
        let mut p = problem(11, "2x2g3", 5, 3);
        let direction = p.matrix.codebooks().clone();
        let occurrences = Occurrences::of_matrix(&p.matrix);
        let a = normal_matrix(&p.hessian, &p.matrix, &occurrences);
        let c = unknowns_of(&direction);
        p.weight.fill(0.0);
        let loss = layer_error(&p.weight, &decode(&p.matrix), &p.hessian);
        assert!(((a.dot(&c) * &c).sum() - loss).abs() <= 8.0 * rounding(&p));
        assert_eq!(a, a.t());
    }

    #[test]
    fn unused_codewords_keep_their_values() {
        let mut p = problem(5, "2x3g4", 6, 4);
        let codes = p.matrix.codes().mapv(|code| code % 5);
        p.matrix = p.matrix.with_codes(codes).unwrap();
        let codebooks = closed_form(&p.weight, &p.hessian, &p.matrix).unwrap();
        for m in 0..2 {
            for k in 0..8 {
                let same = codebooks.slice(s![m, k, .., ..]) == p.matrix.codebooks().slice(s![m, k, .., ..]);
                assert_eq!(same, k >= 5, "codeword {k} of codebook {m}");
            }
        }
    }

    #[test]
    fn nothing_to_solve_changes_nothing() {
        let mut p = problem(5, "2x3g4", 6, 4);
        p.hessian.fill(0.0);
        assert_eq!(
            closed_form(&p.weight, &p.hessian, &p.matrix).unwrap(),
            p.matrix.codebooks()
        );
    }

    #[test]
    fn dead_inputs_and_tied_codewords_are_no_obstacle() {
        let mut p = problem(6, "2x3g4", 6, 4);
        for i in [0, 1, 5] {
            p.hessian.row_mut(i).fill(0.0);
            p.hessian.column_mut(i).fill(0.0);
        }
        // codewords 0 of both codebooks always occur together
        let first = p.matrix.codes().slice(s![.., .., 0]).to_owned();
        let mut codes = p.matrix.codes().clone();
        codes.slice_mut(s![.., .., 1]).assign(&first);
        p.matrix = p.matrix.with_codes(codes).unwrap();
        let solved = closed_form(&p.weight, &p.hessian, &p.matrix).unwrap();
        let q = p.matrix.clone().with_codebooks(solved).unwrap();
        let before = layer_error(&p.weight, &decode(&p.matrix), &p.hessian);
        let after = layer_error(&p.weight, &decode(&q), &p.hessian);
        assert!(after < before);
        let solved = closed_form(&p.weight, &p.hessian, &q).unwrap();
        let q = q.with_codebooks(solved).unwrap();
        let again = layer_error(&p.weight, &decode(&q), &p.hessian);
        assert!((again - after).abs() <= rounding(&p), "{again} after {after}");
    }
}
