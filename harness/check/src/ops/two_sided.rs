use std::sync::Arc;

use aqlm_engine::backends::{CpuLayers, CudaLayers};
use aqlm_engine::ops::TwoSidedOps;
use aqlm_engine::two_sided::{ENOUGH, OUTER_DAMPING, alternate_two_sided};
use aqlm_reference::{
    damped, damped_outer, dead_inputs, decode, feedback_init, two_sided_loss, two_sided_search,
    two_sided_update,
};
use aqlm_vocabulary::{
    FeedbackSettings, GroupOrder, Initialization, LayerReport, LayerSettings, Purpose, QuantizedMatrix,
    Update, sweep_order,
};
use ndarray::Array2;
use proptest::strategy::{BoxedStrategy, Strategy as _};

use super::layer::{Layer, malformed};
use super::{CaseData, Cost, Op, of_quantizer};
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Field, Kind, Problem, strategy};
use crate::compare::{Against, Findings};
use crate::keep::{Operands, Tensors};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

/// Fields of the id after the values. The beam is also the number of hypotheses of the initialisation.
const FIELDS: &[Field] = &[Field::Inputs, Field::Beam, Field::Search];

/// The alternation for one layer under the two-sided objective.
pub(crate) struct TwoSided;

/// A layer and its H_O.
#[derive(Debug, Clone)]
pub(crate) struct TwoSidedLayer {
    layer: Layer,
    outer: Array2<f64>,
}

impl Operands for TwoSidedLayer {
    fn add_to(&self, tensors: &mut Tensors) {
        self.layer.add_to(tensors);
        tensors.array("outer", &self.outer);
    }
}

impl CaseData for TwoSidedLayer {
    fn new(case: &Case) -> Result<Self> {
        let layer = Layer::new(case)?;
        Ok(Self {
            outer: layer.problem.outer(case.seed),
            layer,
        })
    }

    /// The weight and both metrics, and the product of all three.
    fn cost(&self) -> Cost {
        let (out, inputs) = self.layer.weight.dim();
        Cost {
            bytes: (out * inputs + inputs * inputs + out * out) * size_of::<f32>(),
            products: vec![[out, inputs, inputs], [out, out, inputs]],
        }
    }
}

impl Op for TwoSided {
    type Data = TwoSidedLayer;
    type Answer = (QuantizedMatrix, LayerReport);
    type Expected = QuantizedMatrix;

    const KIND: Kind = Kind::Layer(FIELDS);
    const CORNERS: &'static [&'static str] = &[
        "2x5g8-96x64-outliers-correlated-b1-single-s1",
        "2x4g8-70x48-outliers-correlated-b2-pairs-s2",
        "1x6g8-40x64-outliers-dead-b2-single-s3",
        "3x3g4-33x48-zerorows-ill-b3-pairs-s4",
        "2x3g4-9x16-dyadic-white-b1-single-s5",
        "1x1g4-1x4-dyadic-white-b1-single-s6",
    ];

    fn strategy() -> BoxedStrategy<Problem> {
        let single_rows = |problem| match problem {
            Problem::Layer(mut case) => {
                case.scheme.out_group_size = 1;
                Problem::Layer(case)
            }
            other => other,
        };
        strategy::layer(FIELDS).prop_map(single_rows).boxed()
    }

    fn number(subject: &Subject) -> Number {
        of_quantizer(subject)
    }

    fn run(subject: &Subject, data: &TwoSidedLayer) -> Result<(QuantizedMatrix, LayerReport)> {
        match subject {
            Subject::Reference => reference(data),
            Subject::Cpu(_) => on(&CpuLayers, data),
            Subject::Cuda(cuda) => on(&CudaLayers::new(Arc::clone(&cuda.device))?, data),
        }
    }

    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let data = TwoSidedLayer::new(case)?;
        let (found, report) = reference(&data)?;
        on_its_path(check, &data, &found, &report)
    }

    fn expected(data: &TwoSidedLayer) -> Result<QuantizedMatrix> {
        Ok(reference(data)?.0)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        data: &TwoSidedLayer,
        expected: &QuantizedMatrix,
        (found, report): &(QuantizedMatrix, LayerReport),
    ) -> Result<Findings> {
        let comparisons = on_its_path(check, data, found, report)?;
        let excess = if comparisons.iter().all(Comparison::holds) {
            let metrics = Metrics::of(data)?;
            let floor = check.floor(metrics.magnitude(data, expected))?;
            let loss = |matrix| metrics.loss(data, matrix) + floor;
            Some((loss(found) / loss(expected)).ln())
        } else {
            None
        };
        Ok(Findings { comparisons, excess })
    }

    fn breakages() -> Vec<Breakage<TwoSidedLayer, (QuantizedMatrix, LayerReport)>> {
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

fn settings(data: &TwoSidedLayer) -> (LayerSettings, FeedbackSettings) {
    let feedback = FeedbackSettings {
        hypotheses: data.layer.problem.beam,
        passes: 1,
        order: GroupOrder::Natural,
    };
    let settings = LayerSettings {
        init: Initialization::Feedback(feedback),
        ..data.layer.settings()
    };
    (settings, feedback)
}

/// The engine's policy over a machine's steps.
fn on<O: TwoSidedOps>(layers: &O, data: &TwoSidedLayer) -> Result<(QuantizedMatrix, LayerReport)> {
    let (settings, _) = settings(data);
    let (weight, hessian) = (&data.layer.data.weight, &data.layer.data.hessian);
    let problem = layers.problem(weight, hessian, &settings)?;
    let given = (weight, hessian, &data.outer);
    alternate_two_sided(layers, &problem, given, &settings, data.layer.key, &mut |_| ())
}

/// The same alternation from the reference's functions, whose search goes row by row.
fn reference(data: &TwoSidedLayer) -> Result<(QuantizedMatrix, LayerReport)> {
    let (settings, feedback) = settings(data);
    let Metrics { outer, hessian } = Metrics::of(data)?;
    let (weight, key) = (&data.layer.weight, data.layer.key);
    let loss = |matrix: &QuantizedMatrix| two_sided_loss(&(weight - &decode(matrix)), &outer, &hessian);
    let norm = two_sided_loss(weight, &outer, &hessian);
    let relative = |loss: f64| if loss == 0.0 { 0.0 } else { loss / norm };
    let mut matrix = feedback_init(weight, &hessian, &settings, &feedback, key)?;
    let initial_error = relative(loss(&matrix));
    let scale_rounds = match settings.update {
        Update::ClosedForm { scale_rounds, .. } => scale_rounds,
        Update::Adam { .. } => 0,
    };
    let (mut best, mut trace) = (matrix.clone(), Vec::new());
    let mut sweeps = key.stream(Purpose::Sweep);
    for _ in 0..settings.max_rounds {
        matrix = two_sided_update(weight, &outer, &hessian, &matrix, ENOUGH, scale_rounds)?;
        let order = sweep_order(
            &mut sweeps,
            matrix.groups().1,
            settings.scheme.num_codebooks,
            settings.searches_pairs(),
        );
        let codes = two_sided_search(weight, &outer, &hessian, &matrix, &order, settings.beam)?;
        matrix = matrix.with_codes(codes)?;
        let (before, now) = (relative(loss(&best)), relative(loss(&matrix)));
        let kept = now <= before;
        if !kept {
            break;
        }
        best = matrix.clone();
        trace.push(now);
        let enough = before - now >= settings.relative_tolerance * before && before > now;
        if !enough {
            break;
        }
    }
    let report = LayerReport {
        initial_error,
        relative_error: relative(loss(&best)),
        trace,
        dead_inputs: dead_inputs(&data.layer.data.hessian),
    };
    Ok((best, report))
}

/// The damped metrics.
struct Metrics {
    outer: Array2<f64>,
    hessian: Array2<f64>,
}

impl Metrics {
    fn of(data: &TwoSidedLayer) -> Result<Self> {
        Ok(Self {
            outer: damped_outer(&data.outer, OUTER_DAMPING)?,
            hessian: damped(&data.layer.data.hessian, settings(data).0.damping),
        })
    }

    fn loss(&self, data: &TwoSidedLayer, matrix: &QuantizedMatrix) -> f64 {
        two_sided_loss(
            &(&data.layer.weight - &decode(matrix)),
            &self.outer,
            &self.hessian,
        )
    }

    /// tr(|H_O| R |H| R^T) with R = |W| + |Q|: the sum of magnitudes of a loss's terms.
    fn magnitude(&self, data: &TwoSidedLayer, matrix: &QuantizedMatrix) -> f64 {
        let mut absolute = matrix.clone();
        absolute.tune(|mut codebooks, mut scales| {
            codebooks.mapv_inplace(f64::abs);
            scales.mapv_inplace(f64::abs);
        });
        let rows = data.layer.weight.mapv(f64::abs) + decode(&absolute);
        two_sided_loss(&rows, &self.outer.mapv(f64::abs), &self.hessian.mapv(f64::abs))
    }
}

/// Requirements on every alternation: it reports the loss that it reached, never raises it, and counts dead
/// inputs.
fn on_its_path(
    check: Against,
    data: &TwoSidedLayer,
    found: &QuantizedMatrix,
    report: &LayerReport,
) -> Result<Vec<Comparison>> {
    let mut comparisons = vec![check.value(
        Measure::Exact,
        "shapes and codes",
        malformed(found, &data.layer.data.matrix),
    )?];
    if !comparisons[0].holds() {
        return Ok(comparisons);
    }
    let metrics = Metrics::of(data)?;
    let whole = two_sided_loss(&data.layer.weight, &metrics.outer, &metrics.hessian);
    let reached = metrics.loss(data, found) / whole;
    let scale = metrics.magnitude(data, found) / whole;
    let difference = ((report.relative_error - reached) / scale).powi(2);
    comparisons.push(check.value(Measure::Nmse, "loss as reported", difference)?);
    let losses: Vec<f64> = std::iter::once(report.initial_error)
        .chain(report.trace.iter().copied())
        .collect();
    let rise = largest(losses.windows(2).map(|pair| (pair[1] - pair[0]).max(0.0) / scale));
    let last = losses.last().copied().unwrap_or(f64::NAN);
    let mismatch = f64::from(u8::from(last.to_bits() != report.relative_error.to_bits()));
    let dead = report.dead_inputs.abs_diff(dead_inputs(&data.layer.data.hessian));
    comparisons.push(check.value(Measure::Loss, "rounds that rise", rise)?);
    comparisons.push(check.value(Measure::Exact, "the last round is the result", mismatch)?);
    comparisons.push(check.value(Measure::Exact, "dead inputs", dead as f64)?);
    Ok(comparisons)
}
