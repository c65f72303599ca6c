use aqlm_optimized::cpu::quantizer;
use aqlm_optimized::cuda::quantizer as on_gpu;
use aqlm_reference::{em_init, residual_init};
use aqlm_vocabulary::{AqlmError, QuantizedMatrix};
use proptest::strategy::BoxedStrategy;

use super::layer::{Layer, malformed};
use super::residual_init::norms;
use super::{CaseData as _, Op, of_quantizer};
use crate::Comparison;
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Field, Kind, Problem, strategy};
use crate::compare::{Against, Findings};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use aqlm_formats::Result;

/// Rounds of assignment and exact M-step.
const ROUNDS: usize = 3;

/// Fields of the id after the values.
const FIELDS: &[Field] = &[Field::Inputs];

/// First codes and codebooks, refined under the H-metric.
pub(crate) struct EmInit;

impl Op for EmInit {
    type Data = Layer;
    type Answer = Initialized;
    type Expected = QuantizedMatrix;

    const KIND: Kind = Kind::Layer(FIELDS);
    const CORNERS: &'static [&'static str] = &[
        "2x5g8-96x64-outliers-correlated-s1",
        "1x6g4-64x48-zerorows-deficient-s2",
        "2x4g4o2-64x32-outliers-dead-s3",
        "2x3g8-40x32-outliers-ill-s4",
        "1x1g4-1x4-dyadic-white-s5",
    ];

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::layer(FIELDS)
    }

    fn number(subject: &Subject) -> Number {
        of_quantizer(subject)
    }

    fn run(subject: &Subject, layer: &Layer) -> Result<Initialized> {
        let settings = layer.settings();
        let of = |rounds| -> Result<QuantizedMatrix> {
            let (data, key) = (&layer.data, layer.key);
            match subject {
                Subject::Reference => Ok(em_init(&layer.weight, &data.hessian, &settings, rounds, key)?),
                Subject::Cpu(_) => Ok(quantizer::em_init(
                    &data.weight,
                    &data.hessian,
                    &settings,
                    rounds,
                    key,
                )?),
                Subject::Cuda(cuda) => {
                    Ok(
                        on_gpu::em_init(&cuda.device, &data.weight, &data.hessian, &settings, rounds, key)
                            .map_err(AqlmError::from)?,
                    )
                }
            }
        };
        Ok(Initialized {
            matrix: of(ROUNDS)?,
            // EM lowers its objective for a single codebook only; compared from this start
            start: (settings.scheme.num_codebooks == 1).then(|| of(0)).transpose()?,
        })
    }

    /// More rounds never raise the objective of a single codebook. Zero rounds equal residual k-means.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let layer = Layer::new(case)?;
        let mut settings = layer.settings();
        let key = layer.key;
        let none = em_init(&layer.weight, &layer.data.hessian, &settings, 0, key)?;
        let plain = residual_init(&layer.weight, &settings, key)?;
        let different = f64::from(u8::from(none != plain));
        let what = "no rounds against residual k-means";
        let mut comparisons = vec![check.value(Measure::Exact, what, different)?];
        settings.scheme.num_codebooks = 1;
        let of = |rounds| em_init(&layer.weight, &layer.data.hessian, &settings, rounds, key);
        let mut before = of(0)?;
        for rounds in 1..=ROUNDS {
            let next = of(rounds)?;
            let share = rise(&layer, &before, &next);
            comparisons.push(check.value(Measure::Loss, "objective that a round adds", share)?);
            before = next;
        }
        Ok(comparisons)
    }

    fn expected(layer: &Layer) -> Result<QuantizedMatrix> {
        let (settings, key) = (layer.settings(), layer.key);
        Ok(em_init(
            &layer.weight,
            &layer.data.hessian,
            &settings,
            ROUNDS,
            key,
        )?)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        layer: &Layer,
        expected: &QuantizedMatrix,
        answer: &Initialized,
    ) -> Result<Findings> {
        let found = &answer.matrix;
        let scales = norms(&layer.weight, found.scheme().out_group_size) + 1e-9;
        let mut comparisons = vec![
            check.value(Measure::Exact, "shapes and codes", malformed(found, expected))?,
            check.nmse("scales", found.scales(), &scales)?,
        ];
        if let Some(start) = &answer.start {
            let share = rise(layer, start, found);
            comparisons.push(check.value(Measure::Loss, "objective that EM adds", share)?);
        }
        let floor = check.floor(layer.magnitude(expected))?;
        let excess = ((objective(layer, found) + floor) / (objective(layer, expected) + floor)).ln();
        Ok(Findings {
            comparisons,
            excess: Some(excess),
        })
    }

    fn breakages() -> Vec<Breakage<Layer, Initialized>> {
        vec![
            Breakage::of_answer("the scale of the next output group", |found, _, _| {
                breakage::next_scales(&mut found.matrix);
            }),
            Breakage::of_answer("a codeword that is not finite", |found, _, _| {
                found
                    .matrix
                    .tune(|mut codebooks, _| codebooks[[0, 0, 0, 0]] = f64::INFINITY);
            }),
        ]
    }
}

/// The matrix; for a single codebook also the matrix before the first round.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Initialized {
    matrix: QuantizedMatrix,
    start: Option<QuantizedMatrix>,
}

/// How far a matrix's objective is above another's, as a share of the magnitudes.
fn rise(layer: &Layer, before: &QuantizedMatrix, after: &QuantizedMatrix) -> f64 {
    let rise = objective(layer, after) - objective(layer, before);
    if rise <= 0.0 {
        0.0
    } else {
        rise / layer.magnitude(before)
    }
}

/// The objective that EM lowers: each group's error in its own metric, s^2 (x - c) H_jj (x - c). It ignores
/// correlations between groups.
fn objective(layer: &Layer, matrix: &QuantizedMatrix) -> f64 {
    let columns = matrix.scheme().in_group_size;
    let difference = &layer.weight - &aqlm_reference::decode(matrix);
    let hessian = &layer.data.hessian;
    difference
        .outer_iter()
        .flat_map(|row| {
            (0..row.len() / columns).map(move |j| {
                let at = j * columns..(j + 1) * columns;
                let part = row.slice(ndarray::s![at.clone()]).to_owned();
                part.dot(&hessian.slice(ndarray::s![at.clone(), at]).dot(&part))
            })
        })
        .sum()
}
