use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut1, Axis, s};
use rayon::prelude::*;

use crate::layer_error::check_hessian;
use crate::least::{least, slice_of};
use crate::linalg::{Cholesky, product};
use crate::occurrences::Occurrences;
use crate::residual_init::{Fit, initialize};
use aqlm_vocabulary::{LayerSettings, QuantizedMatrix, Result, StreamKey};

/// Output-aware EM initialisation: residual k-means in which each codebook, before it is subtracted, is
/// refined under the metric that H gives to each group.
///
/// With x the residual of a group divided by its scale, the objective of one codebook is the layer error
/// without the blocks of H that couple input groups:
///
///   sum over groups (o, j) of s_o^2 <(x - c) H_jj, x - c>
///
/// Each of `rounds` rounds reassigns every group to its nearest codeword in that metric (E-step) and then
/// moves every codeword to its exact optimum (M-step). The M-step solves 2^B independent systems of
/// in_group_size unknowns,
///
///   (sum of s_o^2 H_jj) c = sum of s_o^2 H_jj x,
///
/// where the original takes 100 steps of Adam. Neither step can raise the objective. The rows of a group that
/// spans several outputs share the metric, so they are several right-hand sides of one system.
///
/// # Errors
/// `NotDivisible` when the weight cannot be cut into the scheme's groups, `Shape` when H is not
/// [in_features, in_features], `NotPositiveDefinite` when a block H_jj is indefinite.
pub fn em_init(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    settings: &LayerSettings,
    rounds: usize,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    check_hessian(hessian, weight.ncols())?;
    initialize(weight, settings, key, |fit, groups, scales| {
        for _ in 0..rounds {
            assign(fit, groups, hessian, settings.scheme.in_group_size);
            solve_codewords(fit, groups, hessian, scales, settings.scheme.in_group_size)?;
        }
        Ok(())
    })
}

/// E-step: the nearest codeword of each group in the metric H_jj. The current codeword stays unless another
/// is strictly nearer. Groups are [out_groups x in_groups, go gi], input groups fastest.
fn assign(fit: &mut Fit, groups: ArrayView2<'_, f64>, hessian: &Array2<f64>, gi: usize) {
    let in_groups = hessian.nrows() / gi;
    let codebook = &fit.codebook;
    let codes = &fit.codes;
    let columns: Vec<Vec<usize>> = (0..in_groups)
        .into_par_iter()
        .map(|j| {
            let block = block_of(hessian, j, gi);
            let transformed = rows_times_block(codebook.view(), block);
            let forms = (&transformed * codebook).sum_axis(Axis(1));
            let mut scores = product(groups.slice(s![j..;in_groups, ..]), transformed.t());
            let choose = |(o, mut scores): (usize, ArrayViewMut1<'_, f64>)| {
                scores.zip_mut_with(&forms, |product, form| *product = form - 2.0 * *product);
                let current = codes[o * in_groups + j];
                match least(slice_of(&scores)) {
                    Some((k, score)) if score < scores[current] => k,
                    _ => current,
                }
            };
            scores.outer_iter_mut().enumerate().map(choose).collect()
        })
        .collect();
    for (j, column) in columns.into_iter().enumerate() {
        for (o, code) in column.into_iter().enumerate() {
            fit.codes[o * in_groups + j] = code;
        }
    }
}

/// M-step: moves every codeword to the minimum of its own groups' objective. Codewords that no group uses
/// stay.
fn solve_codewords(
    fit: &mut Fit,
    groups: ArrayView2<'_, f64>,
    hessian: &Array2<f64>,
    scales: &Array1<f64>,
    gi: usize,
) -> Result<()> {
    let in_groups = hessian.nrows() / gi;
    let codes = Array2::from_shape_fn((scales.len(), in_groups), |(o, j)| {
        fit.codes[o * in_groups + j] as u16
    });
    let occurrences = Occurrences::new(codes.view(), fit.codebook.nrows());
    fit.codebook
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .enumerate()
        .try_for_each(|(k, mut codeword)| {
            let metric = occurrences.metric(k, scales, hessian, gi);
            if metric.diag().iter().all(|&x| x == 0.0) {
                return Ok(());
            }
            // Solved for the change, so that a metric made definite by a jitter still gives a descent step.
            let rows = codeword.len() / gi;
            let mut gradient = Array2::zeros((gi, rows));
            for &(o, j) in occurrences.of(k) {
                let block = block_of(hessian, j, gi);
                let error = &groups.row(o * in_groups + j) - &codeword;
                for (error, mut gradient) in error.exact_chunks(gi).into_iter().zip(gradient.columns_mut()) {
                    gradient.scaled_add(scales[o] * scales[o], &block.dot(&error));
                }
            }
            let change =
                Cholesky::semidefinite(metric.view(), "metric of a codeword")?.solve(gradient.view());
            for (mut row, change) in codeword.exact_chunks_mut(gi).into_iter().zip(change.columns()) {
                row += &change;
            }
            Ok(())
        })
}

/// H_jj, [gi, gi].
fn block_of(hessian: &Array2<f64>, j: usize, gi: usize) -> ArrayView2<'_, f64> {
    hessian.slice(s![j * gi..(j + 1) * gi, j * gi..(j + 1) * gi])
}

/// c H_jj for each row c of each codeword [2^B, go gi].
fn rows_times_block(codebook: ArrayView2<'_, f64>, block: ArrayView2<'_, f64>) -> Array2<f64> {
    let gi = block.nrows();
    let mut result = Array2::zeros(codebook.raw_dim());
    for (codeword, mut out) in codebook.outer_iter().zip(result.outer_iter_mut()) {
        for (row, mut out) in codeword
            .exact_chunks(gi)
            .into_iter()
            .zip(out.exact_chunks_mut(gi))
        {
            out.assign(&block.dot(&row));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{config, problem, settings};
    use crate::{decode, residual_init};

    const KEY: StreamKey = StreamKey {
        seed: 2,
        block: 1,
        layer: None,
    };

    /// The objective of one codebook, evaluated from its definition.
    fn objective(
        fit: &Fit,
        groups: ArrayView2<'_, f64>,
        hessian: &Array2<f64>,
        scales: &Array1<f64>,
        gi: usize,
    ) -> f64 {
        let in_groups = hessian.nrows() / gi;
        let mut total = 0.0;
        for (i, (group, &code)) in groups.outer_iter().zip(&fit.codes).enumerate() {
            let block = block_of(hessian, i % in_groups, gi);
            let error = &group - &fit.codebook.row(code);
            for row in error.exact_chunks(gi) {
                total += scales[i / in_groups].powi(2) * row.dot(&block.dot(&row));
            }
        }
        total
    }

    proptest! {
        #![proptest_config(config(32))]
        #[test]
        fn neither_step_raises_the_objective(seed: u64, scheme in prop::sample::select(vec!["1x3g4", "1x4g8", "1x3g4o2"])) {
            let p = problem(seed, scheme, 12, 4);
            let gi = p.matrix.scheme().in_group_size;
            initialize(&p.weight, &settings(scheme), KEY, |fit, groups, scales| {
                let start = objective(fit, groups, &p.hessian, scales, gi);
                // The objective is a sum of 96 quadratic forms. A choice between codewords subtracts terms of
                // the size of the initial objective.
                let slack = 96.0 * 16.0 * f64::EPSILON * start;
                let mut last = start;
                for _ in 0..4 {
                    assign(fit, groups, &p.hessian, gi);
                    let assigned = objective(fit, groups, &p.hessian, scales, gi);
                    assert!(assigned <= last + slack, "assignment: {assigned} after {last}");
                    solve_codewords(fit, groups, &p.hessian, scales, gi)?;
                    last = objective(fit, groups, &p.hessian, scales, gi);
                    assert!(last <= assigned + slack, "codewords: {last} after {assigned}");
                }
                assert!(last < start);
                Ok(())
            }).unwrap();
        }

        #[test]
        fn codewords_are_stationary_after_the_m_step(seed: u64) {
            let p = problem(seed, "1x2g4o2", 12, 4);
            initialize(&p.weight, &settings("1x2g4o2"), KEY, |fit, groups, scales| {
                solve_codewords(fit, groups, &p.hessian, scales, 4)?;
                let best = objective(fit, groups, &p.hessian, scales, 4);
                for k in 0..4 {
                    for i in 0..8 {
                        // Along one coordinate the objective is a parabola whose minimum must be at this
                        // point.
                        let mut at = |step: f64| {
                            fit.codebook[[k, i]] += step;
                            let value = objective(fit, groups, &p.hessian, scales, 4);
                            fit.codebook[[k, i]] -= step;
                            value
                        };
                        let slope = (at(0.5) - at(-0.5)).abs();
                        assert!(slope <= 1e3 * f64::EPSILON * (at(0.5) + best), "slope {slope}");
                    }
                }
                Ok(())
            }).unwrap();
        }
    }

    #[test]
    fn no_rounds_are_residual_kmeans() {
        let p = problem(4, "2x3g4", 8, 4);
        let plain = residual_init(&p.weight, &settings("2x3g4"), KEY).unwrap();
        assert_eq!(
            em_init(&p.weight, &p.hessian, &settings("2x3g4"), 0, KEY).unwrap(),
            plain
        );
    }

    #[test]
    fn zero_rows_and_dead_inputs_stay_finite() {
        let mut p = problem(4, "2x2g4", 8, 4);
        p.weight.row_mut(3).fill(0.0);
        for i in 0..6 {
            p.hessian.row_mut(i).fill(0.0);
            p.hessian.column_mut(i).fill(0.0);
        }
        let matrix = em_init(&p.weight, &p.hessian, &settings("2x2g4"), 3, KEY).unwrap();
        assert!(decode(&matrix).iter().all(|x| x.is_finite()));
        p.hessian.fill(0.0);
        assert!(em_init(&p.weight, &p.hessian, &settings("2x2g4"), 3, KEY).is_ok());
    }
}
