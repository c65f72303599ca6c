use aqlm_engine::ops::TrainOps as _;
use aqlm_optimized::cpu::llama::{Activations, ModelTuner};
use aqlm_reference::llama as reference;
use aqlm_reference::{decode, pv::group_norms};
use aqlm_vocabulary::{
    AdamDecay, AqlmError, BlockWeights, CodeSettings, CodeState, Linear, LinearWeight, ModelTraining,
    ModelTuning, ModelWeights, Optimizer, Parameter, QuantizedMatrix, Rates, StepRule, Target, Tuned,
    TuningState,
};
use ndarray::{Array1, Array2, s};
use proptest::strategy::BoxedStrategy;

use super::block_backward::zero_or;
use super::llama::Llama;
use super::{CaseData as _, Op};
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Kind, Problem, llama as cases, strategy};
use crate::compare::{Against, Findings};
use crate::limits::{Measure, Number, TUNED_STEPS};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

/// Learning rate of every step.
const LR: f64 = 1e-2;

/// Losses, gradients of all parameters, and Adam steps of a whole model; and steps that change its codes.
pub(crate) struct ModelTune;

impl Op for ModelTune {
    type Data = Llama;
    type Answer = Trained;
    type Expected = Trained;

    const KIND: Kind = Kind::Llama;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::llama(24)
    }

    /// In every precision of training. In TF32 and bf16, gradients are not compared one by one, nor
    /// codes that follow from them, for the reason in block_finetune.
    fn ways(machine: &Subject, _data: &Llama) -> Vec<Subject> {
        machine.trainings()
    }

    fn run(subject: &Subject, case: &Llama) -> Result<Trained> {
        let (config, weights) = (&case.data.config, weights(case));
        match subject {
            Subject::Reference => {
                // With beta1 = 0 the first moments after a step with learning rate zero are the gradients.
                let decay = AdamDecay {
                    beta1: 0.0,
                    ..AdamDecay::PAPER
                };
                let mut tuner = reference::ModelTuner::new(config, &weights, &all(decay))?;
                tuner.accumulate(&case.sequences(), &targets(case), scale(case), &mut |_, _, _| ())?;
                tuner.step(Rates::of_parameters(0.0))?;
                let state = tuner.state()?;
                let gradients = state.parameters.into_iter();
                let gradients = gradients.map(|part| (part.parameter, part.first)).collect();
                let mut tuner = reference::ModelTuner::new(config, &weights, &all(AdamDecay::PAPER))?;
                let losses =
                    trained(&mut |step| {
                        if step > 0 {
                            tuner.step(Rates::of_parameters(LR))?;
                        }
                        Ok(tuner.accumulate(
                            &case.sequences(),
                            &targets(case),
                            scale(case),
                            &mut |_, _, _| (),
                        )?)
                    })?;
                let codes = with_codes(
                    reference::ModelTuner::new(config, &weights, &CODES)?,
                    case,
                    |tuner| tuner.margins().cloned().collect(),
                )?;
                Ok(Trained {
                    gradients,
                    losses,
                    codes,
                })
            }
            Subject::Cpu(_) => {
                let keep = Activations::Recompute;
                let mut tuner = ModelTuner::new(
                    config,
                    case.problem.tokens,
                    &weights,
                    &all(AdamDecay::PAPER),
                    keep,
                )?;
                let mut gradients = Vec::new();
                let losses = trained(&mut |step| {
                    if step > 0 {
                        tuner.step(Rates::of_parameters(LR))?;
                    }
                    let losses = tuner.accumulate(
                        &case.sequences(),
                        &targets(case),
                        scale(case),
                        &mut |_, _, _| (),
                    )?;
                    if step == 0 {
                        let of = tuner.gradients();
                        gradients = of.map(|(parameter, part)| (parameter, part.to_vec())).collect();
                    }
                    Ok(losses)
                })?;
                let tuner = ModelTuner::new(config, case.problem.tokens, &weights, &CODES, keep)?;
                Ok(Trained {
                    gradients,
                    losses,
                    codes: with_codes(tuner, case, |_| Vec::new())?,
                })
            }
            Subject::Cuda(cuda) => {
                let backend = case.on_machine(cuda)?;
                let mut tuner = backend.model_tuner(&weights, &all(AdamDecay::PAPER))?;
                let mut gradients = Vec::new();
                let losses = trained(&mut |step| {
                    if step > 0 {
                        tuner.step(Rates::of_parameters(LR))?;
                    }
                    let losses = tuner.accumulate(
                        &case.sequences(),
                        &targets(case),
                        scale(case),
                        &mut |_, _, _| (),
                    )?;
                    if step == 0 {
                        gradients = tuner.gradients().map_err(AqlmError::from)?;
                    }
                    Ok(losses)
                })?;
                let tuner = backend.model_tuner(&weights, &CODES)?;
                Ok(Trained {
                    gradients,
                    losses,
                    codes: with_codes(tuner, case, |_| Vec::new())?,
                })
            }
        }
    }

    /// Checks a few numbers of every parameter against central differences of the loss.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let case = Llama::new(case)?;
        let trained = Self::run(&Subject::Reference, &case)?;
        let (sequences, targets) = (case.sequences(), targets(&case));
        let mut tuner =
            reference::ModelTuner::new(&case.data.config, &weights(&case), &all(AdamDecay::PAPER))?;
        let start = tuner.state()?;
        let step = f64::EPSILON.cbrt();
        let mut pairs = Vec::new();
        for (at, (_, gradient)) in trained.gradients.iter().enumerate() {
            let largest =
                (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()));
            for i in [Some(gradient.len() / 2), largest].into_iter().flatten() {
                let mut loss = |by: f64| -> Result<f64> {
                    let mut moved: TuningState = start.clone();
                    moved.parameters[at].values[i] += by;
                    tuner.restore(&moved)?;
                    Ok(tuner.losses(&sequences, &targets)?.iter().sum::<f64>() * scale(&case))
                };
                // Differences of fourth order, because curvature is largest where a gradient is largest.
                let near = loss(step)? - loss(-step)?;
                let far = loss(2.0 * step)? - loss(-2.0 * step)?;
                let slope = (8.0 * near - far) / (12.0 * step);
                pairs.push((gradient[i], slope));
            }
        }
        Ok(vec![check.slopes("central differences", pairs)?])
    }

    fn expected(case: &Llama) -> Result<Trained> {
        Self::run(&Subject::Reference, case)
    }

    /// Parameters after the steps are not compared, for the reason in block_finetune.
    fn compare(
        check: Against,
        subject: &Subject,
        case: &Llama,
        expected: &Trained,
        found: &Trained,
    ) -> Result<Findings> {
        let names = |trained: &Trained| -> Vec<Parameter> {
            trained
                .gradients
                .iter()
                .map(|(parameter, _)| *parameter)
                .collect()
        };
        let different = f64::from(u8::from(names(found) != names(expected)));
        let mut comparisons = vec![
            check.value(Measure::Exact, "which parameters", different)?,
            check.nmse("losses", found.losses.row(0), expected.losses.row(0))?,
            check.nmse("losses of all steps", &found.losses, &expected.losses)?,
        ];
        if matches!(subject.number(), Number::Tf32 | Number::Bf16) {
            return Ok(comparisons.into());
        }
        for ((parameter, ours), (_, theirs)) in found.gradients.iter().zip(&expected.gradients) {
            let what = format!("gradient of {}", parameter.name(&case.data.config));
            comparisons.push(zero_or(check, &what, ours, theirs)?);
        }
        comparisons.extend(compare_codes(check, case, [&found.codes, &expected.codes])?);
        Ok(comparisons.into())
    }

    fn breakages() -> Vec<Breakage<Llama, Trained>> {
        vec![
            Breakage::of_answer("a NaN", |found, _, _| found.losses[[0, 0]] = f64::NAN),
            Breakage::of_answer("a gradient off by a thousandth", |found, _, _| {
                breakage::inaccurate(&mut found.gradients[0].1);
            }),
            Breakage::of_answer("a stale accumulator", |found, _, before| {
                let last = found.gradients.len() - 1;
                let before = before.map(|before| &before.gradients[last].1);
                breakage::stale(&mut found.gradients[last].1, before);
            }),
            Breakage::of_answer("a step that is not taken", |found, _, _| {
                let first = found.losses.row(0).to_owned();
                found.losses.row_mut(1).assign(&first);
            }),
            Breakage::of_answer("a group that keeps its codes", |found, data, _| {
                let starts = matrices(data);
                if let Some(step) = found.codes.first_mut() {
                    for (state, start) in step.state.codes.iter_mut().zip(&starts) {
                        let changed = state
                            .codes
                            .indexed_iter()
                            .find(|&(at, code)| start.codes()[at] != *code)
                            .map(|(at, _)| at);
                        if let Some(at) = changed {
                            state.codes[at] = start.codes()[at];
                        }
                    }
                }
            }),
            Breakage::of_answer("buffers that move a little too far", |found, _, _| {
                for step in &mut found.codes {
                    for state in &mut step.state.codes {
                        state.buffer.iter_mut().for_each(|value| *value *= 1.01);
                    }
                }
            }),
        ]
    }
}

/// Gradients and losses of a training.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trained {
    /// gradients at the start, row-major
    gradients: Vec<(Parameter, Vec<f64>)>,
    /// losses before every step and after the last, [steps + 1, sequences]
    losses: Array2<f64>,
    /// the steps of a training with codes
    codes: Vec<CodeStep>,
}

/// One step of a training with codes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CodeStep {
    /// groups of which at least one code changed
    changed: usize,
    /// after the step
    state: TuningState,
    /// of the reference's choices
    margins: Vec<Array2<f64>>,
}

/// An optimizer whose steps are nearly linear in the gradient, since epsilon is larger than the root of any
/// second moment here. A step is then as exact as its gradient. Adam's own steps are not: where a gradient is
/// at the level of rounding, they go anywhere.
const SMOOTH: Optimizer = Optimizer {
    decay: AdamDecay {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1.0,
    },
    rule: StepRule::Official {
        lamb: true,
        debias: true,
    },
};

/// Codes, codebooks and scales change, by much in a step.
const CODES: ModelTuning = ModelTuning {
    tuned: Tuned {
        codebooks: true,
        scales: true,
        ..Tuned::NONE
    },
    optimizer: SMOOTH,
    codes: Some(CodeSettings {
        lr: 0.1,
        optimizer: SMOOTH,
        max_change: 0.25,
        beam: 3,
        ..CodeSettings::README
    }),
    seed: 5,
};

/// Steps with codes on a machine.
fn with_codes<T: ModelTraining>(
    mut tuner: T,
    case: &Llama,
    margins: impl Fn(&T) -> Vec<Array2<f64>>,
) -> Result<Vec<CodeStep>> {
    (0..TUNED_STEPS)
        .map(|_| {
            tuner.accumulate(&case.sequences(), &targets(case), scale(case), &mut |_, _, _| ())?;
            let change = tuner.step(Rates { lr: LR, code_lr: 0.1 })?;
            Ok(CodeStep {
                changed: change.changed,
                state: tuner.state()?,
                margins: margins(&tuner),
            })
        })
        .collect()
}

/// The quantized matrices of a case, in the order of a state's.
fn matrices(case: &Llama) -> Vec<QuantizedMatrix> {
    let of_block = |block: &BlockWeights| -> Vec<QuantizedMatrix> {
        let quantized = |layer: &Linear| match &layer.weight {
            LinearWeight::Quantized(matrix) => Some(matrix.clone()),
            LinearWeight::Dense(_) => None,
        };
        block.layers.iter().filter_map(quantized).collect()
    };
    case.data.blocks.iter().flat_map(of_block).collect()
}

/// Compares `[found, expected]` step by step: buffers, codebooks and scales by their values; codes by the
/// reference's margins. A code may differ only where a movement of twice the largest measured difference of
/// the buffers, and of the weights under the old codes, would change the reference's own choice. Trajectories
/// part there, so the comparison ends with such a step.
fn compare_codes(
    check: Against,
    case: &Llama,
    [found, expected]: [&[CodeStep]; 2],
) -> Result<Vec<Comparison>> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut old = matrices(case);
    let mut worst: f64 = if found.len() == expected.len() {
        0.0
    } else {
        f64::NAN
    };
    let mut counts = 0.0;
    for (found, expected) in found.iter().zip(expected) {
        let mut same = true;
        let mut next = Vec::with_capacity(old.len());
        for (number, (a, b)) in found.state.codes.iter().zip(&expected.state.codes).enumerate() {
            ours.extend_from_slice(&a.buffer);
            theirs.extend_from_slice(&b.buffer);
            // parameters are codebooks and scales of each matrix in turn
            let updated = |state: &TuningState| -> Result<QuantizedMatrix> {
                let mut matrix = old[number].clone();
                let parts = &state.parameters[2 * number..2 * number + 2];
                matrix.tune(|mut codebooks, mut scales| {
                    codebooks
                        .iter_mut()
                        .zip(&parts[0].values)
                        .for_each(|(to, &from)| *to = from);
                    scales
                        .iter_mut()
                        .zip(&parts[1].values)
                        .for_each(|(to, &from)| *to = from);
                });
                Ok(matrix)
            };
            let (mine, exact) = (updated(&found.state)?, updated(&expected.state)?);
            for (matrix, to) in [(&mine, &mut ours), (&exact, &mut theirs)] {
                to.extend(matrix.codebooks().iter().chain(matrix.scales()));
            }
            let scheme = exact.scheme();
            let buffer =
                |state: &CodeState| Array2::from_shape_vec(decode(&exact).raw_dim(), state.buffer.clone());
            let moved = match (buffer(a), buffer(b)) {
                (Ok(a), Ok(b)) => {
                    let of_buffers = group_norms(&(a - b), scheme);
                    let of_weights = group_norms(&(decode(&mine) - decode(&exact)), scheme);
                    let both = of_buffers.iter().zip(&of_weights);
                    largest(both.map(|(a, b)| a.sqrt() + b.sqrt()))
                }
                _ => f64::NAN,
            };
            for ((o, j), margin) in expected.margins[number].indexed_iter() {
                let at = s![o, j, ..];
                if a.codes.slice(at) != b.codes.slice(at) {
                    same = false;
                    let share = if *margin == 0.0 {
                        0.0
                    } else {
                        margin / (2.0 * moved)
                    };
                    worst = largest([worst, share]);
                }
            }
            next.push(exact.with_codes(b.codes.clone())?);
        }
        if !same {
            break;
        }
        counts += found.changed.abs_diff(expected.changed) as f64;
        old = next;
    }
    Ok(vec![
        check.nmse("buffers, codebooks and scales with codes", &ours, &theirs)?,
        check.value(Measure::Choice, "codes", worst)?,
        check.value(Measure::Exact, "groups changed", counts)?,
    ])
}

/// The losses from `accumulate`, whose argument is the number of steps to take first.
fn trained(accumulate: &mut dyn FnMut(usize) -> Result<Vec<f64>>) -> Result<Array2<f64>> {
    let mut losses = Array2::zeros((0, 0));
    for step in 0..=TUNED_STEPS {
        let of_step = Array1::from(accumulate(step)?);
        if step == 0 {
            losses = Array2::from_elem((TUNED_STEPS + 1, of_step.len()), f64::NAN);
        }
        losses.row_mut(step).assign(&of_step);
    }
    Ok(losses)
}

/// Trains everything but codes.
fn all(decay: AdamDecay) -> ModelTuning {
    ModelTuning::of_parameters(Tuned::ALL, decay)
}

fn weights(case: &Llama) -> ModelWeights {
    ModelWeights {
        embedding: case.data.embedding.clone(),
        blocks: case.data.blocks.clone(),
        norm: case.data.norm.clone(),
        lm_head: Some(case.data.lm_head.clone()),
    }
}

fn targets(case: &Llama) -> Vec<Target<'static>> {
    vec![Target::NextTokens; case.problem.sequences]
}

/// The factor that makes the loss a mean over tokens.
fn scale(case: &Llama) -> f64 {
    1.0 / (case.problem.sequences * case.problem.tokens) as f64
}
