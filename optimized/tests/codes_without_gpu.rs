//! Tuning of codes on CUDA, run without a GPU: `kernels/shim/driver.cpp` stands in for the driver, NVRTC and
//! cuBLAS, and runs the kernels on the CPU, with guard bytes around all buffers. Single matrices are compared
//! with the reference, whole models with the CPU's. Without a C++ compiler the tests say so and are waived.

mod code_settings;
#[path = "shim/stand_in.rs"]
mod stand_in;

use std::sync::Arc;

use aqlm_check::cases;
use aqlm_check::{CrossOptions, Cuda, Machines, Outcome, cross_check};
use aqlm_optimized::cpu::llama::{Activations, ModelTuner as OnCpu};
use aqlm_optimized::cuda::Device;
use aqlm_optimized::cuda::training::{Machine, ModelTuner, Precision, PvMatrix, TeacherMemory, TuningMemory};
use aqlm_reference::llama as reference;
use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, ChangeBudget, CodeMetric, CodeSettings, ModelTraining, ModelTuning,
    ModelWeights, Optimizer, PartSums as _, QuantizedMatrix, Rates, Scheme, StepRule, Target, Tuned,
};
use code_settings::code_settings;
use ndarray::{Array1, Array2, Array3, Array4, s};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// A small model: one block, five tokens, three codebooks.
const CASE: &str = "model_tune-36x22-k2-q1-d8-n4-t5-w1-bias-plain-3x2g4-s5";

fn machine(arch: &ArchSpec, positions: usize) -> Arc<Machine> {
    let device = Arc::new(Device::open_guarded(0, None).unwrap());
    Arc::new(Machine::new(device, arch, positions, Precision::Single).unwrap())
}

/// The settings that need every kernel: with a budget for each matrix, and with one for the model.
fn everything() -> [CodeSettings; 2] {
    let [_, all, _, trusted] = code_settings();
    [all, trusted]
}

fn random(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Array2<f32> {
    Array2::from_shape_simple_fn((rows, columns), || rng.sample(StandardNormal))
}

fn quantized(rng: &mut ChaCha8Rng, scheme: &str, (out, inputs): (usize, usize)) -> QuantizedMatrix {
    let scheme: Scheme = scheme.parse().unwrap();
    let (out_groups, in_groups) = scheme.groups(out, inputs).unwrap();
    let (books, states) = (scheme.num_codebooks, scheme.codebook_size());
    let codes = Array3::from_shape_simple_fn((out_groups, in_groups, books), || {
        rng.random_range(0..states) as u16
    });
    let shape = (books, states, scheme.out_group_size, scheme.in_group_size);
    let codebooks = Array4::from_shape_simple_fn(shape, || rng.sample::<f64, _>(StandardNormal));
    let mut scales: Array1<f64> = Array1::from_shape_simple_fn(out_groups, || rng.random_range(0.5..1.5));
    // such groups keep their codes
    scales[1] = 0.0;
    QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap()
}

/// Random matrices of several schemes: the device's steps are the reference's, codes included, as long as the
/// reference decides clearly.
#[test]
fn steps_of_single_matrices_are_the_references() {
    stand_in::on_stand_in("steps_of_single_matrices_are_the_references", || {
        let (problem, data) = cases::llama(CASE).unwrap();
        let machine = machine(&data.config, problem.tokens);
        let mut rng = ChaCha8Rng::seed_from_u64(20);
        let mut changed = 0;
        for (scheme, shape) in [
            ("1x9g8", (48, 128)),
            ("2x4g8", (16, 48)),
            ("3x3g4", (12, 20)),
            ("2x3g4o2", (16, 24)),
            ("1x1g4", (8, 8)),
        ] {
            let start = quantized(&mut rng, scheme, shape);
            for settings in code_settings() {
                changed += follow(&mut rng, &machine, &start, settings);
            }
        }
        assert!(changed > 100, "{changed}");
    });
}

/// Three steps beside the reference; returns how many groups changed.
fn follow(
    rng: &mut ChaCha8Rng,
    machine: &Arc<Machine>,
    start: &QuantizedMatrix,
    settings: CodeSettings,
) -> usize {
    let scheme = start.scheme();
    let tuning = ModelTuning {
        tuned: Tuned::ALL,
        optimizer: settings.optimizer,
        codes: Some(settings),
        seed: 0,
    };
    // one matrix is the whole model of its reference
    let exact_tuning = ModelTuning {
        codes: Some(CodeSettings {
            budget: ChangeBudget::Matrix,
            ..settings
        }),
        ..tuning
    };
    let mut exact = reference::PvMatrix::new(start.clone(), exact_tuning).unwrap();
    let mut ours = PvMatrix::new(machine, start, tuning).unwrap();
    let mut changed = 0;
    for step in 0..3 {
        let gradient = random(rng, start.out_features(), start.in_features());
        let order: Vec<usize> = (0..scheme.num_codebooks).rev().collect();
        let rates = Rates {
            lr: 1e-2,
            code_lr: 0.5,
        };
        let recoded = exact.step(&gradient.mapv(f64::from), rates, &order).unwrap();
        let found = ours
            .step(&gradient.iter().copied().collect::<Vec<f32>>(), rates, &order)
            .unwrap();
        changed += found;
        let buffer = Array2::from_shape_vec(gradient.raw_dim(), ours.buffer().unwrap()).unwrap();
        let matrix = ours.matrix().unwrap();
        let off = (&buffer.mapv(f64::from) - exact.buffer())
            .mapv(|e| e * e)
            .sum()
            .sqrt();
        let size = exact.buffer().mapv(|b| b * b).sum().sqrt();
        let differ = recoded.margins.indexed_iter().filter(|&((o, j), &margin)| {
            let at = s![o, j, ..];
            // a group moves by no more than the whole, and the weight by about as much as the buffer
            matrix.codes().slice(at) != exact.matrix().codes().slice(at) && margin > 4.0 * off
        });
        assert_eq!(differ.count(), 0, "{scheme}, step {step}, {settings:?}");
        if matrix.codes() != exact.matrix().codes() {
            break;
        }
        assert_eq!(found, recoded.changed, "{scheme}, step {step}, {settings:?}");
        // three steps, each of a few dozen roundings of f32
        assert!(
            off <= 100.0 * f64::from(f32::EPSILON) * size,
            "{scheme}, step {step}: {off} of {size}, {settings:?}"
        );
    }
    changed
}

/// A model, and what its tuners take.
struct Model {
    arch: ArchSpec,
    tokens: usize,
    weights: ModelWeights,
    sequences: Vec<Vec<u32>>,
}

impl Model {
    fn new() -> Self {
        let (problem, data) = cases::llama(CASE).unwrap();
        Self {
            tokens: problem.tokens,
            weights: ModelWeights {
                embedding: data.embedding,
                blocks: data.blocks,
                norm: data.norm,
                lm_head: Some(data.lm_head),
            },
            arch: data.config,
            sequences: data.tokens,
        }
    }

    /// Steps that are nearly linear in the gradient, so that f32 decides as f64 does.
    fn tuning(settings: CodeSettings) -> ModelTuning {
        let smooth = |rule| Optimizer {
            decay: AdamDecay {
                beta1: 0.5,
                beta2: 0.95,
                eps: 1.0,
            },
            rule,
        };
        let official = StepRule::Official {
            lamb: true,
            debias: true,
        };
        ModelTuning {
            optimizer: smooth(official),
            codes: Some(CodeSettings {
                optimizer: smooth(settings.optimizer.rule),
                ..settings
            }),
            seed: 9,
            ..ModelTuning::of_parameters(Tuned::ALL, AdamDecay::PAPER)
        }
    }

    fn accumulate<T: ModelTraining>(&self, tuner: &mut T, from: usize, to: usize) {
        let sequences: Vec<&[u32]> = self.sequences[from..to].iter().map(Vec::as_slice).collect();
        let targets = vec![Target::NextTokens; sequences.len()];
        tuner
            .accumulate(&sequences, &targets, 0.1, &mut |_, _, _| ())
            .unwrap();
    }

    fn steps<T: ModelTraining>(&self, tuner: &mut T, count: usize) -> usize {
        let rates = Rates {
            lr: 1e-2,
            code_lr: 0.1,
        };
        let mut changed = 0;
        for _ in 0..count {
            self.accumulate(tuner, 0, self.sequences.len());
            changed += tuner.step(rates).unwrap().changed;
        }
        changed
    }
}

/// Whole models: the same codes as on the CPU; a resumed run ends in the same bytes; sums of two tuners are
/// those of one; foreign states are refused.
#[test]
fn models_are_tuned_as_on_the_cpu_and_resumed_exactly() {
    stand_in::on_stand_in("models_are_tuned_as_on_the_cpu_and_resumed_exactly", || {
        let model = Model::new();
        let machine = machine(&model.arch, model.tokens);
        for settings in everything() {
            let tuning = Model::tuning(settings);
            let new = || ModelTuner::new(&machine, &model.weights, &tuning).unwrap();
            let mut cpu = OnCpu::new(
                &model.arch,
                model.tokens,
                &model.weights,
                &tuning,
                Activations::Keep,
            )
            .unwrap();
            let mut ours = new();
            let mut changed = 0;
            for step in 0..3 {
                let found = model.steps(&mut ours, 1);
                assert_eq!(found, model.steps(&mut cpu, 1), "step {step}, {settings:?}");
                changed += found;
                let (ours, cpu) = (ours.state().unwrap(), cpu.state().unwrap());
                for (ours, cpu) in ours.codes.iter().zip(&cpu.codes) {
                    assert_eq!(ours.codes, cpu.codes, "{}, step {step}, {settings:?}", ours.name);
                    let off: f64 = ours
                        .buffer
                        .iter()
                        .zip(&cpu.buffer)
                        .map(|(a, b)| (a - b).powi(2))
                        .sum();
                    let size: f64 = cpu.buffer.iter().map(|b| b * b).sum();
                    // gradients of f32 through one block
                    assert!(off <= 1e-10 * size, "{}: {off} of {size}", ours.name);
                }
            }
            assert!(changed > 0, "no code changed: {settings:?}");

            let mut first = new();
            model.steps(&mut first, 1);
            let mut resumed = new();
            resumed.restore(&first.state().unwrap()).unwrap();
            model.steps(&mut resumed, 2);
            assert_eq!(resumed.state().unwrap(), ours.state().unwrap());
            assert_eq!(resumed.weights().unwrap(), ours.weights().unwrap());
        }
        sums_and_states(&model, &machine);
        memory_is_as_planned(&model);
    });
}

/// What stays on the device after a step is what the plan counts, up to a tenth for what it leaves out
/// (biases, tables of rotations). More than is free is refused, with advice.
fn memory_is_as_planned(model: &Model) {
    let device = Arc::new(Device::open(0, None).unwrap());
    let machine = Machine::new(device, &model.arch, model.tokens, Precision::Single);
    let machine = Arc::new(machine.unwrap());
    let shape = [model.sequences.len(), model.tokens];
    for (number, settings) in everything().into_iter().enumerate() {
        let tuning = Model::tuning(settings);
        let planned = |tuning: &ModelTuning| {
            TuningMemory::of(&model.arch, &model.weights, tuning, TeacherMemory::Nothing, shape)
        };
        let (with, fixed) = (
            planned(&tuning),
            planned(&ModelTuning {
                codes: None,
                ..tuning
            }),
        );
        assert_eq!(fixed.codes, 0);
        assert_eq!((with.model, with.parameters), (fixed.model, fixed.parameters));
        let before = machine.device().free_bytes().unwrap();
        let mut tuner = ModelTuner::new(&machine, &model.weights, &tuning).unwrap();
        model.steps(&mut tuner, 1);
        let used = before - machine.device().free_bytes().unwrap();
        let weights: usize = tuner
            .state()
            .unwrap()
            .codes
            .iter()
            .map(|codes| codes.buffer.len())
            .sum();
        // gradient, buffer, both moments: these settings have a first beta
        let buffers = weights * 4 * size_of::<f32>();
        assert!(
            with.codes > buffers,
            "{number}: what choosing codes takes is counted, too"
        );
        let kept = with.model + with.parameters + buffers;
        assert!(
            used.abs_diff(kept) <= kept / 10,
            "{number}: {used} bytes in use, {kept} planned of {with}"
        );
        assert_eq!(machine.check_memory(&with).unwrap(), before - used);
    }
    let much = TuningMemory {
        codes: 9 << 30,
        ..TuningMemory::default()
    };
    let refused = machine.check_memory(&much).unwrap_err().to_string();
    assert!(
        refused.contains("codes 9.00") && refused.contains("--codes"),
        "{refused}"
    );
}

fn sums_and_states(model: &Model, machine: &Arc<Machine>) {
    let [settings, ..] = code_settings();
    let tuning = Model::tuning(settings);
    let new = || ModelTuner::new(machine, &model.weights, &tuning).unwrap();
    let (mut whole, mut one, mut two) = (new(), new(), new());
    model.accumulate(&mut whole, 0, 1);
    model.accumulate(&mut whole, 1, 2);
    model.accumulate(&mut one, 0, 1);
    model.accumulate(&mut two, 1, 2);
    one.add(&two.take()).unwrap();
    let sums = whole.take();
    assert_eq!(one.take(), sums);
    assert!(matches!(whole.add(&sums[1..]), Err(AqlmError::Shape { .. })));

    let good = whole.state().unwrap();
    let mut beyond = good.clone();
    beyond.codes[0].codes[[0, 0, 0]] = 4;
    assert!(matches!(
        whole.restore(&beyond),
        Err(AqlmError::CodeOutOfRange { .. })
    ));
    let mut fewer = good.clone();
    fewer.codes.pop();
    let mut shorter = good.clone();
    shorter.codes[1].buffer.pop();
    for other in [&fewer, &shorter] {
        assert!(matches!(whole.restore(other), Err(AqlmError::Shape { .. })));
    }
    assert_eq!(whole.state().unwrap(), good);
    let mut broken = good.clone();
    broken.codes[2].buffer[5] = f64::NAN;
    whole.restore(&broken).unwrap();
    let sequences: Vec<&[u32]> = model.sequences.iter().map(Vec::as_slice).collect();
    let named = whole.first_not_finite(&sequences).unwrap();
    assert_eq!(named, Some(broken.codes[2].name.clone()));
    // the group keeps its codes
    model.steps(&mut whole, 1);

    let parameters = ModelTuning::of_parameters(Tuned::ALL, AdamDecay::PAPER);
    let mut fixed = ModelTuner::new(machine, &model.weights, &parameters).unwrap();
    assert!(matches!(fixed.restore(&good), Err(AqlmError::Shape { .. })));
    let none = CodeSettings {
        max_change: 0.0,
        ..settings
    };
    let mut still = ModelTuner::new(
        machine,
        &model.weights,
        &ModelTuning {
            codes: Some(none),
            ..parameters
        },
    )
    .unwrap();
    assert_eq!(model.steps(&mut still, 2), 0);
    model.steps(&mut fixed, 2);
    assert_eq!(still.weights().unwrap(), fixed.weights().unwrap());
    let refused = ModelTuner::new(
        machine,
        &model.weights,
        &ModelTuning {
            tuned: Tuned {
                norms: true,
                ..Tuned::NONE
            },
            ..tuning
        },
    );
    assert!(matches!(
        refused.map(drop).map_err(AqlmError::from),
        Err(AqlmError::Argument { .. })
    ));
    let metric = CodeSettings {
        metric: CodeMetric::Gradients,
        ..settings
    };
    let fitted = CodeSettings {
        refit: 0.1,
        ..settings
    };
    for (settings, words) in [(metric, "gradients' metric"), (fitted, "fitted to buffers")] {
        let other = ModelTuning {
            codes: Some(settings),
            ..tuning
        };
        let refusals = [
            machine.check_tuning(&other).map_err(AqlmError::from),
            machine
                .check_codes(&model.weights, &other)
                .map_err(AqlmError::from),
            ModelTuner::new(machine, &model.weights, &other)
                .map(drop)
                .map_err(AqlmError::from),
        ];
        for refusal in refusals {
            assert!(
                matches!(&refusal, Err(AqlmError::Unsupported(why)) if why.contains(words)),
                "{refusal:?}"
            );
        }
    }
    machine.check_tuning(&tuning).unwrap();
    let wide = ModelTuning {
        codes: Some(CodeSettings {
            beam: 129,
            ..settings
        }),
        ..tuning
    };
    let early = machine
        .check_codes(&model.weights, &wide)
        .map_err(AqlmError::from);
    assert!(matches!(early, Err(AqlmError::Unsupported(_))));
    machine.check_codes(&model.weights, &tuning).unwrap();
    let refused = ModelTuner::new(machine, &model.weights, &wide);
    assert!(matches!(
        refused.map(drop).map_err(AqlmError::from),
        Err(AqlmError::Unsupported(_))
    ));
}

#[test]
#[ignore = "takes a minute: every kernel is compiled and run thread by thread; .ci/run has a step for it"]
fn the_check_of_whole_models_passes() {
    stand_in::on_stand_in("the_check_of_whole_models_passes", || {
        let machines = vec![Machines {
            backend: "cuda",
            subjects: Cuda::first().map(|cuda| vec![cuda]),
        }];
        for case in [CASE, "model_tune-4x2-k1-q1-d4-n1-t2-w0-nobias-plain-1x1g4-s4"] {
            let options = CrossOptions::of_case(case.parse().unwrap(), machines.clone());
            let report = cross_check(&options, &mut |_| ()).unwrap();
            for row in &report.report.rows {
                assert!(matches!(row.outcome, Outcome::Pass), "{row:?}");
            }
        }
    });
}
