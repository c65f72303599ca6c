use aqlm_optimized::cpu::quantizer;
use aqlm_optimized::cuda::quantizer as on_gpu;
use aqlm_reference::linalg::Cholesky;
use aqlm_reference::{decode, feedback_init, feedback_search, row_errors};
use aqlm_vocabulary::{AqlmError, FeedbackSettings, GroupOrder, QuantizedMatrix};
use ndarray::{Array2, Axis, s};
use proptest::strategy::BoxedStrategy;

use super::beam_search::optimum;
use super::layer::{Layer, malformed};
use super::{CaseData as _, Op, of_quantizer};
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Field, Kind, Problem, strategy};
use crate::compare::{Against, Findings};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

/// Searches of an initialisation; one update of the codebooks between them.
const PASSES: usize = 2;

/// Fields of the id after the values. The beam is the number of hypotheses.
const FIELDS: &[Field] = &[Field::Inputs, Field::Beam];

/// First codes and codebooks by error feedback, and one search for given codebooks.
pub(crate) struct FeedbackInit;

impl Op for FeedbackInit {
    type Data = Layer;
    type Answer = Answer;
    type Expected = Expected;

    const KIND: Kind = Kind::Layer(FIELDS);
    const CORNERS: &'static [&'static str] = &[
        // several blocks of columns, more output groups than a task
        "2x4g4-70x300-outliers-correlated-b1-s1",
        "2x5g8-96x64-outliers-correlated-b4-s2",
        "1x6g4-64x48-zerorows-deficient-b2-s3",
        "3x3g4o2-20x24-outliers-ill-b3-s4",
        "4x3g8-40x32-outliers-dead-b2-s5",
        "2x4g8-30x32-repeated-deficient-b1-s6",
        "2x3g4-9x16-dyadic-white-b1-s7",
        // more sums than a table holds
        "2x9g4-40x24-outliers-correlated-b2-s8",
        // small enough to find the optimum exhaustively, and hypotheses for all of it
        "2x2g4-3x8-outliers-correlated-b16-s9",
        "1x1g4-1x4-dyadic-white-b1-s10",
    ];

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::layer(FIELDS)
    }

    fn number(subject: &Subject) -> Number {
        of_quantizer(subject)
    }

    fn run(subject: &Subject, layer: &Layer) -> Result<Answer> {
        let (data, settings, key) = (&layer.data, layer.settings(), layer.key);
        let feedback = feedback(layer);
        let (matrix, hypotheses, order) = (&data.matrix, feedback.hypotheses, feedback.order);
        let (start, (codes, losses)) = match subject {
            Subject::Reference => (
                feedback_init(&layer.weight, &data.hessian, &settings, &feedback, key)?,
                feedback_search(&layer.weight, &data.hessian, matrix, hypotheses, order)?,
            ),
            Subject::Cpu(_) => (
                quantizer::feedback_init(&data.weight, &data.hessian, &settings, &feedback, key)?,
                quantizer::feedback_search(&data.weight, &data.hessian, matrix, hypotheses, order)?,
            ),
            Subject::Cuda(cuda) => (
                on_gpu::feedback_init(
                    &cuda.device,
                    &data.weight,
                    &data.hessian,
                    &settings,
                    &feedback,
                    key,
                )
                .map_err(AqlmError::from)?,
                on_gpu::feedback_search(
                    &cuda.device,
                    &data.weight,
                    &data.hessian,
                    matrix,
                    hypotheses,
                    order,
                )
                .map_err(AqlmError::from)?,
            ),
        };
        let (codebooks, scales) = (matrix.codebooks().clone(), matrix.scales().clone());
        Ok(Answer {
            start,
            searched: QuantizedMatrix::new(matrix.scheme(), codes, codebooks, scales)?,
            losses: losses.to_vec(),
        })
    }

    /// Requirements on every search; rows are independent, so their order changes nothing.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let layer = Layer::new(case)?;
        let found = Self::run(&Subject::Reference, &layer)?;
        let mut comparisons = on_its_path(check, &layer, optimum(&layer)?, &found)?;
        let (matrix, rows) = (&layer.data.matrix, layer.problem.scheme.out_group_size);
        let backwards: Vec<usize> = (0..matrix.groups().0).rev().collect();
        let weight_rows: Vec<usize> = backwards.iter().flat_map(|o| o * rows..(o + 1) * rows).collect();
        let turned = matrix.of_out_groups(&backwards);
        let weight = layer.weight.select(Axis(0), &weight_rows);
        let feedback = feedback(&layer);
        let (codes, _) = feedback_search(
            &weight,
            &layer.data.hessian,
            &turned,
            feedback.hypotheses,
            feedback.order,
        )?;
        let expected = found.searched.codes().select(Axis(0), &backwards);
        let different = codes.iter().zip(&expected).filter(|(a, b)| a != b).count();
        let what = "codes of rows in another order";
        comparisons.push(check.value(Measure::Exact, what, different as f64)?);
        Ok(comparisons)
    }

    fn expected(layer: &Layer) -> Result<Expected> {
        let answer = Self::run(&Subject::Reference, layer)?;
        Ok(Expected {
            answer,
            optimum: optimum(layer)?,
        })
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        layer: &Layer,
        expected: &Expected,
        found: &Answer,
    ) -> Result<Findings> {
        let comparisons = on_its_path(check, layer, expected.optimum, found)?;
        let excess = if comparisons.iter().all(Comparison::holds) {
            let searched = layer.excess(check, &found.searched, &expected.answer.searched)?;
            let start = layer.excess(check, &found.start, &expected.answer.start)?;
            Some(searched + start)
        } else {
            None
        };
        Ok(Findings { comparisons, excess })
    }

    fn breakages() -> Vec<Breakage<Layer, Answer>> {
        vec![
            Breakage::of_answer("a row that is never searched", |found, layer, _| {
                let last = found.searched.codes().dim().0 - 1;
                let before = layer.data.matrix.codes().index_axis(Axis(0), last);
                breakage::codes(&mut found.searched, |codes| {
                    codes.index_axis_mut(Axis(0), last).assign(&before);
                });
            }),
            Breakage::of_answer("codes of the next input group", |found, _, _| {
                breakage::next_groups(&mut found.searched);
            }),
            Breakage::of_answer("losses without the last group", |found, _, _| {
                found.losses.iter_mut().for_each(|loss| *loss *= 0.9);
            }),
            Breakage::of_answer("a codeword that is not finite", |found, _, _| {
                found
                    .start
                    .tune(|mut codebooks, _| codebooks[[0, 0, 0, 0]] = f64::INFINITY);
            }),
        ]
    }
}

/// What a machine found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// first codes and codebooks
    start: QuantizedMatrix,
    /// the case's matrix with the codes of one search
    searched: QuantizedMatrix,
    /// of that search, for each output group
    losses: Vec<f64>,
}

/// The reference's answer, and the minimum loss of a search over all codes if there are few enough.
pub(crate) struct Expected {
    answer: Answer,
    optimum: Option<f64>,
}

/// The settings of a case. Every third number of hypotheses has another order of groups.
fn feedback(layer: &Layer) -> FeedbackSettings {
    let hypotheses = layer.problem.beam;
    let orders = [GroupOrder::Diagonal, GroupOrder::Natural, GroupOrder::Variance];
    FeedbackSettings {
        hypotheses,
        passes: PASSES,
        order: orders[hypotheses % 3],
    }
}

/// Requirements on every implementation: matrices are well-formed and only codes change in a search; partial
/// losses add up to the layer error; no loss is below the optimum; all hypotheses find it, and one hypothesis
/// takes the best code at every group.
fn on_its_path(
    check: Against,
    layer: &Layer,
    optimum: Option<f64>,
    found: &Answer,
) -> Result<Vec<Comparison>> {
    let before = &layer.data.matrix;
    let searched = &found.searched;
    let changed = searched.codebooks() != before.codebooks() || searched.scales() != before.scales();
    let shape = malformed(searched, before) + f64::from(u8::from(changed)) + malformed(&found.start, before);
    let mut comparisons = vec![check.value(Measure::Exact, "all but codes", shape)?];
    if !comparisons.iter().all(Comparison::holds) {
        return Ok(comparisons);
    }
    let magnitude = layer.magnitude(searched);
    let rows = before.scheme().out_group_size;
    let errors = row_errors(&layer.weight, &decode(searched), &layer.data.hessian);
    let differences = errors
        .axis_chunks_iter(Axis(0), rows)
        .zip(&found.losses)
        .map(|(errors, loss)| (errors.sum() - loss).abs());
    let share = largest(differences) / magnitude;
    comparisons.push(check.value(Measure::Loss, "partial losses against layer errors", share)?);
    let hypotheses = layer.problem.beam;
    if hypotheses == 1 && before.scheme().num_codebooks <= 2 {
        comparisons.push(check.value(Measure::Choice, "codes", worst_choice(layer, searched)?)?);
    }
    if let Some(optimum) = optimum {
        let under = (optimum - layer.loss(searched)).max(0.0) / magnitude;
        let losses = Against {
            number: Number::F64,
            ..check
        };
        comparisons.push(losses.value(Measure::Loss, "under the optimum", under)?);
        // As many hypotheses as codings of all groups but the last prune nothing.
        let codings = (before.scheme().codebook_size() as u64).pow(before.scheme().num_codebooks as u32);
        if (hypotheses as u64) >= codings.pow(before.groups().1 as u32 - 1) {
            comparisons.push(layer.not_above(check, "above the optimum", searched, (optimum, searched))?);
        }
    }
    Ok(comparisons)
}

/// Replays a search with one hypothesis in the natural order. Returns how far the worst chosen sum's distance
/// to its target was above the least one, as a share of the magnitudes of both. Every group is decided once,
/// so the path follows from the result, however ties broke.
fn worst_choice(layer: &Layer, found: &QuantizedMatrix) -> Result<f64> {
    let scheme = found.scheme();
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let hessian = &layer.data.hessian;
    let lower = Cholesky::new(hessian.view(), 0.0, "hessian")?.lower();
    let magnitudes = lower.mapv(f64::abs);
    let error = &layer.weight - &decode(found);
    let size = layer.weight.mapv(f64::abs) + error.mapv(f64::abs);
    let mut worst = 0.0;
    for j in 0..found.groups().1 {
        let (own, rest) = (j * gi..(j + 1) * gi, j * gi..);
        let metric = lower.slice(s![own.clone(), own.clone()]);
        let sums: Vec<Array2<f64>> = sums(found).iter().map(|sum| sum.dot(&metric)).collect();
        for o in 0..found.groups().0 {
            let rows = o * go..(o + 1) * go;
            let chosen: Vec<usize> = found
                .codes()
                .slice(s![o, j, ..])
                .iter()
                .map(|&code| usize::from(code))
                .collect();
            let chosen = chosen
                .iter()
                .fold(0, |index, code| index * scheme.codebook_size() + code);
            let scale = found.scales()[o];
            // e of this group plus the chosen sum gives back its part of the weight
            let left = error
                .slice(s![rows.clone(), rest.clone()])
                .dot(&lower.slice(s![rest.clone(), own.clone()]));
            let target = left + &sums[chosen] * scale;
            let distance = |sum: &Array2<f64>| (&target - &(sum * scale)).mapv(|x| x * x).sum();
            let least = sums.iter().map(distance).fold(f64::INFINITY, f64::min);
            let above = distance(&sums[chosen]) - least;
            if above > 0.0 {
                let behind = size
                    .slice(s![rows, rest.clone()])
                    .dot(&magnitudes.slice(s![rest.clone(), own.clone()]));
                let magnitude = (behind * 2.0).mapv(|x| x * x).sum();
                worst = largest([worst, above / magnitude]);
            }
        }
    }
    Ok(worst)
}

/// All sums of one codeword of each codebook, [go, gi] each, those of the last codebook fastest.
fn sums(matrix: &QuantizedMatrix) -> Vec<Array2<f64>> {
    let scheme = matrix.scheme();
    let mut sums = vec![Array2::zeros((scheme.out_group_size, scheme.in_group_size))];
    for codebook in matrix.codebooks().outer_iter() {
        sums = sums
            .iter()
            .flat_map(|sum| codebook.outer_iter().map(move |codeword| sum + &codeword))
            .collect();
    }
    sums
}
