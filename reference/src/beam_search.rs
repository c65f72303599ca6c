//! Codes for fixed codebooks and scales (paper section 3.2, algorithm 1 line 9).
//!
//! Let dW = W - Q and G = dW H. Replacing the codeword c_old of codebook m in input group j by c changes the
//! loss of an output group with scale s by
//!
//!   -2 s <G_j, c - c_old> + s^2 <(c - c_old) H_jj, c - c_old>
//!
//! Let U = G_j + s c_old H_jj, which is G_j without the old codeword's contribution. Then the change is a
//! constant plus
//!
//!   s^2 <c H_jj, c> - 2 s <U, c>.
//!
//! The quadratic forms <c H_jj, c> are the same for every output group. The rest is one product of a group of
//! 2^B codewords with a vector. Output groups do not interact.
//!
//! A step may choose the codes of two codebooks together. Then c is one of the 2^(2B) sums of a codeword of
//! each, and nothing else changes. Two codes that are chosen one after the other stop where neither can
//! change alone; together they go on.

use ndarray::{
    Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, ArrayViewMut1, ArrayViewMut2, Axis, CowArray,
    Ix2, s,
};
use rayon::prelude::*;

use crate::decode;
use crate::layer_error::check_shapes;
use crate::least::{least, slice_of};
use crate::linalg::product;
use crate::sums::sums;
use aqlm_vocabulary::{AqlmError, Position, QuantizedMatrix, Result};

/// Number of output groups that one task of the beam-1 search handles together, so that scoring them is a
/// matrix product.
const OUT_GROUP_BLOCK: usize = 64;

/// Data shared by all output groups during a search.
struct Shared<'a> {
    hessian: &'a Array2<f64>,
    matrix: &'a QuantizedMatrix,
    steps: Vec<Step<'a>>,
}

/// What a step chooses among.
struct Step<'a> {
    at: Position,
    /// codewords of its codebook, or the sums of those of its two codebooks, [choices, go gi]
    vectors: CowArray<'a, f64, Ix2>,
    /// <c H_jj, c> of each
    forms: Array1<f64>,
}

impl<'a> Step<'a> {
    fn new(hessian: &Array2<f64>, matrix: &'a QuantizedMatrix, at: Position) -> Self {
        let codebook = |m: usize| flat(matrix.codebooks().index_axis(Axis(0), m));
        let vectors: CowArray<'_, f64, Ix2> = match at.partner {
            None => codebook(at.codebook).into(),
            Some(partner) => sums(codebook(at.codebook), codebook(partner)).into(),
        };
        let gi = matrix.scheme().in_group_size;
        let columns = at.group * gi..(at.group + 1) * gi;
        let block = hessian.slice(s![columns.clone(), columns]);
        let forms = vectors.outer_iter().map(|c| quadratic_form(c, block)).collect();
        Self { at, vectors, forms }
    }

    /// The choice that the codes of the group, `[M]`, stand for.
    fn chosen(&self, codes: ArrayView1<'_, u16>, states: usize) -> usize {
        self.at
            .codebooks()
            .fold(0, |k, m| k * states + usize::from(codes[m]))
    }

    /// Writes the codes of choice k.
    fn choose(&self, mut codes: ArrayViewMut1<'_, u16>, states: usize, k: usize) {
        match self.at.partner {
            None => codes[self.at.codebook] = k as u16,
            Some(partner) => {
                codes[self.at.codebook] = (k / states) as u16;
                codes[partner] = (k % states) as u16;
            }
        }
    }
}

/// One sweep of beam search from the current codes of `matrix`; the result has the same shape.
///
/// For each output group, the search starts from its current codes. For each step of `order`, every
/// hypothesis is expanded by all 2^B codes of the step's codebook, or by all 2^(2B) pairs of codes of its two
/// codebooks, and the `beam` best distinct ones are kept. A hypothesis is among its own expansions, so the
/// loss never rises (beyond the rounding of f64) in any order. Positions absent from `order` keep their
/// codes. `beam` 1 is coordinate descent (iterated conditional modes).
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not fit;
/// `Argument` for a beam of 0 or an order with a position outside the matrix.
pub fn beam_search(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    order: &[Position],
    beam: usize,
) -> Result<Array3<u16>> {
    check_shapes(weight, hessian, matrix)?;
    let (_, in_groups, num_codebooks) = matrix.codes().dim();
    if beam == 0 {
        return Err(AqlmError::argument("beam", "at least 1 hypothesis", 0));
    }
    Position::check_order(order, in_groups, num_codebooks)?;
    let shared = Shared {
        hessian,
        matrix,
        steps: order
            .par_iter()
            .map(|&at| Step::new(hessian, matrix, at))
            .collect(),
    };
    let gradient = product((weight - &decode(matrix)).view(), hessian.view());
    let mut codes = matrix.codes().clone();
    if beam == 1 {
        coordinate_descent(&shared, &mut codes, gradient);
    } else {
        let go = matrix.scheme().out_group_size;
        codes
            .axis_iter_mut(Axis(0))
            .into_par_iter()
            .enumerate()
            .for_each(|(o, mut codes)| {
                let start = Hypothesis {
                    codes: codes.to_owned(),
                    gradient: gradient.slice(s![o * go..(o + 1) * go, ..]).to_owned(),
                    loss: 0.0,
                };
                codes.assign(&search_one(&shared, start, matrix.scales()[o], beam).codes);
            });
    }
    Ok(codes)
}

/// A codebook [2^B, go, gi] as [2^B, go gi].
fn flat(codebook: ArrayView3<'_, f64>) -> ArrayView2<'_, f64> {
    let (states, go, gi) = codebook.dim();
    codebook
        .into_shape_with_order((states, go * gi))
        .expect("standard layout: QuantizedMatrix keeps it")
}

/// <c B, c> summed over the rows of c, stored as [go gi].
fn quadratic_form(codeword: ArrayView1<'_, f64>, block: ArrayView2<'_, f64>) -> f64 {
    let gi = block.nrows();
    let mut form = 0.0;
    for row in codeword.exact_chunks(gi) {
        form += row.dot(&block.dot(&row));
    }
    form
}

/// c B for each row of c; argument and result are stored as [go gi].
fn times_block(codeword: ArrayView1<'_, f64>, block: ArrayView2<'_, f64>) -> Array1<f64> {
    let gi = block.nrows();
    let mut result = Array1::zeros(codeword.len());
    for (row, mut out) in codeword
        .exact_chunks(gi)
        .into_iter()
        .zip(result.exact_chunks_mut(gi))
    {
        // B is symmetric
        out.assign(&block.dot(&row));
    }
    result
}

/// Beam 1: takes the best choice at each step in turn, for many output groups at once.
fn coordinate_descent(shared: &Shared<'_>, codes: &mut Array3<u16>, mut gradient: Array2<f64>) {
    let go = shared.matrix.scheme().out_group_size;
    codes
        .axis_chunks_iter_mut(Axis(0), OUT_GROUP_BLOCK)
        .into_par_iter()
        .zip(gradient.axis_chunks_iter_mut(Axis(0), OUT_GROUP_BLOCK * go))
        .zip(shared.matrix.scales().axis_chunks_iter(Axis(0), OUT_GROUP_BLOCK))
        .for_each(|((mut codes, mut gradient), scales)| {
            // Between consecutive steps at one input group, only that group's columns of G are needed.
            for steps in shared.steps.chunk_by(|a, b| a.at.group == b.at.group) {
                descend_in_group(shared, &mut codes, &mut gradient, scales, steps);
            }
        });
}

/// Coordinate descent over `steps`, all of one input group, for a block of output groups. G is updated once,
/// at the end.
fn descend_in_group(
    shared: &Shared<'_>,
    codes: &mut ndarray::ArrayViewMut3<'_, u16>,
    gradient: &mut ArrayViewMut2<'_, f64>,
    scales: ArrayView1<'_, f64>,
    steps: &[Step<'_>],
) {
    let scheme = shared.matrix.scheme();
    let (go, gi, states) = (
        scheme.out_group_size,
        scheme.in_group_size,
        scheme.codebook_size(),
    );
    let Some(first) = steps.first() else { return };
    let j = first.at.group;
    let columns = j * gi..(j + 1) * gi;
    let block = shared.hessian.slice(s![columns.clone(), columns.clone()]);
    let mut local = Array2::from_shape_fn((scales.len(), go * gi), |(o, i)| {
        gradient[[o * go + i / gi, j * gi + i % gi]]
    });
    // change of Q in this input group
    let mut change = Array2::<f64>::zeros(local.raw_dim());
    for step in steps {
        let vectors = step.vectors.view();
        let old: Vec<usize> = codes
            .index_axis(Axis(1), j)
            .outer_iter()
            .map(|codes| step.chosen(codes, states))
            .collect();
        for ((mut u, &k), &scale) in local.outer_iter_mut().zip(&old).zip(scales) {
            u.scaled_add(scale, &times_block(vectors.row(k), block));
        }
        let mut scores = product(local.view(), vectors.t());
        for (o, (&scale, mut scores)) in scales.iter().zip(scores.outer_iter_mut()).enumerate() {
            scores.zip_mut_with(&step.forms, |product, form| {
                *product = scale * (scale * form - 2.0 * *product);
            });
            // The current choice stays unless another is strictly better.
            let new = match least(slice_of(&scores)) {
                Some((k, score)) if score < scores[old[o]] => k,
                _ => old[o],
            };
            step.choose(codes.slice_mut(s![o, j, ..]), states, new);
            let difference = &vectors.row(new) - &vectors.row(old[o]);
            change.row_mut(o).scaled_add(scale, &difference);
            local
                .row_mut(o)
                .scaled_add(-scale, &times_block(vectors.row(new), block));
        }
    }
    let change = Array2::from_shape_fn((gradient.nrows(), gi), |(r, b)| {
        change[[r / go, (r % go) * gi + b]]
    });
    *gradient -= &product(change.view(), shared.hessian.slice(s![columns, ..]));
}

/// One candidate coding of an output group.
#[derive(Clone)]
struct Hypothesis {
    /// [in_groups, M]
    codes: Array2<u16>,
    /// G = dW H of its rows, [go, in_features]
    gradient: Array2<f64>,
    /// loss minus the loss of the initial codes
    loss: f64,
}

/// The best hypothesis for one output group after a sweep that keeps `beam` hypotheses.
fn search_one(shared: &Shared<'_>, start: Hypothesis, scale: f64, beam: usize) -> Hypothesis {
    let scheme = shared.matrix.scheme();
    let (go, gi, states) = (
        scheme.out_group_size,
        scheme.in_group_size,
        scheme.codebook_size(),
    );
    let mut hypotheses = vec![start];
    for step in &shared.steps {
        let j = step.at.group;
        let columns = j * gi..(j + 1) * gi;
        let block = shared.hessian.slice(s![columns.clone(), columns.clone()]);
        let vectors = step.vectors.view();
        merge_equal_elsewhere(&mut hypotheses, step.at);

        // (loss, whether it changes the codes, parent, choice); this order breaks ties
        let mut candidates: Vec<(f64, bool, usize, usize)> =
            Vec::with_capacity(hypotheses.len() * vectors.nrows());
        let mut local = Array2::zeros((hypotheses.len(), go * gi));
        let old: Vec<usize> = hypotheses
            .iter()
            .map(|parent| step.chosen(parent.codes.row(j), states))
            .collect();
        for ((parent, mut u), &old) in hypotheses.iter().zip(local.outer_iter_mut()).zip(&old) {
            for (to, from) in u.iter_mut().zip(parent.gradient.slice(s![.., columns.clone()])) {
                *to = *from;
            }
            u.scaled_add(scale, &times_block(vectors.row(old), block));
        }
        let products = product(local.view(), vectors.t());
        for (p, parent) in hypotheses.iter().enumerate() {
            let score = |k: usize| scale * (scale * step.forms[k] - 2.0 * products[[p, k]]);
            let base = parent.loss - score(old[p]);
            candidates.extend((0..vectors.nrows()).map(|k| {
                // exactly the parent's loss if the codes do not change
                let loss = if k == old[p] { parent.loss } else { base + score(k) };
                (loss, k != old[p], p, k)
            }));
        }
        let by_loss = |a: &(f64, bool, usize, usize), b: &(f64, bool, usize, usize)| {
            a.0.total_cmp(&b.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3)))
        };
        if candidates.len() > beam {
            candidates.select_nth_unstable_by(beam - 1, by_loss);
            candidates.truncate(beam);
        }
        candidates.sort_unstable_by(by_loss);

        hypotheses = candidates
            .into_iter()
            .map(|(loss, changes, p, k)| {
                let mut child = hypotheses[p].clone();
                child.loss = loss;
                if changes {
                    step.choose(child.codes.row_mut(j), states, k);
                    let change = &vectors.row(k) - &vectors.row(old[p]);
                    for (i, &difference) in change.iter().enumerate() {
                        let row = shared.hessian.row(j * gi + i % gi);
                        child
                            .gradient
                            .row_mut(i / gi)
                            .scaled_add(-scale * difference, &row);
                    }
                }
                child
            })
            .collect();
    }
    hypotheses.swap_remove(0)
}

/// Keeps one of the hypotheses that differ at most where the step chooses, because their expansions there are
/// the same.
///
/// Such hypotheses arise only when an order visits a position twice.
fn merge_equal_elsewhere(hypotheses: &mut Vec<Hypothesis>, at: Position) {
    let mut kept: Vec<Hypothesis> = Vec::with_capacity(hypotheses.len());
    for hypothesis in hypotheses.drain(..) {
        let equal = |other: &Hypothesis| {
            let mut codes = hypothesis.codes.indexed_iter().zip(&other.codes);
            codes.all(|(((group, codebook), a), b)| {
                a == b || group == at.group && at.codebooks().any(|m| m == codebook)
            })
        };
        if !kept.iter().any(equal) {
            kept.push(hypothesis);
        }
    }
    *hypotheses = kept;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{Problem, config, problem, rounding};
    use crate::{Mrf, exhaustive_search, layer_error};
    use aqlm_vocabulary::{Purpose, stream, sweep_order};

    fn order_of(p: &Problem, seed: u64, pairs: bool) -> Vec<Position> {
        let mut rng = stream(seed, 0, None, Purpose::Sweep);
        sweep_order(
            &mut rng,
            p.matrix.groups().1,
            p.matrix.scheme().num_codebooks,
            pairs,
        )
    }

    fn loss_of(p: &Problem, codes: Array3<u16>) -> f64 {
        let matrix = p.matrix.clone().with_codes(codes).unwrap();
        layer_error(&p.weight, &decode(&matrix), &p.hessian)
    }

    fn loss_after(p: &Problem, order: &[Position], beam: usize) -> f64 {
        loss_of(
            p,
            beam_search(&p.weight, &p.hessian, &p.matrix, order, beam).unwrap(),
        )
    }

    const SCHEMES: [&str; 4] = ["2x3g4", "1x4g8", "3x2g2o3", "2x3g4o2"];

    proptest! {
        #![proptest_config(config(48))]
        #[test]
        fn the_loss_never_rises(
            seed: u64,
            beam in 1usize..6,
            scheme in prop::sample::select(SCHEMES.to_vec()),
            pairs: bool,
        ) {
            let p = problem(seed, scheme, 5, 4);
            let before = loss_of(&p, p.matrix.codes().clone());
            prop_assert!(loss_after(&p, &order_of(&p, seed, pairs), beam) <= before + rounding(&p));
        }

        #[test]
        fn it_never_beats_the_exhaustive_search_and_a_full_beam_equals_it(seed: u64, beam in 1usize..4, pairs: bool) {
            let p = problem(seed, "2x2g4", 2, 2);
            let mut best = 0.0;
            for o in 0..2 {
                let mrf = Mrf::new(&p.weight, &p.hessian, &p.matrix, o).unwrap();
                best += exhaustive_search(&mrf).unwrap().1 + mrf.constant;
            }
            let order = order_of(&p, seed, pairs);
            prop_assert!(loss_after(&p, &order, beam) >= best - rounding(&p));
            // a beam as wide as the number of combinations prunes nothing
            prop_assert!((loss_after(&p, &order, 256) - best).abs() <= rounding(&p));
        }

        #[test]
        fn one_hypothesis_is_coordinate_descent(
            seed: u64,
            scheme in prop::sample::select(SCHEMES.to_vec()),
            pairs: bool,
        ) {
            let p = problem(seed, scheme, 70, 4);
            let order = order_of(&p, seed, pairs);
            let fast = beam_search(&p.weight, &p.hessian, &p.matrix, &order, 1).unwrap();
            // direct computation: try every choice, evaluate the full loss, keep the best
            let o = seed as usize % 70;
            let states = p.matrix.scheme().codebook_size();
            let mut codes = p.matrix.codes().clone();
            for step in &order {
                let chosen = step.codebooks().map(|m| fast[[o, step.group, m]]).collect::<Vec<_>>();
                let choices = states.pow(chosen.len() as u32);
                let mut least = f64::INFINITY;
                for k in 0..choices {
                    for (m, code) in step.codebooks().zip([k % states, k / states]) {
                        codes[[o, step.group, m]] = code as u16;
                    }
                    least = least.min(loss_of(&p, codes.clone()));
                }
                for (m, code) in step.codebooks().zip(chosen) {
                    codes[[o, step.group, m]] = code;
                }
                prop_assert!(loss_of(&p, codes.clone()) <= least + rounding(&p));
            }
        }

        #[test]
        fn positions_outside_the_order_keep_their_codes(seed: u64, beam in 1usize..3) {
            let p = problem(seed, "2x3g4", 4, 3);
            let codes = beam_search(&p.weight, &p.hessian, &p.matrix, &[Position::single(1, 0); 3], beam).unwrap();
            for ((o, j, m), &code) in codes.indexed_iter() {
                prop_assert!((j, m) == (1, 0) || code == p.matrix.codes()[[o, j, m]]);
            }
        }
    }

    #[test]
    fn repeated_positions_leave_distinct_hypotheses() {
        // Two positions, each visited twice, with a full beam: all 16 combinations are alive, each once.
        let p = problem(9, "1x2g4", 1, 2);
        let order = [0, 1, 0, 1].map(|group| Position::single(group, 0));
        let mrf = Mrf::new(&p.weight, &p.hessian, &p.matrix, 0).unwrap();
        let best = exhaustive_search(&mrf).unwrap().1 + mrf.constant;
        assert!((loss_after(&p, &order, 16) - best).abs() <= rounding(&p));
    }

    #[test]
    fn pairs_reach_lower_losses_than_single_codes() {
        let mut logs = 0.0;
        for seed in 0..12 {
            let p = problem(seed, "2x3g4", 8, 6);
            let of = |pairs| loss_after(&p, &order_of(&p, seed, pairs), 1).ln();
            logs += of(true) - of(false);
        }
        assert!(logs < 0.0, "{logs}");
    }

    #[test]
    fn a_zero_hessian_changes_nothing() {
        let mut p = problem(2, "2x3g4", 4, 3);
        p.hessian.fill(0.0);
        for (beam, pairs) in [(1, false), (3, false), (1, true), (3, true)] {
            let order = order_of(&p, 1, pairs);
            let codes = beam_search(&p.weight, &p.hessian, &p.matrix, &order, beam).unwrap();
            assert_eq!(codes, p.matrix.codes());
        }
    }

    #[test]
    fn bad_arguments_are_refused() {
        let p = problem(2, "1x3g4", 4, 3);
        assert!(beam_search(&p.weight, &p.hessian, &p.matrix, &[], 0).is_err());
        assert!(beam_search(&p.weight, &p.hessian, &p.matrix, &[Position::single(3, 0)], 1).is_err());
        assert!(beam_search(&p.weight, &p.hessian, &p.matrix, &[Position::single(0, 1)], 1).is_err());
        assert!(beam_search(&p.hessian, &p.hessian, &p.matrix, &[], 1).is_err());
    }

    #[test]
    fn hypotheses_that_differ_only_where_codes_are_chosen_are_merged() {
        let p = problem(3, "2x3g4", 1, 3);
        let with = |changes: &[((usize, usize), u16)]| {
            let mut codes = p.matrix.codes().index_axis(Axis(0), 0).to_owned();
            for &(at, code) in changes {
                codes[at] = code;
            }
            codes
        };
        let here = (1, 0);
        let step = Position::single(1, 0);
        let all = [
            with(&[(here, 0)]),
            with(&[(here, 1), ((2, 1), 0)]),
            with(&[(here, 5)]),
            with(&[((2, 1), 1)]),
        ];
        let mut hypotheses: Vec<Hypothesis> = all
            .iter()
            .map(|codes| Hypothesis {
                codes: codes.clone(),
                gradient: Array2::zeros((1, 12)),
                loss: 0.0,
            })
            .collect();
        merge_equal_elsewhere(&mut hypotheses, step);
        // The first hypothesis of each set that agrees everywhere else. If the original code at (2, 1) is 0
        // or 1, one of the hypotheses with these codes is merged, too.
        let mut expected: Vec<usize> = Vec::new();
        for (i, codes) in all.iter().enumerate() {
            let same = |&k: &usize| {
                codes
                    .indexed_iter()
                    .all(|(at, code)| at == here || all[k][at] == *code)
            };
            if !expected.iter().any(same) {
                expected.push(i);
            }
        }
        let kept: Vec<_> = hypotheses.iter().map(|h| h.codes.clone()).collect();
        assert_eq!(kept, expected.iter().map(|&i| all[i].clone()).collect::<Vec<_>>());
        assert!(kept.len() < all.len() && kept.len() > 1);
    }
}
