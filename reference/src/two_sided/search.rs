use ndarray::{Array2, Array3, Axis, s};

use super::check;
use crate::linalg::product;
use crate::{beam_search, decode};
use aqlm_vocabulary::{Position, QuantizedMatrix, Result};

/// One sweep of coordinate search: row after row, the codes of a row given all others.
///
/// With all other rows fixed, the loss of row i is H_O\[i,i\] times the layer error for the target
///
///   w_i + sum over j != i of H_O\[i,j\] / H_O\[i,i\] e_j
///
/// and a constant. So each row is one [`beam_search`] from its current codes. A row's new codes are taken
/// only if they lower the loss, whose change by a step D of row i of E is
///
///   2 <(H_O E)_i H, D> + H_O\[i,i\] D H D^T
///
/// A row without weight (H_O\[i,i\] = 0, where H_O is semidefinite) keeps its codes.
///
/// # Errors
/// `Shape` when weight, H_O, H and matrix do not fit, `Unsupported` for output groups of several rows; those
/// of [`beam_search`].
pub fn two_sided_search(
    weight: &Array2<f64>,
    outer: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    order: &[Position],
    beam: usize,
) -> Result<Array3<u16>> {
    check(weight, outer, hessian, matrix)?;
    let mut codes = matrix.codes().clone();
    let mut error = weight - &decode(matrix);
    for row in 0..weight.nrows() {
        let own = outer[[row, row]];
        if own == 0.0 {
            continue;
        }
        let weighted = product(outer.slice(s![row..=row, ..]), error.view());
        let before = error.slice(s![row..=row, ..]).to_owned();
        let target = &weight.slice(s![row..=row, ..]) - &before + &weighted / own;
        let part = matrix.of_out_groups(&[row]);
        let found = beam_search(&target, hessian, &part, order, beam)?;
        let after = &weight.slice(s![row..=row, ..]) - &decode(&part.with_codes(found.clone())?);
        let step = &after - &before;
        let image = product(step.view(), hessian.view());
        let change = 2.0 * (&weighted * &image).sum() + own * (&step * &image).sum();
        if change < 0.0 {
            error.row_mut(row).assign(&after.index_axis(Axis(0), 0));
            codes.slice_mut(s![row..=row, .., ..]).assign(&found);
        }
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{Problem, config, gaussian, problem, spd};
    use crate::two_sided_loss;
    use aqlm_vocabulary::{Stream, sweep_order};
    use rand::SeedableRng;

    fn order(p: &Problem, seed: u64, pairs: bool) -> Vec<Position> {
        let (_, in_groups) = p.matrix.groups();
        sweep_order(
            &mut Stream::seed_from_u64(seed),
            in_groups,
            p.matrix.scheme().num_codebooks,
            pairs,
        )
    }

    fn loss(p: &Problem, outer: &Array2<f64>, codes: &Array3<u16>) -> f64 {
        let matrix = p.matrix.clone().with_codes(codes.clone()).unwrap();
        two_sided_loss(&(&p.weight - &decode(&matrix)), outer, &p.hessian)
    }

    proptest! {
        #![proptest_config(config(24))]
        #[test]
        fn the_loss_never_rises(seed: u64, pairs: bool, beam in 1usize..4) {
            let mut p = problem(seed, "2x3g4", 6, 4);
            let outer = spd(seed ^ 5, 6);
            let mut last = loss(&p, &outer, p.matrix.codes());
            for sweep in 0..3 {
                let order = order(&p, seed ^ sweep, pairs);
                let codes = two_sided_search(&p.weight, &outer, &p.hessian, &p.matrix, &order, beam).unwrap();
                let now = loss(&p, &outer, &codes);
                // 6 x 16 entries weighted by at most 6 x 16 others
                prop_assert!(now <= last * (1.0 + 1e4 * f64::EPSILON), "{last} then {now}");
                p.matrix = p.matrix.with_codes(codes).unwrap();
                last = now;
            }
        }

        #[test]
        fn the_change_of_the_loss_is_exact(seed: u64, row in 0usize..5) {
            let (error, outer, hessian) = (gaussian(seed, 5, 8), spd(seed ^ 1, 5), spd(seed ^ 2, 8));
            let step = gaussian(seed ^ 3, 1, 8);
            let mut moved = error.clone();
            moved.row_mut(row).scaled_add(1.0, &step.row(0));
            let weighted = outer.slice(s![row..=row, ..]).dot(&error);
            let image = step.dot(&hessian);
            let change = 2.0 * (&weighted * &image).sum() + outer[[row, row]] * (&step * &image).sum();
            let [before, after] = [&error, &moved].map(|error| two_sided_loss(error, &outer, &hessian));
            prop_assert!((after - before - change).abs() <= 1e4 * f64::EPSILON * (before + after));
        }
    }

    #[test]
    fn without_coupling_it_is_the_search_of_one_side() {
        let p = problem(7, "2x3g4", 6, 4);
        let order = order(&p, 1, true);
        let expected = beam_search(&p.weight, &p.hessian, &p.matrix, &order, 2).unwrap();
        let found = two_sided_search(&p.weight, &Array2::eye(6), &p.hessian, &p.matrix, &order, 2).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn one_group_is_searched_exhaustively() {
        // One input group of one codebook: a row's search tries every code, so no row can change alone.
        let mut p = problem(9, "1x3g4", 4, 1);
        let outer = spd(10, 4);
        for _ in 0..20 {
            let order = order(&p, 2, false);
            let codes = two_sided_search(&p.weight, &outer, &p.hessian, &p.matrix, &order, 1).unwrap();
            if codes == p.matrix.codes() {
                break;
            }
            p.matrix = p.matrix.with_codes(codes).unwrap();
        }
        let found = loss(&p, &outer, p.matrix.codes());
        for row in 0..4 {
            for code in 0..8 {
                let mut other = p.matrix.codes().clone();
                other[[row, 0, 0]] = code;
                assert!(
                    found <= loss(&p, &outer, &other) * (1.0 + 1e-12),
                    "row {row}, code {code}"
                );
            }
        }
    }
}
