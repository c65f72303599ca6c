use aqlm_optimized::cpu::quantizer;
use aqlm_optimized::cuda::quantizer as on_gpu;
use aqlm_reference::{MAX_COMBINATIONS, Mrf, beam_search, decode, exhaustive_search};
use aqlm_vocabulary::{AqlmError, Position, QuantizedMatrix};
use ndarray::{ArrayView1, Axis, s};
use proptest::strategy::BoxedStrategy;

use super::layer::{Layer, malformed};
use super::{CaseData as _, Op, of_quantizer};
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Field, Kind, Problem, strategy};
use crate::compare::{Against, Findings};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

/// Up to this many combinations of an output group's codes are searched exhaustively; the search of a few
/// groups is then fast.
const FEW: u64 = 1 << 12;

/// Fields of the id after the values.
const FIELDS: &[Field] = &[Field::Inputs, Field::Beam, Field::Search];

/// Codes for fixed codebooks: the matrix with the codes at the end of one sweep.
pub(crate) struct BeamSearch;

impl Op for BeamSearch {
    type Data = Layer;
    type Answer = QuantizedMatrix;
    type Expected = Expected;

    const KIND: Kind = Kind::Layer(FIELDS);
    const CORNERS: &'static [&'static str] = &[
        // several blocks of lazy updates; more output groups than a task
        "2x4g4-70x600-outliers-correlated-b1-single-s1",
        "2x4g4-20x300-outliers-correlated-b3-single-s2",
        "2x8g8-66x144-outliers-correlated-b1-single-s3",
        "3x3g4o2-20x24-outliers-ill-b2-single-s4",
        "2x3g4-9x16-dyadic-white-b1-single-s5",
        "2x3g4-9x16-dyadic-white-b4-single-s6",
        "2x4g8-30x32-repeated-deficient-b1-single-s7",
        "2x4g8-30x32-repeated-deficient-b3-single-s8",
        "2x4g4-70x600-outliers-correlated-b1-pairs-s11",
        "2x4g4-20x300-outliers-correlated-b3-pairs-s12",
        "2x5g8-20x144-outliers-correlated-b1-pairs-s13",
        "3x3g4o2-20x24-outliers-ill-b2-pairs-s14",
        "2x4g8-30x32-repeated-deficient-b1-pairs-s15",
        "4x2g4-9x16-dyadic-white-b4-pairs-s16",
        // small enough to find the optimum exhaustively
        "2x2g4-3x8-outliers-correlated-b16-single-s9",
        "2x2g4-3x8-outliers-correlated-b16-pairs-s17",
        "1x1g4-1x4-dyadic-white-b1-single-s10",
    ];

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::layer(FIELDS)
    }

    fn number(subject: &Subject) -> Number {
        of_quantizer(subject)
    }

    fn run(subject: &Subject, layer: &Layer) -> Result<QuantizedMatrix> {
        let (data, beam, order) = (&layer.data, layer.problem.beam, layer.order());
        let (hessian, matrix) = (&data.hessian, &data.matrix);
        let codes = match subject {
            Subject::Reference => return searched(layer, &order, beam),
            Subject::Cpu(_) => quantizer::beam_search(&data.weight, hessian, matrix, &order, beam)?,
            Subject::Cuda(cuda) => {
                on_gpu::beam_search(&cuda.device, &data.weight, hessian, matrix, &order, beam)
                    .map_err(AqlmError::from)?
            }
        };
        let (codebooks, scales) = (matrix.codebooks().clone(), matrix.scales().clone());
        Ok(QuantizedMatrix::new(matrix.scheme(), codes, codebooks, scales)?)
    }

    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let layer = Layer::new(case)?;
        let order = layer.order();
        let found = searched(&layer, &order, layer.problem.beam)?;
        let mut comparisons = on_its_path(check, &layer, &order, optimum(&layer)?, &found)?;
        // The MRF's energy plus its constant equals the layer error of the codes.
        let matrix = &layer.data.matrix;
        if matrix.groups().1 * matrix.scheme().num_codebooks * matrix.scheme().codebook_size() <= 512 {
            let mut energy = 0.0;
            for (o, codes) in found.codes().outer_iter().enumerate() {
                let mrf = Mrf::new(&layer.weight, &layer.data.hessian, matrix, o)?;
                energy += mrf.energy(codes) + mrf.constant;
            }
            let difference = (energy - layer.loss(&found)).abs() / layer.magnitude(&found);
            comparisons.push(check.value(Measure::Loss, "energy against layer error", difference)?);
        }
        Ok(comparisons)
    }

    fn expected(layer: &Layer) -> Result<Expected> {
        Ok(Expected {
            matrix: Self::run(&Subject::Reference, layer)?,
            optimum: optimum(layer)?,
        })
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        layer: &Layer,
        expected: &Expected,
        found: &QuantizedMatrix,
    ) -> Result<Findings> {
        let comparisons = on_its_path(check, layer, &layer.order(), expected.optimum, found)?;
        layer.findings(check, comparisons, found, &expected.matrix)
    }

    fn breakages() -> Vec<Breakage<Layer, QuantizedMatrix>> {
        vec![
            Breakage::of_answer("a row that is never searched", |found, layer, _| {
                let last = found.codes().dim().0 - 1;
                let before = layer.data.matrix.codes().index_axis(Axis(0), last);
                breakage::codes(found, |codes| codes.index_axis_mut(Axis(0), last).assign(&before));
            }),
            Breakage::of_answer("codes of the next input group", |found, _, _| {
                breakage::next_groups(found);
            }),
            Breakage::of_answer(OTHER_TIES, |found, layer: &Layer, _| {
                last_of_equals(found, &layer.data.matrix);
            })
            .allowed(),
        ]
    }
}

/// Takes the last of equal codewords instead of the first: no mistake.
const OTHER_TIES: &str = "another rule for ties";

fn last_of_equals(found: &mut QuantizedMatrix, before: &QuantizedMatrix) {
    breakage::codes(found, |codes| {
        for ((_, _, m), code) in codes.indexed_iter_mut() {
            let codeword = |k: usize| before.codebooks().slice(s![m, k, .., ..]);
            let chosen = usize::from(*code);
            let last = (chosen..before.scheme().codebook_size())
                .rev()
                .find(|&k| codeword(k) == codeword(chosen));
            *code = last.map_or(*code, |last| last as u16);
        }
    });
}

/// The reference's matrix, and the minimum loss over all codes if there are few enough combinations.
pub(crate) struct Expected {
    matrix: QuantizedMatrix,
    optimum: Option<f64>,
}

/// The matrix with the codes that the reference's search finds.
fn searched(layer: &Layer, order: &[Position], beam: usize) -> Result<QuantizedMatrix> {
    let codes = beam_search(
        &layer.weight,
        &layer.data.hessian,
        &layer.data.matrix,
        order,
        beam,
    )?;
    Ok(layer.data.matrix.clone().with_codes(codes)?)
}

/// The minimum loss over all codes, if there are few enough combinations.
pub(super) fn optimum(layer: &Layer) -> Result<Option<f64>> {
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

/// Replays coordinate descent on the path of `found`. Returns how far the worst chosen code's score was above
/// the best score at that position, as a share of the magnitudes of both. A sweep visits every position once,
/// so the path follows from the result, however ties broke.
fn worst_choice(layer: &Layer, order: &[Position], found: &QuantizedMatrix) -> f64 {
    let (matrix, hessian) = (&layer.data.matrix, &layer.data.hessian);
    let (rows, columns) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
    let states = matrix.scheme().codebook_size();
    let mut absolute = matrix.clone();
    absolute.tune(|mut codebooks, mut scales| {
        scales.mapv_inplace(f64::abs);
        for mut codebook in codebooks.outer_iter_mut() {
            // any codeword may be the code at this point of the path
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
    for step in order {
        let j = step.group;
        let at = j * columns..(j + 1) * columns;
        let block = hessian.slice(s![at.clone(), at.clone()]).to_owned();
        // A choice is the code of the step's codebook, or both codes of a pair, the second one fastest.
        let chosen = |codes: ArrayView1<'_, u16>| {
            step.codebooks()
                .fold(0, |choice, m| choice * states + usize::from(codes[m]))
        };
        let codeword = |choice: usize, a: usize| {
            let row = |m: usize, k: usize| matrix.codebooks().slice(s![m, k, a, ..]);
            match step.partner {
                None => row(step.codebook, choice).to_owned(),
                Some(partner) => &row(step.codebook, choice / states) + &row(partner, choice % states),
            }
        };
        let choices = states.pow(step.codebooks().count() as u32);
        let quadratic = |change: ArrayView1<'_, f64>| change.dot(&block.dot(&change));
        for o in 0..matrix.groups().0 {
            let scale = matrix.scales()[o];
            let old = chosen(codes.slice(s![o, j, ..]));
            let new = chosen(found.codes().slice(s![o, j, ..]));
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
                    let of_codebook = |m| {
                        let size = absolute.codebooks().slice(s![m, 0, a, ..]).to_owned();
                        2.0 * scale.abs() * magnitudes.slice(s![o * rows + a, at.clone()]).dot(&size)
                    };
                    step.codebooks().map(of_codebook).sum::<f64>()
                })
                .sum();
            let least = (0..choices).map(score).fold(f64::INFINITY, f64::min);
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
            for m in step.codebooks() {
                codes[[o, j, m]] = found.codes()[[o, j, m]];
            }
        }
    }
    worst
}

/// Requirements on every implementation: only codes change, the loss never rises and is never below the
/// optimum, and a beam of one takes the best code at every position.
fn on_its_path(
    check: Against,
    layer: &Layer,
    order: &[Position],
    optimum: Option<f64>,
    found: &QuantizedMatrix,
) -> Result<Vec<Comparison>> {
    let before = &layer.data.matrix;
    let beam = layer.problem.beam;
    let changed = found.codebooks() != before.codebooks() || found.scales() != before.scales();
    let shape = malformed(found, before) + f64::from(u8::from(changed));
    let mut comparisons = vec![check.value(Measure::Exact, "all but codes", shape)?];
    if !comparisons.iter().all(Comparison::holds) {
        return Ok(comparisons);
    }
    let start = (layer.loss(before), before);
    comparisons.push(layer.not_above(check, "above the start's", found, start)?);
    if beam == 1 {
        let worst = worst_choice(layer, order, found);
        comparisons.push(check.value(Measure::Choice, "codes", worst)?);
    }
    if let Some(optimum) = optimum {
        let under = (optimum - layer.loss(found)).max(0.0) / layer.magnitude(found);
        let losses = Against {
            number: Number::F64,
            ..check
        };
        comparisons.push(losses.value(Measure::Loss, "under the optimum", under)?);
        // A beam wide enough for every combination before the last step prunes nothing.
        let states = before.scheme().codebook_size() as u64;
        let earlier = order.iter().rev().skip(1);
        let combinations: u64 = earlier
            .map(|step| states.pow(step.codebooks().count() as u32))
            .product();
        if (beam as u64) >= combinations {
            comparisons.push(layer.not_above(check, "above the optimum", found, (optimum, found))?);
        }
    }
    Ok(comparisons)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{Operation, corners};

    #[test]
    fn another_rule_for_ties_does_change_codes() {
        let repeated = |case: &Case| case.to_string().contains("-repeated-");
        let cases: Vec<Case> = corners(Operation::BeamSearch)
            .unwrap()
            .into_iter()
            .filter(repeated)
            .collect();
        assert!(!cases.is_empty());
        for case in cases {
            let layer = Layer::new(&case).unwrap();
            let found = BeamSearch::run(&Subject::Reference, &layer).unwrap();
            let mut other = found.clone();
            last_of_equals(&mut other, &layer.data.matrix);
            assert_ne!(found.codes(), other.codes(), "{case}");
        }
    }
}
