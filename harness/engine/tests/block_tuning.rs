//! Block fine-tuning over the machines. With the reference's gradients and steps it equals the reference's
//! own fine-tuning bit for bit. With the CPU's it stays close.

use aqlm_check::assertions::{assert_close, limit, with_threads};
use aqlm_check::cases::{LlamaData, THREE_BLOCKS, llama};
use aqlm_engine::backends::{CpuBackend, ReferenceBackend};
use aqlm_engine::ops::{BlockOps as _, TrainOps};
use aqlm_engine::ranks::{Alone, Ranks};
use aqlm_engine::{Error, Result, tune_block};
use aqlm_optimized::cpu::llama::{Block, Rotary, block_forward};
use aqlm_reference::llama as reference;
use aqlm_vocabulary::{
    AqlmError, BlockWeights, FinetuneEvent, FinetuneReport, FinetuneSettings, LinearWeight, StreamKey,
};
use ndarray::{Array2, Array3, Axis};

const TOKENS: usize = 70;
const SEQUENCES: usize = 3;

fn sequence(x: &Array3<f32>, i: usize) -> Array2<f64> {
    x.index_axis(Axis(0), i).mapv(f64::from)
}

const KEY: StreamKey = StreamKey {
    seed: 7,
    block: 1,
    layer: None,
};

/// The first block's weights with other codebooks, and dense layers a little towards those of the second.
fn moved(case: &LlamaData) -> BlockWeights {
    let mut other = case.blocks[0].clone();
    for (layer, towards) in other.layers.iter_mut().zip(&case.blocks[1].layers) {
        match (&mut layer.weight, &towards.weight) {
            (LinearWeight::Quantized(matrix), _) => {
                matrix.tune(|mut codebooks, _| codebooks.mapv_inplace(|c| 1.1 * c + 0.02));
            }
            (LinearWeight::Dense(weight), LinearWeight::Dense(towards)) => weight.scaled_add(0.02, towards),
            (LinearWeight::Dense(_), LinearWeight::Quantized(_)) => {}
        }
    }
    other
}

/// Outputs of a block whose layers differ slightly from the case's.
fn targets(case: &LlamaData) -> Array3<f32> {
    let rotary = Rotary::of_model(&case.config, TOKENS);
    let other = Block::from_weights(&case.config.blocks[0], &moved(case)).unwrap();
    block_forward(&other, &rotary, case.x.view())
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

/// The first block after tuning, what the tuning returned, and its events.
fn tuned<M: TrainOps>(
    machine: &M,
    case: &LlamaData,
    (inputs, targets): (&M::Hidden, &M::Hidden),
    validation: usize,
    settings: &FinetuneSettings,
    ranks: &dyn Ranks,
) -> (M::Block, Result<FinetuneReport>, Vec<FinetuneEvent>) {
    let mut block = machine.load_block(0, &case.blocks[0]).unwrap();
    let mut events = Vec::new();
    let outcome = tune_block(
        machine,
        &mut block,
        inputs,
        targets,
        validation,
        settings,
        KEY,
        ranks,
        &mut |event| events.push(event),
    );
    (block, outcome, events)
}

/// [`tuned`] by one process on the CPU.
fn on_cpu(
    case: &LlamaData,
    targets: Array3<f32>,
    validation: usize,
    settings: &FinetuneSettings,
) -> (BlockWeights, Result<FinetuneReport>, Vec<FinetuneEvent>) {
    let machine = CpuBackend::new(&case.config, TOKENS).unwrap();
    let states = (&case.x.clone().into(), &targets.into());
    let (block, outcome, events) = tuned(&machine, case, states, validation, settings, &Alone);
    (block.to_weights(), outcome, events)
}

/// The reference's own fine-tuning of the first block.
fn by_reference(
    case: &LlamaData,
    inputs: &[Array2<f64>],
    targets: &[Array2<f64>],
    validation: usize,
) -> (reference::Block, FinetuneReport, Vec<FinetuneEvent>) {
    let mut block = case.block(0);
    let rotary = reference::Rotary::of_model(&case.config, TOKENS);
    let mut events = Vec::new();
    let report = reference::block_finetune(
        &mut block,
        &rotary,
        inputs,
        targets,
        validation,
        &SETTINGS,
        KEY,
        &mut |event| events.push(event),
    )
    .unwrap();
    (block, report, events)
}

#[test]
fn fine_tuning_follows_the_reference() {
    for (id, validation) in THREE_BLOCKS.into_iter().zip([1, 0, 1]) {
        let (problem, case) = llama(id).unwrap();
        let (block, ours, _) = on_cpu(&case, targets(&case), validation, &SETTINGS);
        let ours = ours.unwrap();
        let inputs: Vec<Array2<f64>> = (0..SEQUENCES).map(|i| sequence(&case.x, i)).collect();
        let goals: Vec<Array2<f64>> = (0..SEQUENCES).map(|i| sequence(&targets(&case), i)).collect();
        let (exact, expected, _) = by_reference(&case, &inputs, &goals, validation);
        assert_eq!(ours.best_epoch, expected.best_epoch, "{id}");
        assert!(
            expected.loss_after < expected.loss_before,
            "{id}: nothing was learned"
        );
        // Adam divides by the root of the second moment. A parameter whose gradients are at rounding level
        // therefore moves arbitrarily, by at most lr per step. The effect on the loss is of second order.
        let steps = SETTINGS.epochs * SEQUENCES.div_ceil(SETTINGS.batch);
        let limit = limit(problem.terms() * 2 * steps);
        assert_close(id, [ours.loss_before], &[expected.loss_before], limit);
        assert_close(id, [ours.loss_after], &[expected.loss_after], limit);
        assert_close(id, ours.train_losses, &expected.train_losses, limit);
        assert_eq!(ours.validation_losses.len(), expected.validation_losses.len());
        assert_close("norm", block.norms[1].clone(), &exact.norms[1], limit);
    }
}

#[test]
fn fine_tuning_says_what_it_does_and_stops_when_nothing_improves() {
    let (_, case) = llama(THREE_BLOCKS[0]).unwrap();
    // Too small to change any f32 parameter: every epoch ends with the initial loss.
    let settings = FinetuneSettings {
        lr: 1e-30,
        batch: 1,
        ..SETTINGS
    };
    let (_, report, events) = on_cpu(&case, targets(&case), 1, &settings);
    let report = report.unwrap();
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
    let (_, case) = llama(THREE_BLOCKS[0]).unwrap();
    let run = |threads| {
        with_threads(threads, || {
            let (block, report, _) = on_cpu(&case, targets(&case), 1, &SETTINGS);
            (block, report.unwrap())
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn fine_tuning_refuses_what_it_cannot_do() {
    let (_, case) = llama(THREE_BLOCKS[0]).unwrap();
    let run = |targets: Array3<f32>, validation, settings: &FinetuneSettings| {
        let (block, outcome, _) = on_cpu(&case, targets, validation, settings);
        assert_eq!(block, case.blocks[0], "the block is as it was");
        outcome
    };
    let good = || targets(&case);
    assert!(matches!(
        run(good(), SEQUENCES, &SETTINGS),
        Err(Error::Argument { .. })
    ));
    let no_batch = FinetuneSettings { batch: 0, ..SETTINGS };
    assert!(matches!(run(good(), 1, &no_batch), Err(Error::Argument { .. })));
    let short = good().slice_move(ndarray::s![.., ..5, ..]);
    assert!(matches!(
        run(short, 1, &SETTINGS),
        Err(Error::Aqlm(AqlmError::Shape { .. }))
    ));
    let bad = good() * f32::NAN;
    assert!(matches!(
        run(bad, 1, &SETTINGS),
        Err(Error::Aqlm(AqlmError::NotFinite { .. }))
    ));
    let idle = FinetuneSettings {
        codebooks: false,
        scales: false,
        norms: false,
        ..SETTINGS
    };
    assert_eq!(run(good(), 1, &idle).unwrap().train_losses, Vec::<f64>::new());
}

#[test]
fn over_the_reference_it_is_the_references_own() {
    for (id, validation) in THREE_BLOCKS.into_iter().zip([2, 0, 1]) {
        let (_, case) = llama(id).unwrap();
        // sequences of different length
        let inputs: Vec<Array2<f64>> = [30, 30, 7, 70, 12, 12]
            .into_iter()
            .enumerate()
            .map(|(i, tokens)| sequence(&case.x, i % SEQUENCES).slice_move(ndarray::s![..tokens, ..]))
            .collect();
        let machine = ReferenceBackend::new(&case.config, TOKENS).unwrap();
        let other = machine.load_block(0, &moved(&case)).unwrap();
        let targets = machine.block_forward(&other, &inputs).unwrap();
        let (expected, expected_report, expected_events) = by_reference(&case, &inputs, &targets, validation);
        let (block, report, events) = tuned(
            &machine,
            &case,
            (&inputs, &targets),
            validation,
            &SETTINGS,
            &Alone,
        );
        let report = report.unwrap();
        assert!(report.best_epoch > 0, "nothing was learned");
        assert_eq!(block, expected, "{id}");
        assert_eq!((report, events), (expected_report, expected_events));
    }
}
