mod choices;
mod factor;
mod search;

use aqlm_vocabulary::{
    AqlmError, FeedbackSettings, GroupOrder, LayerSettings, Purpose, QuantizedMatrix, Result, StreamKey,
    sample_distinct,
};
use ndarray::{Array1, Array2, Array3, Array4};
use rayon::prelude::*;

use super::codebook_update::{Stop, update_trial};
use super::problem::Problem;
use super::residual_init::residual_init;
use super::trial::Trial;

pub(super) use factor::Factor;
pub(crate) use factor::groups_in_order;

/// Rounds of (joint assignment, means) that fit the first codebooks to the weight's groups.
const FIT_ROUNDS: usize = 10;

/// Most groups that take part in a round.
const FIT_GROUPS: usize = 1 << 15;

/// Groups that one task assigns.
const POINTS: usize = 256;

/// Initial codes and codebooks by error feedback: codebooks of residual k-means are fitted jointly, then each
/// of `feedback.passes` passes is a [`feedback_search`], with `settings.update` between two passes. The
/// result is the state with the least layer error.
///
/// # Errors
/// `NotDivisible` when the weight cannot be cut into the scheme's groups, `Shape` when H is not
/// [in_features, in_features], `NotPositiveDefinite` when H is indefinite, `Argument` for no hypotheses or no
/// passes.
pub fn feedback_init(
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    settings: &LayerSettings,
    feedback: &FeedbackSettings,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    let problem = Problem::new(weight, hessian)?;
    settings.scheme.groups(weight.nrows(), weight.ncols())?;
    let factor = Factor::new(hessian, settings.scheme.in_group_size, feedback.order)?;
    Ok(initialize(&problem, &factor, settings, feedback, key)?.matrix)
}

/// [`feedback_init`] given the factor of H.
pub(super) fn initialize(
    problem: &Problem,
    factor: &Factor,
    settings: &LayerSettings,
    feedback: &FeedbackSettings,
    key: StreamKey,
) -> Result<Trial> {
    check(feedback.hypotheses)?;
    if feedback.passes == 0 {
        return Err(AqlmError::argument("passes", "at least 1 pass", 0));
    }
    let first = fit_jointly(
        &problem.weight,
        residual_init(&problem.weight, settings, key)?,
        key,
    )?;
    let searched = |matrix: QuantizedMatrix| -> Result<Trial> {
        let (codes, _) = search::search(&problem.weight, factor, &matrix, feedback.hypotheses);
        Ok(Trial::new(problem, matrix.with_codes(codes)?))
    };
    let mut trial = searched(first)?;
    let mut best = trial.clone();
    let consider = |trial: &Trial, best: &mut Trial| {
        if trial.loss < best.loss {
            *best = trial.clone();
        }
    };
    for _ in 1..feedback.passes {
        trial = update_trial(problem, trial, &settings.update, Stop::ALTERNATION)?;
        consider(&trial, &mut best);
        trial = searched(trial.matrix)?;
        consider(&trial, &mut best);
    }
    Ok(best)
}

/// Codes for the codebooks and scales of `matrix` by a tree search with error feedback, and the layer error
/// of each output group, `[out_groups]`.
///
/// H = L L^T turns the layer error into a sum over input groups j of |t_j - q_j L_jj|^2, where the target
/// t_j = w_j L_jj + sum over i > j of e_i L_ij depends on groups behind j only. Groups are decided from the
/// last to the first in the factor's order; the best `hypotheses` partial codings of an output group survive
/// each group. Pairs of codebooks are searched jointly, over all sums of two codewords, up to 2^16 of them.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not match,
/// `NotPositiveDefinite` when H is indefinite, `Argument` for no hypotheses.
pub fn feedback_search(
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    hypotheses: usize,
    order: GroupOrder,
) -> Result<(Array3<u16>, Array1<f64>)> {
    check(hypotheses)?;
    let problem = Problem::new(weight, hessian)?;
    problem.check(matrix)?;
    let factor = Factor::new(hessian, matrix.scheme().in_group_size, order)?;
    let (codes, losses) = search::search(&problem.weight, &factor, matrix, hypotheses);
    Ok((codes, Array1::from(losses)))
}

/// # Errors
/// `Argument` for no hypotheses, or more than an index of 16 bits can tell apart.
fn check(hypotheses: usize) -> Result<()> {
    if (1..=usize::from(u16::MAX)).contains(&hypotheses) {
        return Ok(());
    }
    Err(AqlmError::argument(
        "hypotheses",
        "1 to 65535 hypotheses",
        hypotheses,
    ))
}

/// Codebooks fitted to the weight's normalised groups together: rounds of assigning every group its nearest
/// sum and moving each codebook's codewords to the means of what the other codebooks leave. Codewords that no
/// group uses stay.
fn fit_jointly(weight: &Array2<f32>, matrix: QuantizedMatrix, key: StreamKey) -> Result<QuantizedMatrix> {
    let scheme = matrix.scheme();
    if scheme.num_codebooks == 1 {
        return Ok(matrix);
    }
    let (go, gi, len) = (scheme.out_group_size, scheme.in_group_size, scheme.group_len());
    let (out_groups, in_groups) = matrix.groups();
    let mut rng = key.stream(Purpose::Initialization);
    let sample = sample_distinct(&mut rng, out_groups * in_groups, FIT_GROUPS);
    let mut groups = Vec::with_capacity(sample.len() * len);
    for group in sample {
        let (o, j) = (group / in_groups, group % in_groups);
        let scale = matrix.scales()[o];
        for a in 0..go {
            for i in 0..gi {
                groups.push((f64::from(weight[[o * go + a, j * gi + i]]) / scale) as f32);
            }
        }
    }
    let mut codebooks = search::narrow(&matrix);
    for _ in 0..FIT_ROUNDS {
        let stages = search::stages(&codebooks, scheme, &search::identity(gi));
        let codes: Vec<u16> = groups
            .par_chunks(POINTS * len)
            .flat_map(|groups| choices::nearest_sums(groups, len, &stages))
            .collect();
        for m in 0..codebooks.len() {
            move_to_means(&mut codebooks, m, &groups, &codes, len);
        }
    }
    let shape = matrix.codebooks().raw_dim();
    let codebooks = codebooks.into_iter().flatten().map(f64::from).collect();
    let codebooks = Array4::from_shape_vec(shape, codebooks).expect("the fit keeps the number of codewords");
    matrix.with_codebooks(codebooks)
}

/// Moves the codewords of codebook m to the means of what the other codebooks leave of their groups.
fn move_to_means(codebooks: &mut [Vec<f32>], m: usize, groups: &[f32], codes: &[u16], len: usize) {
    let num_codebooks = codebooks.len();
    let mut sums = vec![0.0f64; codebooks[m].len()];
    let mut counts = vec![0.0f64; codebooks[m].len() / len];
    for (group, codes) in groups.chunks_exact(len).zip(codes.chunks_exact(num_codebooks)) {
        let k = usize::from(codes[m]);
        counts[k] += 1.0;
        for (i, (sum, x)) in sums[k * len..][..len].iter_mut().zip(group).enumerate() {
            let mut left = f64::from(*x);
            for (other, &code) in codes.iter().enumerate() {
                if other != m {
                    left -= f64::from(codebooks[other][usize::from(code) * len + i]);
                }
            }
            *sum += left;
        }
    }
    let means = sums.chunks_exact(len).zip(counts);
    for (codeword, (sums, count)) in codebooks[m].chunks_exact_mut(len).zip(means) {
        if count > 0.0 {
            for (c, sum) in codeword.iter_mut().zip(sums) {
                *c = (sum / count) as f32;
            }
        }
    }
}
