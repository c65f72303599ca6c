use std::sync::Arc;

use aqlm_engine::alternate::alternate;
use aqlm_engine::backends::{CpuLayers, CudaLayers};
use aqlm_engine::ops::LayerOps as _;
use aqlm_reference::{dead_inputs, layer_quantize};
use aqlm_vocabulary::{LayerReport, QuantizedMatrix};
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

/// Fields of the id after the values.
const FIELDS: &[Field] = &[
    Field::Inputs,
    Field::Beam,
    Field::Search,
    Field::Update,
    Field::Start,
];

/// The alternation for one layer.
pub(crate) struct LayerQuantize;

impl Op for LayerQuantize {
    type Data = Layer;
    type Answer = (QuantizedMatrix, LayerReport);
    type Expected = QuantizedMatrix;

    const KIND: Kind = Kind::Layer(FIELDS);
    const CORNERS: &'static [&'static str] = &[
        "2x5g8-96x64-outliers-correlated-b1-single-closed-residual-s1",
        "2x5g8-96x64-outliers-correlated-b3-single-closed-em-s2",
        "2x5g8-96x64-outliers-correlated-b1-pairs-closed-residual-s7",
        "3x3g4o2-64x48-outliers-correlated-b2-pairs-closed-em-s8",
        "1x6g8-96x64-outliers-correlated-b2-single-gradients-em-s3",
        "2x4g4o2-64x48-outliers-correlated-b1-single-adam-residual-s4",
        "2x3g8-40x40-zerorows-dead-b2-single-closed-em-s5",
        "1x1g4-1x4-dyadic-white-b1-single-closed-residual-s6",
    ];

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::layer(FIELDS)
    }

    fn number(subject: &Subject) -> Number {
        of_quantizer(subject)
    }

    fn run(subject: &Subject, layer: &Layer) -> Result<(QuantizedMatrix, LayerReport)> {
        let (data, settings, key) = (&layer.data, layer.settings(), layer.key);
        let (hessian, observe) = (&data.hessian, &mut |_| ());
        match subject {
            Subject::Reference => Ok(layer_quantize(&layer.weight, hessian, &settings, key, observe)?),
            Subject::Cpu(_) => {
                let problem = CpuLayers.problem(&data.weight, hessian, &settings)?;
                alternate(&CpuLayers, &problem, &settings, key, observe)
            }
            Subject::Cuda(cuda) => {
                let layers = CudaLayers::new(Arc::clone(&cuda.device))?;
                let problem = layers.problem(&data.weight, hessian, &settings)?;
                alternate(&layers, &problem, &settings, key, observe)
            }
        }
    }

    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let layer = Layer::new(case)?;
        let (found, report) = Self::run(&Subject::Reference, &layer)?;
        on_its_path(check, &layer, &found, &report)
    }

    fn expected(layer: &Layer) -> Result<QuantizedMatrix> {
        Ok(Self::run(&Subject::Reference, layer)?.0)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        layer: &Layer,
        expected: &QuantizedMatrix,
        (found, report): &(QuantizedMatrix, LayerReport),
    ) -> Result<Findings> {
        let comparisons = on_its_path(check, layer, found, report)?;
        layer.findings(check, comparisons, found, expected)
    }

    fn breakages() -> Vec<Breakage<Layer, (QuantizedMatrix, LayerReport)>> {
        vec![
            Breakage::of_answer("the scale of the next output group", |found, _, _| {
                breakage::next_scales(&mut found.0);
            }),
            Breakage::of_answer("codes of the next input group", |found, _, _| {
                breakage::next_groups(&mut found.0);
            }),
        ]
    }
}

/// Requirements on every alternation: it reports the loss that it reached, never raises it, and counts dead
/// inputs.
fn on_its_path(
    check: Against,
    layer: &Layer,
    found: &QuantizedMatrix,
    report: &LayerReport,
) -> Result<Vec<Comparison>> {
    let mut comparisons = vec![check.value(
        Measure::Exact,
        "shapes and codes",
        malformed(found, &layer.data.matrix),
    )?];
    if !comparisons[0].holds() {
        return Ok(comparisons);
    }
    let whole: f64 = (layer.weight.dot(&layer.data.hessian) * &layer.weight).sum();
    let reached = layer.loss(found) / whole;
    // A relative error in every term of the loss, as a share of the loss's magnitude. The loss itself is a
    // small difference of large numbers, so a share of the loss would be too strict.
    let scale = layer.magnitude(found) / whole;
    let difference = ((report.relative_error - reached) / scale).powi(2);
    comparisons.push(check.value(Measure::Nmse, "loss as reported", difference)?);
    let losses = std::iter::once(report.initial_error).chain(report.trace.iter().copied());
    let losses: Vec<f64> = losses.collect();
    let rise = largest(losses.windows(2).map(|pair| (pair[1] - pair[0]).max(0.0) / scale));
    let last = losses.last().copied().unwrap_or(f64::NAN);
    let mismatch = f64::from(u8::from(last.to_bits() != report.relative_error.to_bits()));
    let dead = report.dead_inputs.abs_diff(dead_inputs(&layer.data.hessian));
    comparisons.push(check.value(Measure::Loss, "rounds that rise", rise)?);
    comparisons.push(check.value(Measure::Exact, "the last round is the result", mismatch)?);
    comparisons.push(check.value(Measure::Exact, "dead inputs", dead as f64)?);
    Ok(comparisons)
}
