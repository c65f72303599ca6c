use aqlm_reference::{MAX_COMBINATIONS, Mrf, beam_search, decode, exhaustive_search};
use aqlm_vocabulary::{Purpose, QuantizedMatrix, sweep_order};
use ndarray::{Array2, ArrayView1, s};

use super::Prepared;
use super::layer::{Layer, malformed};
use crate::cases::{Case, Operation};
use crate::compare::{Against, Findings, repeated};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

/// Combinations of an output group's codes that an exhaustive search tries; all of them for a few groups take
/// little time.
const FEW: u64 = 1 << 12;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::BeamSearch,
        number,
    }
}

fn order(case: &Case, matrix: &QuantizedMatrix) -> Result<Vec<(usize, usize)>> {
    let mut rng = case.layer()?.key(case.seed).stream(Purpose::Sweep);
    Ok(sweep_order(
        &mut rng,
        matrix.groups().1,
        matrix.scheme().num_codebooks,
    ))
}

/// The longest chain of roundings behind a score.
fn chain(layer: &Layer) -> usize {
    let codebooks = layer.data.matrix.scheme().num_codebooks;
    2 * layer.weight.ncols() + layer.data.matrix.groups().1 * codebooks + codebooks + 8
}

/// The reference's codes in the matrix.
fn searched(layer: &Layer, order: &[(usize, usize)], beam: usize) -> Result<QuantizedMatrix> {
    let codes = beam_search(
        &layer.weight,
        &layer.data.hessian,
        &layer.data.matrix,
        order,
        beam,
    )?;
    Ok(layer.data.matrix.clone().with_codes(codes)?)
}

/// The least loss of any codes, where few enough are possible.
fn optimum(layer: &Layer) -> Result<Option<f64>> {
    let (matrix, hessian) = (&layer.data.matrix, &layer.data.hessian);
    let variables = matrix.groups().1 * matrix.scheme().num_codebooks;
    let combinations = (matrix.scheme().codebook_size() as u64).checked_pow(variables as u32);
    if combinations.is_none_or(|count| count > FEW.min(MAX_COMBINATIONS)) {
        return Ok(None);
    }
    let mut sum = 0.0;
    for o in 0..matrix.groups().0 {
        let mrf = Mrf::new(&layer.weight, hessian, matrix, o)?;
        sum += exhaustive_search(&mrf)?.1 + mrf.constant;
    }
    Ok(Some(sum))
}

/// Coordinate descent replayed on the path of `found`: the worst code that was chosen, by how much its score
/// was above the best one there, as a share of the magnitudes of both. Every position of a sweep is visited
/// once, so the path follows from the result, however ties broke.
fn worst_choice(layer: &Layer, order: &[(usize, usize)], found: &QuantizedMatrix) -> f64 {
    let (matrix, hessian) = (&layer.data.matrix, &layer.data.hessian);
    let (rows, columns) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
    let states = matrix.scheme().codebook_size();
    let mut absolute = matrix.clone();
    absolute.tune(|mut codebooks, mut scales| {
        scales.mapv_inplace(f64::abs);
        for mut codebook in codebooks.outer_iter_mut() {
            // any codeword may have been there on the way
            for a in 0..rows {
                for b in 0..columns {
                    let most = largest(codebook.slice(s![.., a, b]).iter().map(|c| c.abs()));
                    codebook.slice_mut(s![.., a, b]).fill(most);
                }
            }
        }
    });
    let magnitudes = (layer.weight.mapv(f64::abs) + decode(&absolute)).dot(&hessian.mapv(f64::abs));
    let mut gradient = (&layer.weight - &decode(matrix)).dot(hessian);
    let mut codes = matrix.codes().clone();
    let mut worst = 0.0;
    for &(j, m) in order {
        let at = j * columns..(j + 1) * columns;
        let block = hessian.slice(s![at.clone(), at.clone()]).to_owned();
        let codeword = |k: usize, a: usize| matrix.codebooks().slice(s![m, k, a, ..]);
        let quadratic = |change: ArrayView1<'_, f64>| change.dot(&block.dot(&change));
        for o in 0..matrix.groups().0 {
            let scale = matrix.scales()[o];
            let old = usize::from(codes[[o, j, m]]);
            let new = usize::from(found.codes()[[o, j, m]]);
            let score = |k: usize| -> f64 {
                (0..rows)
                    .map(|a| {
                        let change = &codeword(k, a) - &codeword(old, a);
                        let slope = gradient.slice(s![o * rows + a, at.clone()]).dot(&change);
                        scale * scale * quadratic(change.view()) - 2.0 * scale * slope
                    })
                    .sum()
            };
            let magnitude: f64 = (0..rows)
                .map(|a| {
                    let size = absolute.codebooks().slice(s![m, 0, a, ..]).to_owned();
                    2.0 * scale.abs() * magnitudes.slice(s![o * rows + a, at.clone()]).dot(&size)
                })
                .sum();
            let least = (0..states).map(score).fold(f64::INFINITY, f64::min);
            let above = score(new) - least;
            if above > 0.0 {
                worst = largest([worst, above / magnitude]);
            }
            for a in 0..rows {
                let change = &codeword(new, a) - &codeword(old, a);
                for (b, &difference) in change.iter().enumerate() {
                    let column = hessian.row(j * columns + b);
                    gradient
                        .row_mut(o * rows + a)
                        .scaled_add(-scale * difference, &column);
                }
            }
            codes[[o, j, m]] = new as u16;
        }
    }
    worst
}

/// What every implementation must do: only codes change, the loss never rises and is never under the optimum,
/// and a beam of one takes the best code at every position.
fn on_its_path(
    check: Against,
    case: &Case,
    layer: &Layer,
    order: &[(usize, usize)],
    optimum: Option<f64>,
    found: &QuantizedMatrix,
) -> Result<Vec<Comparison>> {
    let before = &layer.data.matrix;
    let beam = case.layer()?.beam;
    let changed = found.codebooks() != before.codebooks() || found.scales() != before.scales();
    let shape = malformed(found, before) + f64::from(u8::from(changed));
    let mut comparisons = vec![check.value(Measure::Exact, 0, "all but codes", shape)?];
    if !comparisons.iter().all(Comparison::holds) {
        return Ok(comparisons);
    }
    let terms = 8 * chain(layer);
    let start = (layer.loss(before), before);
    comparisons.push(layer.not_above(check, terms, "above the start's", found, start)?);
    if beam == 1 {
        let worst = worst_choice(layer, order, found);
        comparisons.push(check.value(Measure::Choice, 4 * chain(layer), "codes", worst)?);
    }
    if let Some(optimum) = optimum {
        let under = (optimum - layer.loss(found)).max(0.0) / layer.magnitude(found);
        let losses = Against {
            number: Number::F64,
            ..check
        };
        comparisons.push(losses.value(Measure::Loss, terms, "under the optimum", under)?);
        // A beam that holds every combination prunes nothing.
        let variables = order.len() as u32;
        if (beam as u64) >= (before.scheme().codebook_size() as u64).pow(variables.saturating_sub(1)) {
            comparisons.push(layer.not_above(check, terms, "above the optimum", found, (optimum, found))?);
        }
    }
    Ok(comparisons)
}

pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.layer()?;
    let layer = Layer::new(problem.data(case.seed));
    let order = order(case, &layer.data.matrix)?;
    let found = searched(&layer, &order, problem.beam)?;
    let check = against(Number::F64);
    let mut comparisons = on_its_path(check, case, &layer, &order, optimum(&layer)?, &found)?;
    // The MRF's energy plus its constant is the layer error of the codes.
    let matrix = &layer.data.matrix;
    if matrix.groups().1 * matrix.scheme().num_codebooks * matrix.scheme().codebook_size() <= 512 {
        let mut energy = 0.0;
        for (o, codes) in found.codes().outer_iter().enumerate() {
            let mrf = Mrf::new(&layer.weight, &layer.data.hessian, matrix, o)?;
            energy += mrf.energy(codes) + mrf.constant;
        }
        let difference = (energy - layer.loss(&found)).abs() / layer.magnitude(&found);
        let terms = 8 * chain(&layer);
        comparisons.push(check.value(Measure::Loss, terms, "energy against layer error", difference)?);
    }
    Ok(comparisons)
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.layer()?;
    let case = *case;
    let layer = Layer::new(problem.data(case.seed));
    let order = order(&case, &layer.data.matrix)?;
    let expected = searched(&layer, &order, problem.beam)?;
    let optimum = optimum(&layer)?;
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (weight, hessian): (&Array2<f32>, _) = (&layer.data.weight, &layer.data.hessian);
        let (found, same) = repeated(check, "matrix", || {
            subject.beam_search(weight, hessian, &layer.data.matrix, &order, problem.beam)
        })?;
        let mut comparisons = on_its_path(check, &case, &layer, &order, optimum, &found)?;
        comparisons.push(same);
        let excess = comparisons
            .iter()
            .all(Comparison::holds)
            .then(|| layer.excess(check, &found, &expected));
        Ok(Findings { comparisons, excess })
    }))
}
