use aqlm_vocabulary::{LayerSettings, QuantizedMatrix, Result, StreamKey};
use ndarray::Array2;
use rayon::prelude::*;

use super::codewords::Codewords;
use super::places::Places;
use super::problem::check_hessian;
use super::residual_init::{Fit, initialize};
use super::small_solve::SmallCholesky;

/// Output-aware EM initialisation: residual k-means in which each codebook is refined before the next
/// codebook fits the residual. The metric of the refinement is the one that the layer's outputs induce on the
/// groups.
///
/// With x the residual of a group over its scale, the objective of one codebook is sum over groups (o, j) of
/// s_o^2 <(x - c) H_jj, x - c>. Each of `rounds` rounds reassigns every group to its nearest codeword in that
/// metric (E-step) and then moves every codeword to its exact optimum (M-step): 2^B systems of in_group_size
/// unknowns, (sum of s_o^2 H_jj) c = sum of s_o^2 H_jj x, in f64.
///
/// # Errors
/// `NotDivisible` when the weight cannot be cut into the scheme's groups, `Shape` when H is not
/// [in_features, in_features], `NotPositiveDefinite` when a block H_jj is indefinite.
pub fn em_init(
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    settings: &LayerSettings,
    rounds: usize,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    check_hessian(hessian, weight.ncols())?;
    let blocks = diagonal_blocks(hessian, settings.scheme.in_group_size);
    em_init_of_blocks(weight, &blocks, settings, rounds, key)
}

/// [`em_init`] given the blocks H_jj, the only part of H that it reads.
pub(super) fn em_init_of_blocks(
    weight: &Array2<f32>,
    blocks: &[Vec<f64>],
    settings: &LayerSettings,
    rounds: usize,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    let gi = settings.scheme.in_group_size;
    initialize(weight, settings, key, |fit, groups, scales| {
        for _ in 0..rounds {
            assign(fit, groups, blocks, gi);
            solve_codewords(fit, groups, blocks, scales, gi)?;
        }
        Ok(())
    })
}

/// H_jj for every input group, `[in_groups]`[gi gi].
pub(crate) fn diagonal_blocks(hessian: &Array2<f64>, gi: usize) -> Vec<Vec<f64>> {
    (0..hessian.nrows() / gi)
        .map(|j| {
            let columns = j * gi..(j + 1) * gi;
            hessian
                .slice(ndarray::s![columns.clone(), columns])
                .iter()
                .copied()
                .collect()
        })
        .collect()
}

/// E-step: the nearest codeword of each group in the metric H_jj. A group keeps its codeword unless another
/// is strictly nearer.
fn assign(fit: &mut Fit, groups: &[f32], blocks: &[Vec<f64>], gi: usize) {
    let len = groups.len() / fit.codes.len();
    let in_groups = blocks.len();
    let out_groups = fit.codes.len() / in_groups;
    let codewords = Codewords::new(fit.codebook.clone(), len);
    let codes = &fit.codes;
    let columns: Vec<Vec<u32>> = blocks
        .par_iter()
        .enumerate()
        .map(|(j, block)| {
            let block: Vec<f32> = block.iter().map(|&h| h as f32).collect();
            let mut forms = vec![0.0; codewords.padded()];
            codewords.forms(&block, gi, &mut forms);
            let mut vectors = Vec::with_capacity(out_groups * len);
            for o in 0..out_groups {
                for row in groups[(o * in_groups + j) * len..][..len].chunks_exact(gi) {
                    for h in block.chunks_exact(gi) {
                        let product: f32 = h.iter().zip(row).map(|(h, x)| h * x).sum();
                        vectors.push(-2.0 * product);
                    }
                }
            }
            let mut found = Vec::new();
            codewords.nearest(&forms, &vectors, &vec![1.0; out_groups], &mut found);
            found
                .iter()
                .enumerate()
                .map(|(o, nearest)| {
                    let current = codes[o * in_groups + j];
                    let vector = &vectors[o * len..][..len];
                    if nearest.score < codewords.score(current as usize, &forms, vector, 1.0) {
                        nearest.code
                    } else {
                        current
                    }
                })
                .collect()
        })
        .collect();
    for (j, column) in columns.into_iter().enumerate() {
        for (o, code) in column.into_iter().enumerate() {
            fit.codes[o * in_groups + j] = code;
        }
    }
}

/// M-step: moves every codeword to the minimum of its groups' objective. Unused codewords stay.
fn solve_codewords(
    fit: &mut Fit,
    groups: &[f32],
    blocks: &[Vec<f64>],
    scales: &[f64],
    gi: usize,
) -> Result<()> {
    let len = groups.len() / fit.codes.len();
    let in_groups = blocks.len();
    let codes: Vec<u16> = fit.codes.iter().map(|&code| code as u16).collect();
    let places = Places::new(&codes, in_groups, 1, fit.codebook.len() / len);
    fit.codebook.par_chunks_mut(len).enumerate().try_for_each_init(
        || (vec![0.0f64; in_groups], vec![0.0f64; in_groups * len]),
        |(weights, errors), (k, codeword)| {
            // sums of s^2 and of s^2 (x - c) for each input group, so that H_jj is used once a group
            weights.fill(0.0);
            errors.fill(0.0);
            for (o, j) in places.of_codeword(0, k) {
                let weight = scales[o] * scales[o];
                weights[j] += weight;
                let group = &groups[(o * in_groups + j) * len..][..len];
                for ((error, x), c) in errors[j * len..][..len].iter_mut().zip(group).zip(&*codeword) {
                    *error += weight * (f64::from(*x) - f64::from(*c));
                }
            }
            let (metric, mut change) = system(weights, errors, blocks, gi, len);
            if (0..gi).all(|i| metric[i * (gi + 1)] == 0.0) {
                return Ok(());
            }
            // Solved for the change, so that even a metric made definite by a jitter gives a downhill step.
            let factor = SmallCholesky::new(&metric, gi, "metric of a codeword")?;
            for (row, change) in codeword.chunks_exact_mut(gi).zip(change.chunks_exact_mut(gi)) {
                factor.solve(change);
                for (c, change) in row.iter_mut().zip(change) {
                    *c = (f64::from(*c) + *change) as f32;
                }
            }
            Ok(())
        },
    )
}

/// (sum of w_j H_jj, sum of H_jj e_j for each row of a codeword).
fn system(
    weights: &[f64],
    errors: &[f64],
    blocks: &[Vec<f64>],
    gi: usize,
    len: usize,
) -> (Vec<f64>, Vec<f64>) {
    let mut metric = vec![0.0; gi * gi];
    let mut gradient = vec![0.0; len];
    for ((&weight, errors), block) in weights.iter().zip(errors.chunks_exact(len)).zip(blocks) {
        if weight == 0.0 {
            continue;
        }
        for (sum, h) in metric.iter_mut().zip(block) {
            *sum += weight * h;
        }
        for (gradient, error) in gradient.chunks_exact_mut(gi).zip(errors.chunks_exact(gi)) {
            for (sum, h) in gradient.iter_mut().zip(block.chunks_exact(gi)) {
                *sum += h.iter().zip(error).map(|(h, e)| h * e).sum::<f64>();
            }
        }
    }
    (metric, gradient)
}
