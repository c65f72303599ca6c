//! Block fine-tuning over the machines. With the reference's gradients and steps it equals the reference's
//! own fine-tuning bit for bit. With the CPU's it stays close.

mod support;

use aqlm_engine::backends::{CpuBackend, ReferenceBackend};
use aqlm_engine::ops::{Alone, BlockOps, PartSums, Ranks};
use aqlm_engine::{Error, Result, hessians, tune_block};
use aqlm_optimized::cpu::llama::{Block, Rotary, block_forward};
use aqlm_reference::llama as reference;
use aqlm_vocabulary::{
    AqlmError, BlockSpec, BlockWeights, FinetuneEvent, FinetuneReport, FinetuneSettings, LinearWeight,
    RopeScaling, StreamKey,
    llama::{DOWN, QUERY, UP},
};
use ndarray::{Array2, Array3, Axis};
use std::ops::Range;
use support::{
    arch, assert_close, block_weights, config, limit, normal, quantized, random, widened, with_outliers,
    with_threads,
};

/// Longer than one span of queries.
const TOKENS: usize = 70;
const SEQUENCES: usize = 3;

/// Total length of the sums behind one output: both norms, the products of attention and MLP, scores and
/// softmax.
fn terms(spec: &BlockSpec) -> usize {
    4 * spec.hidden_size()
        + spec.intermediate_size()
        + spec.attention.query_width()
        + spec.attention.head_dim
        + 2 * TOKENS
}

struct Case {
    name: String,
    config: BlockSpec,
    weights: BlockWeights,
    x: Array3<f32>,
}

fn cases() -> Vec<Case> {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 2.0,
        high_freq_factor: 5.0,
        original_max_position_embeddings: 64,
    };
    let variants = [
        (4, 4, None, false, RopeScaling::None),
        (4, 2, Some(9), true, RopeScaling::Linear { factor: 4.0 }),
        (6, 1, Some(TOKENS + 5), false, llama3),
    ];
    variants
        .into_iter()
        .enumerate()
        .map(|(i, (heads, kv_heads, window, bias, scaling))| {
            let mut rng = random(i as u64);
            let name = format!("{heads} heads, {kv_heads} kv heads, window {window:?}, {scaling:?}");
            let config = config(heads, kv_heads, window, scaling);
            let mut weights = block_weights(&mut rng, &config, bias);
            let (out, inputs) = config.shape(UP);
            weights.layer_mut(UP).weight =
                LinearWeight::Quantized(quantized(&mut rng, "2x3g4o2", out, inputs));
            let x = with_outliers(&mut rng, (SEQUENCES, TOKENS, config.hidden_size()));
            Case {
                name,
                config,
                weights,
                x,
            }
        })
        .collect()
}

fn sequence(x: &Array3<f32>, i: usize) -> Array2<f64> {
    x.index_axis(Axis(0), i).mapv(f64::from)
}

const KEY: StreamKey = StreamKey {
    seed: 7,
    block: 1,
    layer: None,
};

/// Outputs of a block whose layers differ slightly from the case's.
fn targets(case: &Case) -> Array3<f32> {
    let mut other = case.weights.clone();
    let mut rng = random(31);
    for kind in case.config.layers() {
        if let LinearWeight::Dense(weight) = &mut other.layer_mut(kind).weight {
            *weight += &(0.05 * normal(&mut rng, weight.dim()));
        }
    }
    let rotary = Rotary::new(&case.config.attention, TOKENS);
    block_forward(
        &Block::from_weights(&case.config, &other).unwrap(),
        &rotary,
        case.x.view(),
    )
}

const SETTINGS: FinetuneSettings = FinetuneSettings {
    lr: 3e-3,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    epochs: 6,
    batch: 2,
    patience: 2,
    codebooks: true,
    scales: true,
    norms: true,
};

fn tuned(case: &Case, settings: &FinetuneSettings, validation: usize) -> (Block, FinetuneReport) {
    let machine = CpuBackend::new(&arch(&case.config), TOKENS).unwrap();
    let mut block = Block::from_weights(&case.config, &case.weights).unwrap();
    let targets = targets(case);
    let report = tune_block(
        &machine,
        &mut block,
        &case.x.clone().into(),
        &targets.into(),
        validation,
        settings,
        KEY,
        &Alone,
        &mut |_| (),
    )
    .unwrap();
    (block, report)
}

#[test]
fn fine_tuning_follows_the_reference() {
    for (case, validation) in cases().into_iter().zip([1, 0, 1]) {
        let (block, ours) = tuned(&case, &SETTINGS, validation);
        let inputs: Vec<Array2<f64>> = (0..SEQUENCES).map(|i| sequence(&case.x, i)).collect();
        let goals: Vec<Array2<f64>> = (0..SEQUENCES).map(|i| sequence(&targets(&case), i)).collect();
        let mut exact = reference::Block::from_weights(&case.config, &case.weights).unwrap();
        let rotary = reference::Rotary::new(&case.config.attention, TOKENS);
        let expected = reference::block_finetune(
            &mut exact,
            &rotary,
            &inputs,
            &goals,
            validation,
            &SETTINGS,
            KEY,
            &mut |_| (),
        )
        .unwrap();
        assert_eq!(ours.best_epoch, expected.best_epoch, "{}", case.name);
        assert!(
            expected.loss_after < expected.loss_before,
            "{}: nothing was learned",
            case.name
        );
        // Adam divides by the root of the second moment. A parameter whose gradients are at rounding level
        // therefore moves arbitrarily, by at most lr per step. The effect on the loss is of second order.
        let steps = SETTINGS.epochs * SEQUENCES.div_ceil(SETTINGS.batch);
        let limit = limit(terms(&case.config) * 2 * steps);
        assert_close(&case.name, [ours.loss_before], &[expected.loss_before], limit);
        assert_close(&case.name, [ours.loss_after], &[expected.loss_after], limit);
        assert_close(&case.name, ours.train_losses, &expected.train_losses, limit);
        assert_eq!(ours.validation_losses.len(), expected.validation_losses.len());
        let norm = block.to_weights().post_attention_layernorm;
        assert_close("norm", widened(&norm), &exact.post_attention_layernorm, limit);
    }
}

#[test]
fn fine_tuning_says_what_it_does_and_stops_when_nothing_improves() {
    let case = cases().swap_remove(0);
    let machine = CpuBackend::new(&arch(&case.config), TOKENS).unwrap();
    let targets = targets(&case);
    // Too small to change any f32 parameter: every epoch ends with the initial loss.
    let settings = FinetuneSettings {
        lr: 1e-30,
        batch: 1,
        ..SETTINGS
    };
    let mut block = Block::from_weights(&case.config, &case.weights).unwrap();
    let mut events = Vec::new();
    let report = tune_block(
        &machine,
        &mut block,
        &case.x.clone().into(),
        &targets.into(),
        1,
        &settings,
        KEY,
        &Alone,
        &mut |event| events.push(event),
    )
    .unwrap();
    assert_eq!((report.best_epoch, report.loss_after), (0, report.loss_before));
    assert_eq!(report.train_losses.len(), settings.patience);
    let steps: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            FinetuneEvent::Step {
                epoch, step, steps, ..
            } => Some((*epoch, *step, *steps)),
            FinetuneEvent::Epoch { .. } => None,
        })
        .collect();
    assert_eq!(steps, [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]);
}

#[test]
fn fine_tuning_does_not_depend_on_threads() {
    let case = cases().swap_remove(0);
    let run = |threads| {
        with_threads(threads, || {
            let (block, report) = tuned(&case, &SETTINGS, 1);
            (block.to_weights(), report)
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn fine_tuning_refuses_what_it_cannot_do() {
    let case = cases().swap_remove(0);
    let machine = CpuBackend::new(&arch(&case.config), TOKENS).unwrap();
    let run = |targets: Array3<f32>, validation, settings: &FinetuneSettings| {
        let mut block = Block::from_weights(&case.config, &case.weights).unwrap();
        let outcome = tune_block(
            &machine,
            &mut block,
            &case.x.clone().into(),
            &targets.into(),
            validation,
            settings,
            KEY,
            &Alone,
            &mut |_| (),
        );
        assert_eq!(block.to_weights(), case.weights, "the block is as it was");
        match outcome {
            Err(Error::Aqlm(error)) => Err(error),
            Err(Error::Argument {
                what,
                expected,
                found,
            }) => Err(AqlmError::argument(what, expected, found)),
            other => Ok(other.unwrap()),
        }
    };
    let good = || targets(&case);
    assert!(matches!(
        run(good(), SEQUENCES, &SETTINGS),
        Err(AqlmError::Argument { .. })
    ));
    let no_batch = FinetuneSettings { batch: 0, ..SETTINGS };
    assert!(matches!(
        run(good(), 1, &no_batch),
        Err(AqlmError::Argument { .. })
    ));
    let short = good().slice_move(ndarray::s![.., ..5, ..]);
    assert!(matches!(run(short, 1, &SETTINGS), Err(AqlmError::Shape { .. })));
    let bad = good() * f32::NAN;
    assert!(matches!(run(bad, 1, &SETTINGS), Err(AqlmError::NotFinite { .. })));
    let idle = FinetuneSettings {
        codebooks: false,
        scales: false,
        norms: false,
        ..SETTINGS
    };
    assert_eq!(run(good(), 1, &idle).unwrap().train_losses, Vec::<f64>::new());
}

/// Sequences of different length.
fn ragged(case: &Case) -> Vec<Array2<f64>> {
    let lengths = [30, 30, 7, 70, 12, 12];
    let rows = |i: usize| sequence(&case.x, i % SEQUENCES);
    (0..lengths.len())
        .map(|i| rows(i).slice(ndarray::s![..lengths[i], ..]).to_owned())
        .collect()
}

#[test]
fn over_the_reference_it_is_the_references_own() {
    for (case, validation) in cases().into_iter().zip([2, 0, 1]) {
        let inputs = ragged(&case);
        let machine = ReferenceBackend::new(&arch(&case.config), TOKENS).unwrap();
        let mut other = case.weights.clone();
        for kind in case.config.layers() {
            if let LinearWeight::Dense(weight) = &mut other.layer_mut(kind).weight {
                *weight *= 1.05;
            }
        }
        let other = reference::Block::from_weights(&case.config, &other).unwrap();
        let targets = machine.block_forward(&other, &inputs).unwrap();

        let mut expected = reference::Block::from_weights(&case.config, &case.weights).unwrap();
        let rotary = reference::Rotary::new(&case.config.attention, TOKENS);
        let mut expected_events = Vec::new();
        let expected_report = reference::block_finetune(
            &mut expected,
            &rotary,
            &inputs,
            &targets,
            validation,
            &SETTINGS,
            KEY,
            &mut |event| expected_events.push(event),
        )
        .unwrap();
        let mut block = reference::Block::from_weights(&case.config, &case.weights).unwrap();
        let mut events = Vec::new();
        let report = tune_block(
            &machine,
            &mut block,
            &inputs,
            &targets,
            validation,
            &SETTINGS,
            KEY,
            &Alone,
            &mut |event| events.push(event),
        )
        .unwrap();
        assert!(report.best_epoch > 0, "nothing was learned");
        assert_eq!(block, expected, "{}", case.name);
        assert_eq!((report, events), (expected_report, expected_events));
    }
}

/// Simulates several ranks in one process, one after the other. Every part is summed separately, and the sums
/// are added in the order of the parts.
struct Several;

impl Ranks for Several {
    fn sum_in_order<S: PartSums>(
        &self,
        sums: &mut S,
        parts: usize,
        add: &mut dyn FnMut(&mut S, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let mut gathered = vec![sums.take()];
        // The last rank runs first.
        for part in (0..parts).rev() {
            add(sums, part..part + 1)?;
            gathered.insert(1, sums.take());
        }
        assert!(parts > 1, "one part shows nothing");
        gathered.iter().try_for_each(|part| sums.add(part))
    }
}

/// Hessians and a tuned block of a machine, computed by one rank and by several.
fn by_ranks<M>(machine: &M, case: &Case, hidden: &M::Hidden, targets: &M::Hidden)
where
    M: aqlm_engine::ops::TrainOps,
{
    let layers = [QUERY, DOWN];
    let block = machine.load_block(0, &case.weights).unwrap();
    let sums = |ranks: &dyn Fn() -> Result<Vec<M::Hessian>>| -> Vec<Vec<f64>> {
        ranks().unwrap().iter_mut().map(PartSums::take).collect()
    };
    let all = 1..machine.lengths(hidden).len();
    assert_eq!(
        sums(&|| hessians(machine, &block, hidden, all.clone(), &layers, &Several)),
        sums(&|| hessians(machine, &block, hidden, all.clone(), &layers, &Alone)),
    );
    let settings = FinetuneSettings { batch: 3, ..SETTINGS };
    let tuned = |several: bool| {
        let mut block = machine.load_block(0, &case.weights).unwrap();
        let mut nothing = |_| ();
        let report = if several {
            tune_block(
                machine,
                &mut block,
                hidden,
                targets,
                2,
                &settings,
                KEY,
                &Several,
                &mut nothing,
            )
        } else {
            tune_block(
                machine,
                &mut block,
                hidden,
                targets,
                2,
                &settings,
                KEY,
                &Alone,
                &mut nothing,
            )
        };
        (machine.store_block(&block).unwrap(), report.unwrap())
    };
    assert_eq!(tuned(true), tuned(false));
}

#[test]
fn bytes_do_not_depend_on_the_number_of_ranks() {
    let case = cases().swap_remove(1);
    // Neighbouring lengths differ, so that each sequence is its own part.
    let lengths = [40, 9, 70, 33, 12, 50, 21];
    let tokens: Vec<Vec<u32>> = lengths
        .iter()
        .enumerate()
        .map(|(i, &length)| (0..length).map(|t| ((i * 31 + t * 7) % 50) as u32).collect())
        .collect();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let embedding = normal(&mut random(3), (50, case.config.hidden_size()));
    let other = block_weights(&mut random(4), &case.config, true);
    let cpu = CpuBackend::new(&arch(&case.config), TOKENS).unwrap();
    let hidden = cpu.embed(&embedding, &tokens).unwrap();
    let targets = cpu
        .block_forward(&Block::from_weights(&case.config, &other).unwrap(), &hidden)
        .unwrap();
    by_ranks(&cpu, &case, &hidden, &targets);
    let reference = ReferenceBackend::new(&arch(&case.config), TOKENS).unwrap();
    let hidden = reference.embed(&embedding, &tokens).unwrap();
    let targets = reference
        .block_forward(&reference.load_block(0, &other).unwrap(), &hidden)
        .unwrap();
    by_ranks(&reference, &case, &hidden, &targets);
}
