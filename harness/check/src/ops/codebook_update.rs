use aqlm_optimized::cpu::quantizer;
use aqlm_optimized::cuda::quantizer as on_gpu;
use aqlm_reference::{adam, closed_form, update};
use aqlm_vocabulary::{AdamSettings, AqlmError, QuantizedMatrix, Update};
use ndarray::Axis;
use proptest::strategy::BoxedStrategy;

use super::layer::{Layer, malformed};
use super::{CaseData as _, Op, of_quantizer};
use crate::Comparison;
use crate::breakage::Breakage;
use crate::cases::{Case, Field, Kind, Problem, Updating, strategy};
use crate::compare::{Against, Findings};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use aqlm_formats::Result;

/// Fields of the id after the values.
const FIELDS: &[Field] = &[Field::Inputs, Field::Update];

/// Codebooks and scales for fixed codes.
pub(crate) struct CodebookUpdate;

impl Op for CodebookUpdate {
    type Data = Layer;
    type Answer = QuantizedMatrix;
    type Expected = Bound;

    const KIND: Kind = Kind::Layer(FIELDS);
    const CORNERS: &'static [&'static str] = &[
        "2x4g4-64x48-outliers-correlated-closed-s1",
        "1x5g8-96x64-outliers-correlated-gradients-s2",
        "2x3g4o2-40x32-outliers-correlated-adam-s3",
        "3x6g8-100x64-outliers-correlated-closed-s4",
        "2x4g4-64x48-outliers-deficient-closed-s5",
        "2x4g4-64x48-repeated-dead-gradients-s6",
        "2x3g8-20x48-zerorows-ill-closed-s7",
        "1x1g4-1x4-dyadic-white-closed-s8",
        // fits that f32 cannot follow: a rank-deficient H that rounding makes indefinite, a loss many digits
        // below the initial one, ill-conditioned, almost exact after the first step
        "2x5g11-27x11-outliers-deficient-closed-s887",
        "4x4g4o3-15x32-denormal-correlated-closed-s240",
        "2x5g16-30x64-zerorows-ill-closed-s836",
        "1x3g8-33x8-equalrows-white-closed-s966",
    ];

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::layer(FIELDS)
    }

    fn number(subject: &Subject) -> Number {
        of_quantizer(subject)
    }

    fn run(subject: &Subject, layer: &Layer) -> Result<QuantizedMatrix> {
        let (data, settings) = (&layer.data, layer.problem.update_settings());
        match subject {
            Subject::Reference => Ok(update(&layer.weight, &data.hessian, &data.matrix, &settings)?),
            Subject::Cpu(_) => Ok(quantizer::update(
                &data.weight,
                &data.hessian,
                &data.matrix,
                &settings,
            )?),
            Subject::Cuda(cuda) => {
                Ok(
                    on_gpu::update(&cuda.device, &data.weight, &data.hessian, &data.matrix, &settings)
                        .map_err(AqlmError::from)?,
                )
            }
        }
    }

    /// The least-squares optimum: no step along its gradient lowers the loss, and Adam's loss is never below
    /// it.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let layer = Layer::new(case)?;
        let matrix = &layer.data.matrix;
        let (weight, hessian) = (&layer.weight, &layer.data.hessian);
        let updated = update(weight, hessian, matrix, &layer.problem.update_settings())?;
        let start = (layer.loss(matrix), matrix);
        let mut comparisons = vec![layer.not_above(check, "above the start's", &updated, start)?];

        // Compares the optimum for these scales with other updates at the same scales.
        let best = matrix
            .clone()
            .with_codebooks(closed_form(weight, hessian, matrix)?)?;
        let optimum = layer.loss(&best);
        let others = [
            matrix
                .clone()
                .with_codebooks(aqlm_reference::conjugate_gradients(weight, hessian, matrix, 60)?)?,
            adam_run(&layer, 30)?.with_scales(matrix.scales().clone())?,
        ];
        for (what, other) in ["above conjugate gradients'", "above Adam's"]
            .into_iter()
            .zip(&others)
        {
            let bound = (layer.loss(other), other);
            comparisons.push(layer.not_above(check, what, &best, bound)?);
        }
        // The gradient is zero: a half step towards any other point does not lower the loss.
        let toward = |t: f64, other: &QuantizedMatrix| {
            best.clone()
                .with_codebooks(best.codebooks() * (1.0 - t) + other.codebooks() * t)
        };
        for t in [0.5, 1e-2, -1e-2] {
            let other = toward(t, &others[0])?;
            let bound = (layer.loss(&other), &other);
            comparisons.push(layer.not_above(check, "above a point beside it", &best, bound)?);
            let other = toward(t, matrix)?;
            let bound = (layer.loss(&other), &other);
            comparisons.push(layer.not_above(check, "above a point on the way", &best, bound)?);
        }
        // The update alternates with scales, so its final loss is below the optimum for the initial scales.
        if layer.problem.update == Updating::Closed {
            comparisons.push(layer.not_above(
                check,
                "above the codebooks' alone",
                &updated,
                (optimum, &best),
            )?);
        }
        Ok(comparisons)
    }

    fn expected(layer: &Layer) -> Result<Bound> {
        bound(layer)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        layer: &Layer,
        expected: &Bound,
        found: &QuantizedMatrix,
    ) -> Result<Findings> {
        let start = &layer.data.matrix;
        let changed = f64::from(u8::from(found.codes() != start.codes()));
        let shape = malformed(found, start) + changed;
        let mut comparisons = vec![check.value(Measure::Exact, "shapes and codes", shape)?];
        if comparisons.iter().all(Comparison::holds) {
            // Errors of one epsilon in each number of the optimum's matrix.
            let floor = check.floor(layer.magnitude(&expected.matrix))?;
            let loss = layer.loss(found);
            for (what, bound) in [
                ("above the reference's", expected.loss),
                ("above the start's", layer.loss(start)),
            ] {
                comparisons.push(check.value(Measure::Loss, what, above(loss, bound, floor))?);
            }
        }
        Ok(comparisons.into())
    }

    fn breakages() -> Vec<Breakage<Layer, QuantizedMatrix>> {
        vec![
            Breakage::of_answer("a NaN", |found, _, _| {
                let middle = found.codebooks().len() / 2;
                found.tune(|mut codebooks, _| {
                    if let Some(value) = codebooks.iter_mut().nth(middle) {
                        *value = f64::NAN;
                    }
                });
            }),
            Breakage::of_answer("a last codebook that keeps what it had", |found, layer, _| {
                let before = layer.data.matrix.codebooks();
                let last = before.dim().0 - 1;
                let codebook = before.index_axis(Axis(0), last);
                found.tune(|mut codebooks, _| codebooks.index_axis_mut(Axis(0), last).assign(&codebook));
            }),
        ]
    }
}

/// An upper bound of a loss, and the matrix with that loss.
pub(crate) struct Bound {
    loss: f64,
    matrix: QuantizedMatrix,
}

/// How far a loss is above another, as a share of it. Losses below `floor`, the effect of errors of one
/// epsilon in every number, are treated as equal.
fn above(found: f64, bound: f64, floor: f64) -> f64 {
    let above = found - bound - floor;
    if above <= 0.0 {
        0.0
    } else {
        above / bound.max(floor)
    }
}

/// The reference's loss that others must not exceed: that of updating the codebooks alone, whose
/// least-squares optimum is unique. Alternation with scales may end at any lower loss, but must not raise it.
///
/// Rounding slows the convergence of conjugate gradients, and they have not converged after their steps in
/// either type. Their bound is therefore the loss after half of the steps.
fn bound(layer: &Layer) -> Result<Bound> {
    let settings = match layer.problem.update_settings() {
        Update::ClosedForm {
            max_unknowns,
            cg_steps,
            ..
        } => Update::ClosedForm {
            max_unknowns,
            cg_steps: cg_steps / 2,
            scale_rounds: 0,
        },
        adam @ Update::Adam { .. } => adam,
    };
    let matrix = update(&layer.weight, &layer.data.hessian, &layer.data.matrix, &settings)?;
    Ok(Bound {
        loss: layer.loss(&matrix),
        matrix,
    })
}

/// Adam cannot run on the codebooks alone. Its codebooks with the initial scales are still no better than the
/// optimum.
fn adam_run(layer: &Layer, steps: usize) -> Result<QuantizedMatrix> {
    let settings = AdamSettings {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: AdamSettings::USUAL_EPS,
        amsgrad: false,
    };
    Ok(adam(
        &layer.weight,
        &layer.data.hessian,
        &layer.data.matrix,
        &settings,
        steps,
    )?
    .0)
}
