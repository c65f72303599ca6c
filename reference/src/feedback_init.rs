use std::ops::Range;

use ndarray::{Array1, Array2, Array3, Array4, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::codebook_update::update;
use crate::decode;
use crate::layer_error::{check_shapes, layer_error};
use crate::linalg::{Cholesky, product};
use crate::residual_init::residual_init;
use crate::sums::sums;
use aqlm_vocabulary::{
    AqlmError, FeedbackSettings, GroupOrder, LayerSettings, Purpose, QuantizedMatrix, Result, Scheme,
    StreamKey, sample_distinct,
};

/// Choices of a group's first codebooks that are kept while its other codebooks are undecided.
const PARTIAL: usize = 16;

/// Rounds of (joint assignment, means) that fit the first codebooks to the weight's groups.
const FIT_ROUNDS: usize = 10;

/// Most groups that take part in a round.
const FIT_GROUPS: usize = 1 << 15;

/// Initial codes and codebooks by error feedback. Codebooks come from residual k-means and are then fitted
/// jointly. Each of `feedback.passes` passes is a [`feedback_search`]; between two passes
/// `settings.update` moves codebooks and scales. The result is the state with the least layer error of all.
///
/// # Errors
/// `NotDivisible` when the weight cannot be cut into the scheme's groups, `Shape` when H is not
/// [in_features, in_features], `NotPositiveDefinite` when H is indefinite, `Argument` for no hypotheses or no
/// passes.
pub fn feedback_init(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    settings: &LayerSettings,
    feedback: &FeedbackSettings,
    key: StreamKey,
) -> Result<QuantizedMatrix> {
    if feedback.passes == 0 {
        return Err(AqlmError::argument("passes", "at least 1 pass", 0));
    }
    let mut matrix = fit_jointly(weight, residual_init(weight, settings, key)?, key)?;
    check_shapes(weight, hessian, &matrix)?;
    let factor = Factor::new(hessian, settings.scheme.in_group_size, feedback.order)?;
    let mut best: Option<(f64, QuantizedMatrix)> = None;
    let mut consider = |loss: f64, matrix: &QuantizedMatrix| {
        if best.as_ref().is_none_or(|(least, _)| loss < *least) {
            best = Some((loss, matrix.clone()));
        }
    };
    for pass in 0..feedback.passes {
        if pass > 0 {
            matrix = update(weight, hessian, &matrix, &settings.update)?;
            consider(layer_error(weight, &decode(&matrix), hessian), &matrix);
        }
        let (codes, losses) = search(weight, &factor, &matrix, feedback.hypotheses)?;
        matrix = matrix.with_codes(codes)?;
        consider(losses.sum(), &matrix);
    }
    Ok(best.map_or(matrix, |(_, matrix)| matrix))
}

/// Codes for the codebooks and scales of `matrix`, and the layer error of each output group,
/// `[out_groups]`. The codes of `matrix` are not used.
///
/// With H = L L^T, L lower triangular, and E = W - Q, the layer error of a row e of E is the sum over input
/// groups j of |(e L)_j|^2, where
///
///   (e L)_j = e_j L_jj + sum over i > j of e_i L_ij
///
/// depends only on groups from j on. So input groups are decided from the last to the first, and the part of
/// the loss that later decisions cannot change is known exactly. Group j minimises |t_j - q_j L_jj|^2, with
/// t_j = w_j L_jj + sum over i > j of e_i L_ij: its target under its metric, both known from the groups
/// behind it. The best `hypotheses` partial codings of an output group survive each input group. One
/// hypothesis is rounding with error feedback (GPTQ with vectors); all of them are the exhaustive search of
/// the [`Mrf`](crate::Mrf).
///
/// Pairs of codebooks are searched jointly, over all sums of two codewords, up to 2^16 of them. Other
/// codebooks are decided one after the other, and at least 16 choices of the first ones are kept.
///
/// `order` permutes the input groups before H is factored.
///
/// # Errors
/// `Shape` when weight, H and matrix do not fit, `NotPositiveDefinite` when H is indefinite, `Argument` for
/// no hypotheses.
pub fn feedback_search(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    hypotheses: usize,
    order: GroupOrder,
) -> Result<(Array3<u16>, Array1<f64>)> {
    check_shapes(weight, hessian, matrix)?;
    let factor = Factor::new(hessian, matrix.scheme().in_group_size, order)?;
    search(weight, &factor, matrix, hypotheses)
}

/// H with its input groups permuted, factored.
struct Factor {
    /// the input groups; the last one is decided first
    order: Vec<usize>,
    /// L, [in_features, in_features]
    lower: Array2<f64>,
}

impl Factor {
    fn new(hessian: &Array2<f64>, gi: usize, order: GroupOrder) -> Result<Self> {
        let order = groups_in_order(hessian, gi, order)?;
        let columns: Vec<usize> = order.iter().flat_map(|&j| j * gi..(j + 1) * gi).collect();
        let permuted = hessian.select(Axis(0), &columns).select(Axis(1), &columns);
        let lower = if permuted.diag().iter().all(|&x| x == 0.0) {
            Array2::zeros(permuted.dim())
        } else {
            Cholesky::new(permuted.view(), 0.0, "hessian")?.lower()
        };
        Ok(Self { order, lower })
    }
}

/// The input groups; the last one is decided first. Among equals the higher index is decided first.
fn groups_in_order(hessian: &Array2<f64>, gi: usize, order: GroupOrder) -> Result<Vec<usize>> {
    let mut groups: Vec<usize> = (0..hessian.nrows() / gi).collect();
    match order {
        GroupOrder::Natural => {}
        GroupOrder::Diagonal => {
            let trace = |j: usize| hessian.diag().slice(s![j * gi..(j + 1) * gi]).sum();
            groups.sort_by(|&a, &b| f64::total_cmp(&trace(a), &trace(b)));
        }
        GroupOrder::Variance => groups = by_conditional_variance(hessian, gi)?,
    }
    Ok(groups)
}

/// The input groups, the last of which has the largest conditional variance given all others, the one before
/// it the largest given all but the last, and so on. With P the inverse of H restricted to the undecided
/// groups, the conditional covariance of group j is the inverse of P_jj; its size is its determinant.
///
/// H is [`ridged`] first: P loses as many digits to its updates as H's condition number has.
fn by_conditional_variance(hessian: &Array2<f64>, gi: usize) -> Result<Vec<usize>> {
    let n = hessian.nrows();
    if hessian.diag().iter().all(|&x| x == 0.0) {
        return Ok((0..n / gi).collect());
    }
    let factor = Cholesky::new(ridged(hessian).view(), 0.0, "hessian")?;
    let mut inverse = factor.solve(Array2::eye(n).view());
    let mut undecided: Vec<usize> = (0..n / gi).collect();
    let mut decided = Vec::with_capacity(n / gi);
    while !undecided.is_empty() {
        let mut first = (f64::INFINITY, 0);
        for (at, &j) in undecided.iter().enumerate() {
            let block = inverse.slice(s![j * gi..(j + 1) * gi, j * gi..(j + 1) * gi]);
            let lower = Cholesky::semidefinite(block, "inverse of the hessian")?.lower();
            let volume: f64 = lower.diag().iter().map(|x| x.ln()).sum();
            if volume <= first.0 {
                first = (volume, at);
            }
        }
        let j = undecided.remove(first.1);
        decided.push(j);
        let columns = inverse.slice(s![.., j * gi..(j + 1) * gi]).to_owned();
        let block = columns.slice(s![j * gi..(j + 1) * gi, ..]);
        let solved = Cholesky::semidefinite(block, "inverse of the hessian")?.solve(columns.t());
        inverse -= &product(columns.view(), solved.view());
    }
    decided.reverse();
    Ok(decided)
}

/// H + sqrt(epsilon) x the largest diagonal entry x I, which leaves half of the digits.
fn ridged(hessian: &Array2<f64>) -> Array2<f64> {
    let largest = hessian.diag().iter().fold(0.0, |top: f64, x| top.max(x.abs()));
    let mut ridged = hessian.clone();
    ridged
        .diag_mut()
        .mapv_inplace(|x| x + f64::EPSILON.sqrt() * largest);
    ridged
}

/// One of the best codings of an output group's decided input groups.
#[derive(Clone)]
struct Hypothesis {
    /// the part of the layer error that is known
    loss: f64,
    /// E of the decided groups, [go, in_features] in the order of the factor; zero elsewhere
    error: Array2<f64>,
    /// [in_groups, M]
    codes: Array2<u16>,
}

fn search(
    weight: &Array2<f64>,
    factor: &Factor,
    matrix: &QuantizedMatrix,
    hypotheses: usize,
) -> Result<(Array3<u16>, Array1<f64>)> {
    if hypotheses == 0 {
        return Err(AqlmError::argument("hypotheses", "at least 1 hypothesis", 0));
    }
    let scheme = matrix.scheme();
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let (out_groups, in_groups) = matrix.groups();
    let start = Hypothesis {
        loss: 0.0,
        error: Array2::zeros((go, weight.ncols())),
        codes: Array2::zeros((in_groups, scheme.num_codebooks)),
    };
    let mut beams = vec![vec![start]; out_groups];
    for (place, &j) in factor.order.iter().enumerate().rev() {
        let own = place * gi..(place + 1) * gi;
        let metric = factor.lower.slice(s![own.clone(), own.clone()]);
        let behind = factor.lower.slice(s![own.end.., own.clone()]);
        let stages = Stage::all(matrix.codebooks(), scheme, metric);
        beams.par_iter_mut().enumerate().for_each(|(o, beam)| {
            let group = weight.slice(s![o * go..(o + 1) * go, j * gi..(j + 1) * gi]);
            let scale = matrix.scales()[o];
            let starts = beam.iter().enumerate().map(|(parent, hypothesis)| Choice {
                base: hypothesis.loss,
                loss: hypothesis.loss,
                parent,
                left: (group.dot(&metric) + hypothesis.error.slice(s![.., own.end..]).dot(&behind))
                    .into_iter()
                    .collect(),
                codes: Vec::new(),
            });
            let choices = choose(starts.collect(), &stages, scale, hypotheses);
            *beam = choices
                .into_iter()
                .map(|choice| {
                    let mut next = beam[choice.parent].clone();
                    next.loss = choice.loss;
                    let mut error = next.error.slice_mut(s![.., own.clone()]);
                    error.assign(&group);
                    for (m, &code) in choice.codes.iter().enumerate() {
                        error.scaled_add(
                            -scale,
                            &matrix.codebooks().slice(s![m, usize::from(code), .., ..]),
                        );
                    }
                    next.codes.row_mut(j).assign(&Array1::from(choice.codes));
                    next
                })
                .collect();
        });
    }
    let mut codes = Array3::zeros((out_groups, in_groups, scheme.num_codebooks));
    for (mut codes, beam) in codes.outer_iter_mut().zip(&beams) {
        codes.assign(&beam[0].codes);
    }
    Ok((codes, beams.iter().map(|beam| beam[0].loss).collect()))
}

/// The codebooks that one step decides: one, or two jointly.
struct Stage {
    states: usize,
    count: usize,
    /// their codewords, or all sums of two with the second codebook's code fastest; each row times L_jj,
    /// [2^B or 2^2B, go gi]
    vectors: Array2<f64>,
}

impl Stage {
    /// All stages of a scheme, for codebooks [M, 2^B, go, gi] and L_jj.
    fn all(codebooks: &Array4<f64>, scheme: Scheme, lower: ArrayView2<'_, f64>) -> Vec<Self> {
        let states = scheme.codebook_size();
        let transformed = |m: usize| {
            let rows: Vec<f64> = codebooks
                .index_axis(Axis(0), m)
                .outer_iter()
                .flat_map(|codeword| codeword.dot(&lower))
                .collect();
            Array2::from_shape_vec((states, scheme.group_len()), rows)
                .expect("a codeword times L_jj has the shape of a codeword")
        };
        stages(scheme)
            .into_iter()
            .map(|codebooks| {
                let count = codebooks.len();
                let vectors = codebooks.map(transformed).reduce(|a, b| sums(a.view(), b.view()));
                Self {
                    states,
                    count,
                    vectors: vectors.expect("a stage has a codebook"),
                }
            })
            .collect()
    }
}

/// Pairs of codebooks while their sums fit, then single codebooks.
fn stages(scheme: Scheme) -> Vec<Range<usize>> {
    let step = if scheme.sums_fit() { 2 } else { 1 };
    let count = scheme.num_codebooks;
    (0..count).step_by(step).map(|m| m..count.min(m + step)).collect()
}

/// A choice of codes for one group, perhaps of its first codebooks only.
#[derive(Clone)]
struct Choice {
    /// loss of the hypothesis before this group
    base: f64,
    /// loss with this choice
    loss: f64,
    parent: usize,
    /// what the chosen codewords leave of the target
    left: Array1<f64>,
    codes: Vec<u16>,
}

/// The `keep` best complete choices, best first. Among equals the earlier choice and the lower codes win.
fn choose(mut choices: Vec<Choice>, stages: &[Stage], scale: f64, keep: usize) -> Vec<Choice> {
    for (step, stage) in stages.iter().enumerate() {
        let last = step + 1 == stages.len();
        let keep = if last { keep } else { keep.max(PARTIAL) };
        let mut best: Vec<(f64, usize, usize)> = Vec::with_capacity(keep + 1);
        for (at, choice) in choices.iter().enumerate() {
            for (k, vector) in stage.vectors.outer_iter().enumerate() {
                let loss = choice.base + distance(choice.left.view(), vector, scale);
                if best.len() < keep || loss < best[keep - 1].0 {
                    let place = best.partition_point(|&(other, ..)| other <= loss);
                    best.insert(place, (loss, at, k));
                    best.truncate(keep);
                }
            }
        }
        choices = best
            .into_iter()
            .map(|(loss, at, k)| {
                let mut choice = choices[at].clone();
                choice.loss = loss;
                choice.left.scaled_add(-scale, &stage.vectors.row(k));
                match stage.count {
                    1 => choice.codes.push(k as u16),
                    _ => choice
                        .codes
                        .extend([(k / stage.states) as u16, (k % stage.states) as u16]),
                }
                choice
            })
            .collect();
    }
    choices
}

/// |target - scale vector|^2.
fn distance(target: ArrayView1<'_, f64>, vector: ArrayView1<'_, f64>, scale: f64) -> f64 {
    let square = |(t, v): (&f64, &f64)| (t - scale * v).powi(2);
    target.iter().zip(vector).map(square).sum()
}

/// Codebooks fitted to the weight's normalised groups together, where residual k-means fits each to what the
/// ones before it leave: rounds of assigning every group its best codewords (under the identity) and moving
/// each codebook's codewords to the means of what the other codebooks leave. Codewords that no group uses
/// stay.
fn fit_jointly(weight: &Array2<f64>, matrix: QuantizedMatrix, key: StreamKey) -> Result<QuantizedMatrix> {
    let scheme = matrix.scheme();
    if scheme.num_codebooks == 1 {
        return Ok(matrix);
    }
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let (out_groups, in_groups) = matrix.groups();
    let mut rng = key.stream(Purpose::Initialization);
    let sample = sample_distinct(&mut rng, out_groups * in_groups, FIT_GROUPS);
    let groups: Vec<Array1<f64>> = sample
        .iter()
        .map(|&group| {
            let (o, j) = (group / in_groups, group % in_groups);
            let values = weight.slice(s![o * go..(o + 1) * go, j * gi..(j + 1) * gi]);
            values.iter().map(|w| w / matrix.scales()[o]).collect()
        })
        .collect();
    let mut codebooks = matrix.codebooks().clone();
    for _ in 0..FIT_ROUNDS {
        let stages = Stage::all(&codebooks, scheme, Array2::eye(gi).view());
        let codes: Vec<Vec<u16>> = groups
            .par_iter()
            .map(|group| {
                let start = Choice {
                    base: 0.0,
                    loss: 0.0,
                    parent: 0,
                    left: group.clone(),
                    codes: Vec::new(),
                };
                choose(vec![start], &stages, 1.0, 1).swap_remove(0).codes
            })
            .collect();
        for m in 0..scheme.num_codebooks {
            move_to_means(&mut codebooks, m, &groups, &codes);
        }
    }
    matrix.with_codebooks(codebooks)
}

fn move_to_means(codebooks: &mut Array4<f64>, m: usize, groups: &[Array1<f64>], codes: &[Vec<u16>]) {
    let (_, states, go, gi) = codebooks.dim();
    let mut sums = Array3::<f64>::zeros((states, go, gi));
    let mut counts = vec![0.0; states];
    for (group, codes) in groups.iter().zip(codes) {
        let k = usize::from(codes[m]);
        counts[k] += 1.0;
        for (i, x) in group.iter().enumerate() {
            let others = codes.iter().enumerate().filter(|&(other, _)| other != m);
            let covered: f64 = others
                .map(|(other, &code)| codebooks[[other, usize::from(code), i / gi, i % gi]])
                .sum();
            sums[[k, i / gi, i % gi]] += x - covered;
        }
    }
    for (k, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0.0) {
        let mean = &sums.index_axis(Axis(0), k) / count;
        codebooks.slice_mut(s![m, k, .., ..]).assign(&mean);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{Problem, config, gaussian, problem, rounding, settings};
    use crate::{Mrf, em_init, exhaustive_search, row_errors};

    const KEY: StreamKey = StreamKey {
        seed: 2,
        block: 1,
        layer: None,
    };

    const ORDERS: [GroupOrder; 3] = [GroupOrder::Natural, GroupOrder::Variance, GroupOrder::Diagonal];

    fn feedback(hypotheses: usize, passes: usize) -> FeedbackSettings {
        FeedbackSettings {
            hypotheses,
            passes,
            order: GroupOrder::Natural,
        }
    }

    fn found(p: &Problem, hypotheses: usize, order: GroupOrder) -> (Array3<u16>, Array1<f64>) {
        feedback_search(&p.weight, &p.hessian, &p.matrix, hypotheses, order).unwrap()
    }

    proptest! {
        #![proptest_config(config(16))]
        #[test]
        fn all_hypotheses_find_the_exhaustive_optimum(
            seed: u64,
            scheme in prop::sample::select(vec!["2x2g2", "1x3g2o2", "3x1g4"]),
            order in prop::sample::select(ORDERS.to_vec()),
        ) {
            let p = problem(seed, scheme, 3, 3);
            let scheme = p.matrix.scheme();
            let all = scheme.codebook_size().pow(3 * scheme.num_codebooks as u32);
            let (_, losses) = found(&p, all, order);
            for (o, loss) in losses.iter().enumerate() {
                let mrf = Mrf::new(&p.weight, &p.hessian, &p.matrix, o).unwrap();
                let (_, energy) = exhaustive_search(&mrf).unwrap();
                prop_assert!((energy + mrf.constant - loss).abs() <= rounding(&p));
            }
        }

        #[test]
        fn partial_losses_add_up_to_the_layer_error(
            seed: u64,
            scheme in prop::sample::select(vec!["2x3g4", "1x4g4o2", "3x2g4"]),
            order in prop::sample::select(ORDERS.to_vec()),
            hypotheses in 1usize..4,
        ) {
            let p = problem(seed, scheme, 5, 4);
            let (codes, losses) = found(&p, hypotheses, order);
            let matrix = p.matrix.clone().with_codes(codes).unwrap();
            let errors = row_errors(&p.weight, &decode(&matrix), &p.hessian);
            let rows = p.matrix.scheme().out_group_size;
            for (loss, errors) in losses.iter().zip(errors.axis_chunks_iter(Axis(0), rows)) {
                prop_assert!((errors.sum() - loss).abs() <= rounding(&p));
            }
        }

        #[test]
        fn rows_are_independent_and_their_order_does_not_matter(seed: u64, hypotheses in 1usize..4) {
            let p = problem(seed, "2x3g4", 6, 4);
            let (codes, losses) = found(&p, hypotheses, GroupOrder::Natural);
            let rows = [4usize, 0, 5];
            let matrix = p.matrix.of_out_groups(&rows);
            let weight = p.weight.select(Axis(0), &rows);
            let some = feedback_search(&weight, &p.hessian, &matrix, hypotheses, GroupOrder::Natural).unwrap();
            prop_assert_eq!(some, (codes.select(Axis(0), &rows), losses.select(Axis(0), &rows)));
        }

        #[test]
        fn under_a_diagonal_hessian_it_finds_the_nearest_sums(seed: u64, order in prop::sample::select(ORDERS.to_vec())) {
            let mut p = problem(seed, "2x3g4", 4, 3);
            p.hessian = Array2::from_diag(&p.hessian.diag());
            let (codes, _) = found(&p, 1, order);
            for ((o, j), chosen) in ndarray::indices((4, 3)).into_iter().zip(codes.exact_chunks((1, 1, 2))) {
                let error = |a: usize, b: usize| -> f64 {
                    let sum = &p.matrix.codebooks().slice(s![0, a, 0, ..]) + &p.matrix.codebooks().slice(s![1, b, 0, ..]);
                    let columns = s![j * 4..(j + 1) * 4];
                    let left = &p.weight.row(o).slice(columns) - &(sum * p.matrix.scales()[o]);
                    (&left * &left * p.hessian.diag().slice(columns)).sum()
                };
                let least = (0..64).map(|k| error(k / 8, k % 8)).fold(f64::INFINITY, f64::min);
                let chosen: Vec<usize> = chosen.iter().map(|&code| usize::from(code)).collect();
                prop_assert!(error(chosen[0], chosen[1]) <= least + rounding(&p));
            }
        }

        #[test]
        fn the_order_by_variance_decides_the_largest_conditional_variance_first(seed: u64) {
            let p = problem(seed, "1x2g2", 1, 4);
            let order = by_conditional_variance(&p.hessian, 2).unwrap();
            // ln of the determinant of a group's covariance given the groups before it in the order
            let volume = |order: &[usize]| -> f64 {
                let columns: Vec<usize> = order.iter().flat_map(|&j| 2 * j..2 * j + 2).collect();
                let permuted = ridged(&p.hessian).select(Axis(0), &columns).select(Axis(1), &columns);
                let lower = Cholesky::new(permuted.view(), 0.0, "hessian").unwrap().lower();
                lower.diag().iter().rev().take(2).map(|x| x.ln()).sum()
            };
            for undecided in (1..=4).rev() {
                let chosen = volume(&order[..undecided]);
                for other in 0..undecided {
                    let mut swapped = order[..undecided].to_vec();
                    swapped.swap(other, undecided - 1);
                    // Two ways to the same pivots. Updates of the inverse lose the digits of the condition
                    // number, at most half of all.
                    prop_assert!(volume(&swapped) <= chosen + f64::EPSILON.sqrt() * chosen.abs().max(1.0));
                }
            }
        }
    }

    #[test]
    fn more_hypotheses_are_not_worse_in_expectation() {
        let mut logs = [0.0; 2];
        for seed in 0..24 {
            let p = problem(seed, "2x3g4", 8, 6);
            let of = |hypotheses| found(&p, hypotheses, GroupOrder::Natural).1.sum().ln();
            let [one, four, sixteen] = [1, 4, 16].map(of);
            logs[0] += four - one;
            logs[1] += sixteen - four;
        }
        assert!(logs[0] < 0.0 && logs[1] < 0.0, "{logs:?}");
    }

    #[test]
    fn further_passes_help_and_end_below_em() {
        let (mut em, mut one, mut three) = (0.0, 0.0, 0.0);
        for seed in 0..6 {
            let p = problem(seed, "2x4g4", 48, 8);
            let loss = |matrix: QuantizedMatrix| layer_error(&p.weight, &decode(&matrix), &p.hessian).ln();
            let of = |passes| {
                feedback_init(
                    &p.weight,
                    &p.hessian,
                    &settings("2x4g4"),
                    &feedback(2, passes),
                    KEY,
                )
                .unwrap()
            };
            em += loss(em_init(&p.weight, &p.hessian, &settings("2x4g4"), 3, KEY).unwrap());
            one += loss(of(1));
            three += loss(of(3));
        }
        assert!(three < em && three < one, "{em} {one} {three}");
    }

    #[test]
    fn the_joint_fit_lowers_the_error_of_the_groups() {
        let weight = gaussian(3, 64, 32);
        let first = residual_init(&weight, &settings("2x4g4"), KEY).unwrap();
        let fitted = fit_jointly(&weight, first.clone(), KEY).unwrap();
        let white = Array2::eye(32);
        let error = |matrix: &QuantizedMatrix| {
            feedback_search(&weight, &white, matrix, 1, GroupOrder::Natural)
                .unwrap()
                .1
                .sum()
        };
        assert!(error(&fitted) < error(&first));
    }

    #[test]
    fn zero_rows_and_dead_inputs_stay_finite() {
        let mut p = problem(4, "2x2g4", 8, 4);
        p.weight.row_mut(3).fill(0.0);
        for i in 0..6 {
            p.hessian.row_mut(i).fill(0.0);
            p.hessian.column_mut(i).fill(0.0);
        }
        for order in ORDERS {
            let feedback = FeedbackSettings {
                order,
                ..feedback(2, 2)
            };
            let of = |hessian| feedback_init(&p.weight, hessian, &settings("2x2g4"), &feedback, KEY).unwrap();
            assert!(decode(&of(&p.hessian)).iter().all(|x| x.is_finite()));
            assert!(
                decode(&of(&Array2::zeros((16, 16))))
                    .iter()
                    .all(|x| x.is_finite())
            );
        }
    }

    #[test]
    fn every_order_copes_with_fewer_samples_than_inputs() {
        let p = problem(4, "2x2g4", 8, 6);
        let x = gaussian(9, 7, 24);
        let hessian = x.t().dot(&x) / 7.0;
        for order in ORDERS {
            let (codes, losses) = feedback_search(&p.weight, &hessian, &p.matrix, 2, order).unwrap();
            let error = layer_error(
                &p.weight,
                &decode(&p.matrix.clone().with_codes(codes).unwrap()),
                &hessian,
            );
            assert!((losses.sum() - error).abs() <= 1e-9 * error, "{order:?}");
        }
    }

    #[test]
    fn nothing_to_keep_and_nothing_to_do_are_refused() {
        let p = problem(4, "2x2g4", 8, 4);
        for bad in [feedback(0, 1), feedback(1, 0)] {
            let result = feedback_init(&p.weight, &p.hessian, &settings("2x2g4"), &bad, KEY);
            assert!(matches!(result, Err(AqlmError::Argument { .. })), "{result:?}");
        }
        let wrong = feedback_search(&p.weight, &Array2::eye(3), &p.matrix, 1, GroupOrder::Natural);
        assert!(matches!(wrong, Err(AqlmError::Shape { .. })));
    }
}
