use aqlm_engine::ops::TrainOps as _;
use aqlm_optimized::cpu::llama::{Activations, ModelTuner};
use aqlm_optimized::cuda::training::Precision;
use aqlm_reference::llama as reference;
use aqlm_vocabulary::{
    AdamDecay, AqlmError, ModelTraining as _, ModelWeights, Parameter, Target, Tuned, TuningState,
};
use ndarray::{Array1, Array2};
use proptest::strategy::BoxedStrategy;

use super::block_backward::zero_or;
use super::llama::Llama;
use super::{CaseData as _, Op};
use crate::Comparison;
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Kind, Problem, llama as cases, strategy};
use crate::compare::{Against, Findings};
use crate::limits::{Measure, TUNED_STEPS};
use crate::subject::Subject;
use aqlm_formats::Result;

/// Learning rate of every step.
const LR: f64 = 1e-2;

/// Losses, gradients of all parameters, and Adam steps of a whole model.
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

    fn ways(machine: &Subject, _data: &Llama) -> Vec<Subject> {
        vec![machine.with(Precision::Single)]
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
                let mut tuner = reference::ModelTuner::new(config, &weights, Tuned::ALL, decay)?;
                tuner.accumulate(&case.sequences(), &targets(case), scale(case), &mut |_, _, _| ())?;
                tuner.step(0.0);
                let state = tuner.state();
                let gradients = state.parameters.into_iter();
                let gradients = gradients.map(|part| (part.parameter, part.first)).collect();
                let mut tuner = reference::ModelTuner::new(config, &weights, Tuned::ALL, AdamDecay::PAPER)?;
                let losses =
                    trained(&mut |step| {
                        if step > 0 {
                            tuner.step(LR);
                        }
                        Ok(tuner.accumulate(
                            &case.sequences(),
                            &targets(case),
                            scale(case),
                            &mut |_, _, _| (),
                        )?)
                    })?;
                Ok(Trained { gradients, losses })
            }
            Subject::Cpu(_) => {
                let keep = Activations::Recompute;
                let mut tuner = ModelTuner::new(
                    config,
                    case.problem.tokens,
                    &weights,
                    Tuned::ALL,
                    AdamDecay::PAPER,
                    keep,
                )?;
                let mut gradients = Vec::new();
                let losses = trained(&mut |step| {
                    if step > 0 {
                        tuner.step(LR);
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
                Ok(Trained { gradients, losses })
            }
            Subject::Cuda(cuda) => {
                let backend = case.on_machine(cuda)?;
                let mut tuner = backend.model_tuner(&weights, Tuned::ALL, AdamDecay::PAPER)?;
                let mut gradients = Vec::new();
                let losses = trained(&mut |step| {
                    if step > 0 {
                        tuner.step(LR);
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
                Ok(Trained { gradients, losses })
            }
        }
    }

    /// Checks a few numbers of every parameter against central differences of the loss.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let case = Llama::new(case)?;
        let trained = Self::run(&Subject::Reference, &case)?;
        let (sequences, targets) = (case.sequences(), targets(&case));
        let mut tuner =
            reference::ModelTuner::new(&case.data.config, &weights(&case), Tuned::ALL, AdamDecay::PAPER)?;
        let start = tuner.state();
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
        _subject: &Subject,
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
        for ((parameter, ours), (_, theirs)) in found.gradients.iter().zip(&expected.gradients) {
            let what = format!("gradient of {}", parameter.name(&case.data.config));
            comparisons.push(zero_or(check, &what, ours, theirs)?);
        }
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
