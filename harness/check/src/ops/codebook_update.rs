use aqlm_reference::{adam, closed_form, update};
use aqlm_vocabulary::{AdamSettings, QuantizedMatrix, Update};

use super::Prepared;
use super::layer::{Layer, malformed};
use crate::Comparison;
use crate::cases::{Case, LayerCase, Operation, Updating};
use crate::compare::{Against, Findings, repeated};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::CodebookUpdate,
        number,
    }
}

fn terms(layer: &Layer) -> usize {
    4 * (2 * layer.weight.ncols() + layer.data.matrix.scheme().num_codebooks + 4)
}

/// By how much a loss is above another, as a share of it. Below `floor`, which is what errors of one epsilon
/// in every number come to, losses are not told apart.
fn above(found: f64, bound: f64, floor: f64) -> f64 {
    let above = found - bound - floor;
    if above <= 0.0 {
        0.0
    } else {
        above / bound.max(floor)
    }
}

/// What errors of an epsilon in each number of the optimum's matrix come to: the squares of the outputs'
/// errors.
fn floor(check: Against, layer: &Layer, optimum: &QuantizedMatrix) -> f64 {
    (2.0 * layer.weight.ncols() as f64 * check.number.epsilon()).powi(2) * layer.magnitude(optimum)
}

/// The reference's loss that others are compared to: of the codebooks alone, whose least squares have one
/// value. Where alternating with scales leads from there is open, but it must not lead upwards.
///
/// Conjugate gradients converge more slowly the more is rounded, and neither type has converged when its
/// steps are used up, so that theirs is the loss after half of the steps.
fn bound(layer: &Layer, problem: &LayerCase) -> Result<(f64, QuantizedMatrix)> {
    let settings = match problem.update_settings() {
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
    Ok((layer.loss(&matrix), matrix))
}

/// The least-squares optimum: no step along its gradient lowers the loss, and Adam never gets below it.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.layer()?;
    let layer = Layer::new(problem.data(case.seed));
    let check = against(Number::F64);
    let matrix = &layer.data.matrix;
    let (weight, hessian) = (&layer.weight, &layer.data.hessian);
    let updated = update(weight, hessian, matrix, &problem.update_settings())?;
    let start = (layer.loss(matrix), matrix);
    let terms = terms(&layer);
    let mut comparisons = vec![layer.not_above(check, terms, "above the start's", &updated, start)?];

    // The optimum for these scales, against any other way there.
    let with = |codebooks| matrix.clone().with_codebooks(codebooks);
    let best = with(closed_form(weight, hessian, matrix)?)?;
    let optimum = layer.loss(&best);
    let others = [
        with(aqlm_reference::conjugate_gradients(weight, hessian, matrix, 60)?)?,
        adam_run(&layer, 30)?.with_scales(matrix.scales().clone())?,
    ];
    for (what, other) in ["above conjugate gradients'", "above Adam's"]
        .into_iter()
        .zip(&others)
    {
        let bound = (layer.loss(other), other);
        comparisons.push(layer.not_above(check, terms, what, &best, bound)?);
    }
    // Zero gradient: half of the way towards any other point is no better.
    let toward = |t: f64, other: &QuantizedMatrix| {
        let codebooks = best.codebooks() * (1.0 - t) + other.codebooks() * t;
        best.clone().with_codebooks(codebooks)
    };
    for t in [0.5, 1e-2, -1e-2] {
        let other = toward(t, &others[0])?;
        let bound = (layer.loss(&other), &other);
        comparisons.push(layer.not_above(check, terms, "above a point beside it", &best, bound)?);
        let other = toward(t, matrix)?;
        let bound = (layer.loss(&other), &other);
        comparisons.push(layer.not_above(check, terms, "above a point on the way", &best, bound)?);
    }
    // The update alternates with scales, so it ends below the optimum of the first scales.
    if problem.update == Updating::Closed {
        comparisons.push(layer.not_above(
            check,
            terms,
            "above the codebooks' alone",
            &updated,
            (optimum, &best),
        )?);
    }
    Ok(comparisons)
}

/// Adam on the codebooks alone cannot be had, but its codebooks with the first scales can: still no better
/// than the best.
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

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem: LayerCase = case.layer()?;
    let layer = Layer::new(problem.data(case.seed));
    let settings: Update = problem.update_settings();
    let (expected_loss, expected) = bound(&layer, &problem)?;
    let start_loss = layer.loss(&layer.data.matrix);
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (weight, hessian) = (&layer.data.weight, &layer.data.hessian);
        let (found, same) = repeated(check, "matrix", || {
            subject.codebook_update(weight, hessian, &layer.data.matrix, &settings)
        })?;
        let changed = f64::from(u8::from(found.codes() != layer.data.matrix.codes()));
        let mut comparisons = vec![
            same,
            check.value(
                Measure::Exact,
                0,
                "shapes and codes",
                malformed(&found, &layer.data.matrix) + changed,
            )?,
        ];
        if comparisons.iter().all(Comparison::holds) {
            let floor = floor(check, &layer, &expected);
            let loss = layer.loss(&found);
            for (what, bound) in [
                ("above the reference's", expected_loss),
                ("above the start's", start_loss),
            ] {
                comparisons.push(check.value(Measure::Loss, 0, what, above(loss, bound, floor))?);
            }
        }
        Ok(Findings {
            comparisons,
            excess: None,
        })
    }))
}
