//! Whole-model losses, gradients and training in f32 against the reference in f64.

mod code_settings;

use aqlm_check::assertions::{assert_close, limit, with_threads};
use aqlm_check::cases::{self, LlamaCase};
use aqlm_optimized::cpu::llama::{
    Activations, Model, ModelTuner, PvMatrix, cross_entropy, kl_divergence, top_kl_divergence,
};
use aqlm_reference::llama as reference;
use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, BlockSpec, BlockWeights, CodeMetric, CodeSettings, LayerId, Linear,
    LinearWeight, ModelTraining as _, ModelTuning, ModelWeights, Parameter, PartSums as _, QuantizedMatrix,
    Rates, Rope, RopeScaling, Scheme, Target, TopTokens, Tuned,
    llama::{DOWN, GATE, KEY, LlamaBlock, OUTPUT, QUERY, VALUE},
};
use code_settings::code_settings;
use ndarray::{Array1, Array2, Array3, Array4, s};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
const TOKENS: usize = 70;
const SEQUENCES: usize = 3;

/// Total length of the sums from a token to its loss: those of a block for every block, and the head's.
fn terms(problem: &LlamaCase) -> usize {
    cases::BLOCKS * problem.terms() + 2 * problem.hidden + cases::VOCABULARY
}

struct Case {
    name: String,
    problem: LlamaCase,
    arch: ArchSpec,
    weights: ModelWeights,
    sequences: Vec<Vec<u32>>,
    /// the teacher's states, [TOKENS, 24] a sequence, and its head, [vocab, 24]
    states: Vec<Array2<f32>>,
    teacher_head: Array2<f32>,
    top: Vec<TopTokens>,
}

impl Case {
    fn sequences(&self) -> Vec<&[u32]> {
        self.sequences.iter().map(Vec::as_slice).collect()
    }

    /// Each objective with its targets.
    fn objectives(&self) -> [(&'static str, Vec<Target<'_>>); 3] {
        [
            ("next tokens", vec![Target::NextTokens; SEQUENCES]),
            (
                "teacher",
                (0..SEQUENCES)
                    .map(|i| Target::Teacher {
                        states: self.states[i].view(),
                        head: self.teacher_head.view(),
                    })
                    .collect(),
            ),
            ("top tokens", self.top.iter().map(Target::Top).collect()),
        ]
    }
}

/// Codes, codebooks and scales for a layer, decoded to numbers of about 1 / sqrt(inputs).
fn quantized(scheme: &str, (out, inputs): (usize, usize)) -> LinearWeight {
    let case: cases::Case = format!("decode-{scheme}-{out}x{inputs}-b1-outliers-s{out}")
        .parse()
        .unwrap();
    let mut matrix = case.product().unwrap().data(case.seed).matrix;
    matrix.tune(|_, mut scales| scales *= 10.0 / (inputs as f64).sqrt());
    LinearWeight::Quantized(matrix)
}

/// Rows of numbers with outliers.
fn samples(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    let case: cases::Case = format!("hessian-{rows}x{columns}-k1-outliers-s{seed}")
        .parse()
        .unwrap();
    case.samples().unwrap().data(seed)
}

/// Quantized and dense layers, grouped heads, a window in one of two blocks, biases, outliers; one model has
/// a tied head.
fn cases() -> Vec<Case> {
    [
        (
            "model_tune-40x72-k4-q1-d12-n3-t70-w0-nobias-plain-2x3g4o2-s60",
            false,
        ),
        (
            "model_tune-40x72-k2-q2-d12-n3-t70-w9-bias-plain-2x3g4o2-s61",
            true,
        ),
    ]
    .into_iter()
    .map(|(id, tied)| {
        let (problem, data) = cases::llama(id).unwrap();
        let mut arch = ArchSpec { tied, ..data.config };
        arch.blocks[0].attention.window = None;
        let mut blocks = data.blocks;
        for (block, spec) in blocks.iter_mut().zip(&arch.blocks) {
            for (kind, scheme) in [(VALUE, "1x3g8"), (DOWN, "2x4g8")] {
                block.layer_mut(kind).weight = quantized(scheme, spec.shape(kind));
            }
        }
        let weights = ModelWeights {
            embedding: 0.4 * samples(arch.vocab_size, arch.hidden_size, 60),
            blocks,
            norm: data.norm,
            lm_head: (!tied).then(|| data.lm_head.clone()),
        };
        Case {
            name: id.to_owned(),
            states: (0..SEQUENCES)
                .map(|i| data.grad_y.slice(s![i, .., ..24]).to_owned())
                .collect(),
            teacher_head: data.lm_head.slice_move(s![.., 16..]),
            top: (0..SEQUENCES)
                .map(|s| TopTokens {
                    tokens: Array2::from_shape_fn((TOKENS, 3), |(t, i)| ((7 * t + 11 * i + s) % 50) as u32),
                    log_probabilities: Array2::from_shape_fn((TOKENS, 3), |(_, i)| {
                        [0.5f32, 0.25, 0.125][i].ln()
                    }),
                    rest: Array1::from_elem(TOKENS, 0.125),
                })
                .collect(),
            problem,
            arch,
            weights,
            sequences: data.tokens,
        }
    })
    .collect()
}

fn ours(case: &Case, tuned: Tuned, activations: Activations) -> ModelTuner {
    ModelTuner::new(
        &case.arch,
        TOKENS,
        &case.weights,
        &ModelTuning::of_parameters(tuned, AdamDecay::PAPER),
        activations,
    )
    .unwrap()
}

fn expected(case: &Case, tuned: Tuned) -> reference::ModelTuner {
    reference::ModelTuner::new(
        &case.arch,
        &case.weights,
        &ModelTuning::of_parameters(tuned, AdamDecay::PAPER),
    )
    .unwrap()
}

/// The reference's summed gradients, in the same order. With beta1 0, its first moments after one step from
/// zero are the gradients.
fn expected_gradients(case: &Case, targets: &[Target<'_>], scale: f64) -> (Vec<f64>, Vec<Vec<f64>>) {
    let decay = AdamDecay {
        beta1: 0.0,
        ..AdamDecay::PAPER
    };
    let mut tuner = reference::ModelTuner::new(
        &case.arch,
        &case.weights,
        &ModelTuning::of_parameters(Tuned::ALL, decay),
    )
    .unwrap();
    let losses = tuner
        .accumulate(&case.sequences(), targets, scale, &mut |_, _, _| ())
        .unwrap();
    tuner.step(Rates::of_parameters(0.0)).unwrap();
    let parameters = tuner.state().unwrap().parameters;
    (losses, parameters.into_iter().map(|part| part.first).collect())
}

#[test]
fn losses_and_all_gradients_of_every_objective_are_the_references() {
    for case in cases() {
        let scale = 1.0 / (SEQUENCES * TOKENS) as f64;
        for (objective, targets) in case.objectives() {
            let (losses, gradients) = expected_gradients(&case, &targets, scale);
            let mut tuner = ours(&case, Tuned::ALL, Activations::Recompute);
            let mut seen = Vec::new();
            let found = tuner
                .accumulate(&case.sequences(), &targets, scale, &mut |block, kind, weight| {
                    seen.push((block, kind, weight.dim()));
                })
                .unwrap();
            assert_eq!(seen.len(), 2 * 4, "gradients of decoded weights");
            let name = format!("{}, {objective}", case.name);
            let forward = limit(terms(&case.problem));
            assert_close(&name, found.iter().copied(), &losses, forward);
            assert_eq!(
                tuner.losses(&case.sequences(), &targets).unwrap(),
                found,
                "{name}"
            );
            // the same sums backward, and then sums over all rows
            let backward = limit(2 * terms(&case.problem) + SEQUENCES * TOKENS);
            let parameters: Vec<Parameter> = tuner.gradients().map(|(parameter, _)| parameter).collect();
            assert_eq!(parameters.len(), gradients.len());
            for ((parameter, ours), expected) in tuner.gradients().zip(&gradients) {
                let what = format!("{name}: {}", parameter.name(&case.arch));
                assert_close(&what, ours.iter().copied(), expected, backward);
            }
        }
    }
}

#[test]
fn training_follows_the_reference() {
    for case in cases() {
        let scale = 1.0 / (SEQUENCES * TOKENS) as f64;
        let (_, targets) = &case.objectives()[1];
        let (mut tuner, mut exact) = (
            ours(&case, Tuned::ALL, Activations::Keep),
            expected(&case, Tuned::ALL),
        );
        let steps = 6;
        let mut before = f64::NAN;
        for step in 0..steps {
            let ours = tuner
                .accumulate(&case.sequences(), targets, scale, &mut |_, _, _| ())
                .unwrap();
            let expected = exact
                .accumulate(&case.sequences(), targets, scale, &mut |_, _, _| ())
                .unwrap();
            // Adam divides by the root of the second moment. So a parameter whose gradients are at the level
            // of rounding deviates by up to lr a step, but its effect on the loss is of second order.
            let limit = limit(terms(&case.problem) * 2 * steps);
            assert_close(&case.name, ours, &expected, limit);
            let total: f64 = expected.iter().sum();
            if step == 0 {
                before = total;
            } else if step + 1 == steps {
                assert!(
                    total < 0.9 * before,
                    "{}: {before} to {total} teaches nothing",
                    case.name
                );
            }
            tuner.step(Rates::of_parameters(1e-2)).unwrap();
            exact.step(Rates::of_parameters(1e-2)).unwrap();
        }
        let (ours, expected) = (tuner.model().to_weights(), exact.model().to_weights());
        assert_eq!(ours.lm_head.is_none(), case.arch.tied);
        let expected = expected.norm.mapv(f64::from);
        assert_close(
            "norm",
            ours.norm,
            &expected,
            limit(terms(&case.problem) * 2 * steps),
        );
    }
}

/// Everything after a few steps, as bits.
fn after_training(case: &Case, tuned: Tuned, activations: Activations) -> (ModelWeights, Vec<f64>) {
    let mut tuner = ours(case, tuned, activations);
    let (_, targets) = &case.objectives()[1];
    let mut losses = Vec::new();
    for _ in 0..3 {
        losses = tuner
            .accumulate(&case.sequences(), targets, 0.01, &mut |_, _, _| ())
            .unwrap();
        tuner.step(Rates::of_parameters(1e-2)).unwrap();
    }
    (tuner.model().to_weights(), losses)
}

#[test]
fn neither_threads_nor_kept_activations_change_a_byte() {
    for case in cases() {
        let alone = with_threads(1, || after_training(&case, Tuned::ALL, Activations::Recompute));
        for threads in [2, 5] {
            let together = with_threads(threads, || {
                after_training(&case, Tuned::ALL, Activations::Recompute)
            });
            assert_eq!(together, alone, "{}: {threads} threads", case.name);
        }
        assert_eq!(
            after_training(&case, Tuned::ALL, Activations::Keep),
            alone,
            "{}",
            case.name
        );
    }
}

#[test]
fn a_state_goes_on_exactly() {
    let case = cases().swap_remove(0);
    let (_, targets) = &case.objectives()[2];
    let train = |tuner: &mut ModelTuner, steps: usize| {
        for _ in 0..steps {
            tuner
                .accumulate(&case.sequences(), targets, 0.01, &mut |_, _, _| ())
                .unwrap();
            tuner.step(Rates::of_parameters(1e-2)).unwrap();
        }
    };
    let mut whole = ours(&case, Tuned::ALL, Activations::Keep);
    train(&mut whole, 2);
    let state = whole.state().unwrap();
    train(&mut whole, 2);
    let mut resumed = ours(&case, Tuned::ALL, Activations::Keep);
    resumed.restore(&state).unwrap();
    train(&mut resumed, 2);
    assert_eq!(resumed.state().unwrap(), whole.state().unwrap());
    assert_eq!(resumed.model().to_weights(), whole.model().to_weights());

    let norms = Tuned {
        norms: true,
        ..Tuned::NONE
    };
    let mut other = ours(&case, norms, Activations::Keep);
    assert!(matches!(other.restore(&state), Err(AqlmError::Shape { .. })));
    // all norms have the same length, so only their names distinguish them
    let mut swapped = other.state().unwrap();
    swapped.parameters.swap(0, 1);
    assert!(matches!(other.restore(&swapped), Err(AqlmError::Shape { .. })));
}

/// The settings that all backends share, and those that no kernel follows: another metric, also with fitted
/// codebooks, and codebooks that are fitted half the way.
fn all_settings() -> Vec<CodeSettings> {
    let [plain, all, ..] = code_settings();
    let by_gradients = CodeSettings {
        metric: CodeMetric::Gradients,
        ..plain
    };
    let both = CodeSettings {
        metric: CodeMetric::Gradients,
        refit: 1.0,
        ..all
    };
    let fitted = CodeSettings { refit: 0.5, ..plain };
    code_settings()
        .into_iter()
        .chain([by_gradients, both, fitted])
        .collect()
}

fn with_codes(case: &Case, settings: CodeSettings, activations: Activations) -> ModelTuner {
    let tuning = ModelTuning {
        codes: Some(settings),
        seed: 9,
        ..ModelTuning::of_parameters(Tuned::ALL, AdamDecay::PAPER)
    };
    ModelTuner::new(&case.arch, TOKENS, &case.weights, &tuning, activations).unwrap()
}

/// Steps with codes; returns the losses before the last one, and how many groups changed.
fn train_codes(
    case: &Case,
    tuner: &mut ModelTuner,
    settings: CodeSettings,
    steps: usize,
) -> (Vec<f64>, usize) {
    let (_, targets) = &case.objectives()[1];
    let rates = Rates {
        lr: 1e-2,
        code_lr: settings.lr,
    };
    let (mut losses, mut changed) = (Vec::new(), 0);
    for _ in 0..steps {
        losses = tuner
            .accumulate(&case.sequences(), targets, 0.01, &mut |_, _, _| ())
            .unwrap();
        changed += tuner.step(rates).unwrap().changed;
    }
    (losses, changed)
}

#[test]
fn threads_activations_and_resumption_change_no_byte_of_codes() {
    for case in cases() {
        for settings in all_settings() {
            let run = |threads: usize, activations: Activations| {
                with_threads(threads, || {
                    let mut tuner = with_codes(&case, settings, activations);
                    let trained = train_codes(&case, &mut tuner, settings, 3);
                    (trained, tuner.state().unwrap(), tuner.weights().unwrap())
                })
            };
            let alone = run(1, Activations::Recompute);
            assert!(alone.0.1 > 0, "no code changed");
            for (threads, activations) in [(2, Activations::Recompute), (5, Activations::Keep)] {
                assert_eq!(
                    run(threads, activations),
                    alone,
                    "{}: {threads} threads",
                    case.name
                );
            }
            let mut first = with_codes(&case, settings, Activations::Keep);
            train_codes(&case, &mut first, settings, 1);
            let mut resumed = with_codes(&case, settings, Activations::Keep);
            resumed.restore(&first.state().unwrap()).unwrap();
            train_codes(&case, &mut resumed, settings, 2);
            assert_eq!(resumed.state().unwrap(), alone.1);
            assert_eq!(resumed.weights().unwrap(), alone.2);
        }
    }
}

#[test]
fn a_budget_of_zero_is_training_without_codes() {
    for case in cases() {
        let settings = CodeSettings {
            max_change: 0.0,
            ..CodeSettings::README
        };
        let mut tuner = with_codes(&case, settings, Activations::Keep);
        let (losses, changed) = train_codes(&case, &mut tuner, settings, 3);
        assert_eq!(changed, 0);
        let expected = after_training(&case, Tuned::ALL, Activations::Keep);
        assert_eq!((tuner.weights().unwrap(), losses), expected);
    }
}

#[test]
fn sums_from_two_tuners_are_those_of_one() {
    let case = cases().swap_remove(0);
    let [settings, ..] = code_settings();
    let (_, targets) = &case.objectives()[1];
    let tuner = || with_codes(&case, settings, Activations::Keep);
    let (mut whole, mut first, mut second) = (tuner(), tuner(), tuner());
    let sequences = case.sequences();
    for part in [0..1, 1..3] {
        whole
            .accumulate(&sequences[part.clone()], &targets[part], 0.01, &mut |_, _, _| ())
            .unwrap();
    }
    first
        .accumulate(&sequences[..1], &targets[..1], 0.01, &mut |_, _, _| ())
        .unwrap();
    second
        .accumulate(&sequences[1..], &targets[1..], 0.01, &mut |_, _, _| ())
        .unwrap();
    first.add(&second.take()).unwrap();
    let sums = whole.take();
    assert!(matches!(whole.add(&sums[1..]), Err(AqlmError::Shape { .. })));
    assert!(matches!(whole.add(&[]), Err(AqlmError::Shape { .. })));
    assert_eq!(first.take(), sums);
}

#[test]
fn states_with_other_codes_are_refused_and_a_broken_buffer_is_named() {
    let case = cases().swap_remove(0);
    let [settings, ..] = code_settings();
    let mut tuner = with_codes(&case, settings, Activations::Keep);
    let good = tuner.state().unwrap();
    assert_eq!(good.codes.len(), 2 * 4);
    let mut beyond = good.clone();
    let size = if beyond.codes[0].name.ends_with("v_proj") {
        8
    } else {
        16
    };
    beyond.codes[0].codes[[0, 0, 0]] = size;
    assert!(matches!(
        tuner.restore(&beyond),
        Err(AqlmError::CodeOutOfRange { .. })
    ));
    let mut fewer = good.clone();
    fewer.codes.pop();
    let mut shorter = good.clone();
    shorter.codes[1].buffer.pop();
    for other in [&fewer, &shorter] {
        assert!(matches!(tuner.restore(other), Err(AqlmError::Shape { .. })));
    }
    assert_eq!(tuner.state().unwrap(), good);
    let mut fixed = ours(&case, Tuned::ALL, Activations::Keep);
    assert!(matches!(fixed.restore(&good), Err(AqlmError::Shape { .. })));

    let mut broken = good;
    broken.codes[2].buffer[5] = f64::NAN;
    tuner.restore(&broken).unwrap();
    let named = tuner.first_not_finite(&case.sequences()).unwrap();
    assert_eq!(named, Some(broken.codes[2].name.clone()));
    // the group keeps its codes, and nothing panics
    train_codes(&case, &mut tuner, settings, 1);

    let norms = ModelTuning {
        codes: Some(settings),
        ..ModelTuning::of_parameters(
            Tuned {
                norms: true,
                ..Tuned::NONE
            },
            AdamDecay::PAPER,
        )
    };
    assert!(matches!(
        ModelTuner::new(&case.arch, TOKENS, &case.weights, &norms, Activations::Keep),
        Err(AqlmError::Argument { .. })
    ));
}

/// Random matrices of several schemes and gradients: the CPU's steps are the reference's, codes included, as
/// long as the reference decides clearly.
#[test]
fn steps_of_single_matrices_are_the_references() {
    let mut changed = 0;
    for (scheme, shape) in [
        ("1x6g8", (24, 64)),
        ("2x4g8", (16, 48)),
        ("3x3g4", (12, 20)),
        ("2x3g4o2", (16, 24)),
        ("1x1g4", (8, 8)),
    ] {
        let LinearWeight::Quantized(start) = quantized(scheme, shape) else {
            panic!("a quantized layer");
        };
        for settings in all_settings() {
            let tuning = ModelTuning {
                tuned: Tuned::ALL,
                optimizer: settings.optimizer,
                codes: Some(settings),
                seed: 0,
            };
            let mut exact = reference::PvMatrix::new(start.clone(), tuning).unwrap();
            let mut ours = PvMatrix::new(start.clone(), tuning).unwrap();
            for step in 0..3 {
                let gradient = samples(shape.0, shape.1, 7 + step);
                let order: Vec<usize> = (0..start.scheme().num_codebooks).rev().collect();
                let rates = Rates {
                    lr: 1e-2,
                    code_lr: 0.5,
                };
                let recoded = exact.step(&gradient.mapv(f64::from), rates, &order).unwrap();
                changed += ours.step(&gradient, rates, &order).unwrap();
                let off = (&ours.buffer().mapv(f64::from) - exact.buffer())
                    .mapv(|e| e * e)
                    .sum()
                    .sqrt();
                let size = exact.buffer().mapv(|b| b * b).sum().sqrt();
                let differ = recoded.margins.indexed_iter().filter(|&((o, j), &margin)| {
                    let at = s![o, j, ..];
                    // a group moves by no more than the whole, and the weight by about as much as the buffer
                    ours.matrix().codes().slice(at) != exact.matrix().codes().slice(at) && margin > 4.0 * off
                });
                assert_eq!(differ.count(), 0, "{scheme}, step {step}");
                if ours.matrix().codes() != exact.matrix().codes() {
                    break;
                }
                // three steps, each of a few dozen roundings of f32
                assert!(
                    off <= 100.0 * f64::from(f32::EPSILON) * size,
                    "{scheme}: {off} of {size}"
                );
            }
        }
    }
    assert!(changed > 100, "{changed}");
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_not_finite_is_named() {
    let case = cases().swap_remove(0);
    let mut tuner = ours(&case, Tuned::ALL, Activations::Recompute);
    let sequences = case.sequences();
    let wrong = TopTokens {
        tokens: Array2::from_elem((TOKENS, 1), 50),
        log_probabilities: Array2::zeros((TOKENS, 1)),
        rest: Array1::zeros(TOKENS),
    };
    let narrow = case.teacher_head.slice(s![..49, ..]);
    for target in [
        Target::Top(&wrong),
        Target::Teacher {
            states: case.states[0].view(),
            head: narrow,
        },
    ] {
        let targets = vec![target; SEQUENCES];
        assert!(tuner.losses(&sequences, &targets).is_err());
        assert!(
            tuner
                .accumulate(&sequences, &targets, 1.0, &mut |_, _, _| ())
                .is_err()
        );
    }
    let long = vec![0u32; TOKENS + 1];
    assert!(matches!(
        tuner.losses(&[&long], &[Target::NextTokens]),
        Err(AqlmError::Shape { .. })
    ));
    assert!(matches!(
        ModelTuner::new(
            &case.arch,
            TOKENS,
            &case.weights,
            &ModelTuning::of_parameters(Tuned::NONE, AdamDecay::PAPER),
            Activations::Keep
        ),
        Err(AqlmError::Argument { .. })
    ));

    assert_eq!(tuner.first_not_finite(&sequences).unwrap(), None);
    let mut broken = case.weights.clone();
    let LinearWeight::Dense(weight) = &mut broken.blocks[1].layer_mut(GATE).weight else {
        panic!("a dense layer");
    };
    weight[[3, 3]] = f32::NAN;
    let mut tuner = ModelTuner::new(
        &case.arch,
        TOKENS,
        &broken,
        &ModelTuning::of_parameters(Tuned::ALL, AdamDecay::PAPER),
        Activations::Recompute,
    )
    .unwrap();
    let found = tuner.first_not_finite(&sequences).unwrap();
    assert_eq!(found.as_deref(), Some("model.layers.1.mlp.gate_proj"));
    let losses = tuner
        .losses(&sequences, &[Target::NextTokens; SEQUENCES])
        .unwrap();
    assert!(losses.iter().all(|loss| loss.is_nan()));
    let mut state = tuner.state().unwrap();
    state.parameters[0].values[0] = f64::INFINITY;
    tuner.restore(&state).unwrap();
    let found = tuner.first_not_finite(&sequences).unwrap();
    assert_eq!(found, Some(state.parameters[0].name.clone()));
}

#[test]
fn parameters_have_the_same_gradients_whatever_else_is_trained() {
    let case = cases().swap_remove(0);
    let gradients = |tuned: Tuned| -> Vec<(Parameter, Vec<f64>)> {
        let mut tuner = ours(&case, tuned, Activations::Keep);
        let (_, targets) = &case.objectives()[1];
        tuner
            .accumulate(&case.sequences(), targets, 1.0, &mut |_, _, _| ())
            .unwrap();
        tuner
            .gradients()
            .map(|(parameter, g)| (parameter, g.to_vec()))
            .collect()
    };
    let all = gradients(Tuned::ALL);
    let mut seen = 0;
    for alone in [
        Tuned {
            codebooks: true,
            ..Tuned::NONE
        },
        Tuned {
            scales: true,
            ..Tuned::NONE
        },
        Tuned {
            norms: true,
            ..Tuned::NONE
        },
        Tuned {
            embedding: true,
            ..Tuned::NONE
        },
        Tuned {
            head: true,
            ..Tuned::NONE
        },
    ] {
        for (parameter, gradient) in gradients(alone) {
            let (_, expected) = all.iter().find(|(other, _)| *other == parameter).unwrap();
            assert_eq!(&gradient, expected, "{} of {alone:?}", parameter.name(&case.arch));
            seen += 1;
        }
    }
    assert_eq!(seen, all.len());
}

#[test]
fn activations_are_kept_up_to_a_gigabyte() {
    // 4 x 64 + 2 x 4 x 32 + 2 x 2 x 32 + 3 x 128 = 1024 numbers a row, 4096 rows, 64 blocks, 4 bytes: 2^30
    let spec = BlockSpec::llama(LlamaBlock {
        hidden_size: 64,
        intermediate_size: 128,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        epsilon: 1e-5,
        rotary: ROTARY,
        window: None,
    });
    let with_layers = |layers| ArchSpec::llama(50, 128, layers, spec.clone());
    assert_eq!(Activations::fitting(&with_layers(64), 4096), Activations::Keep);
    assert_eq!(
        Activations::fitting(&with_layers(65), 4096),
        Activations::Recompute
    );
    // shorter sequences go through the model together, as many as fit into 4096 rows
    assert_eq!(
        Activations::fitting(&with_layers(65), 1024),
        Activations::Recompute
    );
    assert_eq!(Activations::fitting(&with_layers(65), 4000), Activations::Keep);
}

#[test]
fn objectives_agree_with_the_reference_and_with_each_other() {
    for (rows, vocab) in [(1, 1), (3, 7), (40, 517)] {
        let logits: Array2<f32> = 1.3 * samples(rows, vocab, 80);
        let teacher: Array2<f32> = 1.3 * samples(rows, vocab, 81);
        let targets: Vec<u32> = (0..rows).map(|t| ((5 * t + 1) % vocab) as u32).collect();
        let wide = |values: &Array2<f32>| values.mapv(f64::from);
        let (losses, slope) = reference::kl_divergence(wide(&logits).view(), wide(&teacher).view()).unwrap();
        let mut gradient = logits.clone();
        let ours = kl_divergence(&mut gradient, teacher.view(), 1.0).unwrap();
        // with a vocabulary of one the divergence is zero
        if vocab > 1 {
            assert_close("divergence", [ours], &[losses.sum()], limit(vocab));
            assert_close("its gradient", gradient.iter().copied(), &slope, limit(vocab));
        } else {
            assert_eq!((ours, gradient[[0, 0]]), (0.0, 0.0));
        }

        let (losses, slope) = reference::cross_entropy(wide(&logits).view(), &targets).unwrap();
        let mut gradient = logits.clone();
        let entropy = cross_entropy(&mut gradient, &targets, 1.0).unwrap();
        if vocab > 1 {
            assert_close("cross-entropy", [entropy], &[losses.sum()], limit(vocab));
            assert_close("its gradient", gradient.iter().copied(), &slope, limit(vocab));
        }

        // If the teacher is certain, the divergence is the cross-entropy.
        let certain = TopTokens {
            tokens: Array2::from_shape_fn((rows, 1), |(t, _)| targets[t]),
            log_probabilities: Array2::zeros((rows, 1)),
            rest: Array1::zeros(rows),
        };
        let mut same = logits.clone();
        let top = top_kl_divergence(&mut same, &certain, 1.0).unwrap();
        assert!(
            (top - entropy).abs() <= limit(vocab).sqrt() * entropy.abs(),
            "{top} and {entropy}"
        );
        if vocab > 1 {
            assert_close("both gradients", same, &wide(&gradient), limit(vocab));
        }

        // Half of the tokens are listed, the other half are one outcome.
        let listed = vocab.div_ceil(2);
        let p = 1.0 / (listed + 1) as f32;
        let top = TopTokens {
            tokens: Array2::from_shape_fn((rows, listed), |(_, i)| 2 * i as u32),
            log_probabilities: Array2::from_elem((rows, listed), p.ln()),
            rest: Array1::from_elem(rows, p),
        };
        let (losses, slope) = reference::top_kl_divergence(wide(&logits).view(), &top).unwrap();
        let mut gradient = logits.clone();
        let ours = top_kl_divergence(&mut gradient, &top, 0.25).unwrap();
        assert_close("top divergence", [ours], &[losses.sum()], limit(vocab));
        if vocab > 1 {
            assert_close(
                "its gradient",
                gradient.iter().copied(),
                &(0.25 * slope),
                limit(vocab),
            );
        } else {
            // no token is left for the rest, and the only token has all of q
            assert_eq!((gradient[[0, 0]], slope[[0, 0]]), (0.0, 0.0));
        }
    }
}

/// Rotation without scaling.
const ROTARY: Rope = Rope {
    theta: 1000.0,
    scaling: RopeScaling::None,
};

/// A model on which every number is exact in f32 in any order. Its blocks add nothing, because one factor of
/// each branch is zero. Each sequence has two tokens, so attention averages over one or two. All logits are
/// equal.
fn exact_model() -> (ArchSpec, ModelWeights, Vec<Vec<u32>>) {
    let mut rng = ChaCha8Rng::seed_from_u64(90);
    let spec = BlockSpec::llama(LlamaBlock {
        hidden_size: 32,
        intermediate_size: 32,
        heads: 2,
        kv_heads: 2,
        head_dim: 16,
        epsilon: 0.0,
        rotary: ROTARY,
        window: None,
    });
    let mut dyadic = |limit: i32| f64::from(rng.random_range(-limit..=limit)) / 8.0;
    let scheme = Scheme::new(2, 3, 8).unwrap();
    let mut matrix = |layer: LayerId, zero_codebooks: bool, zero_scales: bool| {
        let (out, inputs) = spec.shape(layer);
        let codes = Array3::from_shape_fn((out, inputs / 8, 2), |(o, j, m)| ((5 * o + 3 * j + m) % 8) as u16);
        let value = || if zero_codebooks { 0.0 } else { dyadic(8) };
        let codebooks = Array4::from_shape_simple_fn((2, 8, 1, 8), value);
        let scales = Array1::from_shape_fn(out, |o| match o % 2 {
            _ if zero_scales => 0.0,
            0 => 0.5,
            _ => 2.0,
        });
        QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap()
    };
    // Queries and keys are zero, so attention is uniform. V or O, and the gate, are zero too. In the first
    // block the zeros are scales, which then have gradients; in the second they are codebooks, which then
    // have gradients.
    let mut block = |zeros: &[LayerId], by_scales: bool| BlockWeights {
        norms: vec![Array1::ones(32); 2],
        layers: spec
            .layers()
            .map(|layer| {
                let zero = zeros.contains(&layer);
                Linear {
                    weight: LinearWeight::Quantized(matrix(layer, zero && !by_scales, zero && by_scales)),
                    bias: None,
                }
            })
            .collect(),
    };
    let zeros = |branch| [QUERY, KEY, GATE, branch];
    let blocks = vec![block(&zeros(VALUE), true), block(&zeros(OUTPUT), false)];
    // Hidden states use the first eight elements, with mean square one. The head distinguishes tokens by the
    // other elements.
    let embedding = Array2::from_shape_fn((64, 32), |(token, i)| match i {
        0..8 if (token >> (i % 6)) % 2 == 0 => 2.0,
        0..8 => -2.0,
        _ => 0.0,
    });
    let lm_head = Array2::from_shape_fn((64, 32), |(token, i)| {
        if i < 8 {
            0.25
        } else {
            ((7 * token + 5 * i) % 17) as f32 / 8.0 - 1.0
        }
    });
    let weights = ModelWeights {
        embedding,
        blocks,
        norm: Array1::ones(32),
        lm_head: Some(lm_head),
    };
    let arch = ArchSpec::llama(64, 128, 2, spec);
    (arch, weights, vec![vec![3, 11], vec![40, 3], vec![63, 0]])
}

#[test]
fn gradients_are_exact_where_every_number_is() {
    let (arch, weights, sequences) = exact_model();
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let targets = [Target::NextTokens; 3];
    let scale = 0.25;
    let mut tuner = ModelTuner::new(
        &arch,
        2,
        &weights,
        &ModelTuning::of_parameters(Tuned::ALL, AdamDecay::PAPER),
        Activations::Recompute,
    )
    .unwrap();
    let ours = tuner
        .accumulate(&sequences, &targets, scale, &mut |_, _, _| ())
        .unwrap();
    let decay = AdamDecay {
        beta1: 0.0,
        ..AdamDecay::PAPER
    };
    let mut exact =
        reference::ModelTuner::new(&arch, &weights, &ModelTuning::of_parameters(Tuned::ALL, decay)).unwrap();
    let expected = exact
        .accumulate(&sequences, &targets, scale, &mut |_, _, _| ())
        .unwrap();
    assert_eq!(ours, expected);
    // 64 equal logits
    assert!((ours[0] - 64f64.ln()).abs() <= 4.0 * f64::EPSILON);
    exact.step(Rates::of_parameters(0.0)).unwrap();
    let mut nonzero = Vec::new();
    for ((parameter, ours), expected) in tuner.gradients().zip(exact.state().unwrap().parameters) {
        assert_eq!(ours, expected.first, "{}", expected.name);
        if ours.iter().any(|&slope| slope != 0.0) {
            nonzero.push(parameter.name(&arch));
        }
    }
    for reached in [
        "model.layers.0.self_attn.v_proj.scales",
        "model.layers.0.mlp.gate_proj.scales",
        "model.layers.1.self_attn.o_proj.codebooks",
        "model.layers.1.mlp.gate_proj.codebooks",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ] {
        assert!(
            nonzero.iter().any(|name| name == reached),
            "{reached} is not among {nonzero:?}"
        );
    }
}

#[test]
fn weights_of_another_model_are_refused() {
    let case = cases().swap_remove(0);
    let mut short = case.weights.clone();
    short.blocks.pop();
    assert!(matches!(
        Model::from_weights(&case.arch, &short),
        Err(AqlmError::Shape { what, .. }) if what == "blocks"
    ));
    let mut narrow = case.weights;
    narrow.norm = Array1::ones(39);
    assert!(matches!(
        Model::from_weights(&case.arch, &narrow),
        Err(AqlmError::Shape { what, .. }) if what == "final norm"
    ));
}
