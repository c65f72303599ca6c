use aqlm_reference::{dead_inputs, layer_quantize};
use aqlm_vocabulary::{LayerReport, QuantizedMatrix};

use super::Prepared;
use super::layer::{Layer, malformed};
use crate::cases::{Case, Operation};
use crate::compare::{Against, Findings, repeated};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::LayerQuantize,
        number,
    }
}

/// What every alternation must do: report the loss that it reached, never let it rise, count dead inputs.
fn on_its_path(
    check: Against,
    layer: &Layer,
    found: &QuantizedMatrix,
    report: &LayerReport,
) -> Result<Vec<Comparison>> {
    let mut comparisons = vec![check.value(
        Measure::Exact,
        0,
        "shapes and codes",
        malformed(found, &layer.data.matrix),
    )?];
    if !comparisons[0].holds() {
        return Ok(comparisons);
    }
    let inputs = layer.weight.ncols();
    let codebooks = found.scheme().num_codebooks;
    let whole: f64 = (layer.weight.dot(&layer.data.hessian) * &layer.weight).sum();
    let reached = layer.loss(found) / whole;
    // A relative error in every term of the loss, as a share of the loss's magnitude rather than of the loss,
    // which is a small difference of large numbers.
    let scale = layer.magnitude(found) / whole;
    let difference = ((report.relative_error - reached) / scale).powi(2);
    let terms = 2 * inputs + codebooks;
    comparisons.push(check.value(Measure::Nmse, terms, "loss as reported", difference)?);
    let losses = std::iter::once(report.initial_error).chain(report.trace.iter().copied());
    let losses: Vec<f64> = losses.collect();
    let rise = largest(losses.windows(2).map(|pair| (pair[1] - pair[0]).max(0.0) / scale));
    let last = losses.last().copied().unwrap_or(f64::NAN);
    let mismatch = f64::from(u8::from(last.to_bits() != report.relative_error.to_bits()));
    let dead = report.dead_inputs.abs_diff(dead_inputs(&layer.data.hessian));
    comparisons.push(check.value(
        Measure::Loss,
        8 * (2 * inputs + codebooks + 8),
        "rounds that rise",
        rise,
    )?);
    comparisons.push(check.value(Measure::Exact, 0, "the last round is the result", mismatch)?);
    comparisons.push(check.value(Measure::Exact, 0, "dead inputs", dead as f64)?);
    Ok(comparisons)
}

pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.layer()?;
    let layer = Layer::new(problem.data(case.seed));
    let (settings, key) = (problem.settings(), problem.key(case.seed));
    let hessian = &layer.data.hessian;
    let (found, report) = layer_quantize(&layer.weight, hessian, &settings, key, &mut |_| ())?;
    on_its_path(against(Number::F64), &layer, &found, &report)
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.layer()?;
    let layer = Layer::new(problem.data(case.seed));
    let (settings, key) = (problem.settings(), problem.key(case.seed));
    let (expected, _) = layer_quantize(&layer.weight, &layer.data.hessian, &settings, key, &mut |_| ())?;
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let ((found, report), same) = repeated(check, "matrix and report", || {
            subject.layer_quantize(&layer.data.weight, &layer.data.hessian, &settings, key)
        })?;
        let mut comparisons = on_its_path(check, &layer, &found, &report)?;
        comparisons.push(same);
        let excess = comparisons
            .iter()
            .all(Comparison::holds)
            .then(|| layer.excess(check, &found, &expected));
        Ok(Findings { comparisons, excess })
    }))
}
