//! Sequences of different length: on every machine, streamed or resident, the losses are those of each
//! sequence alone.

use aqlm_engine::Result;
use aqlm_engine::backends::{BackendKind, CpuBackend, ReferenceBackend};
use aqlm_engine::evaluate::{Evaluation, resident, streamed};
use aqlm_engine::generate::{Sampling, generate};
use aqlm_engine::ops::{BlockOps, ModelOps};
use aqlm_formats::model::Model;
use aqlm_vocabulary::{Purpose, stream};
use ndarray::{Array1, Array2};

/// Several parts; the first consists of two sequences of equal length.
const LENGTHS: [usize; 6] = [9, 9, 2, 17, 5, 9];

fn windows() -> Vec<Vec<u32>> {
    let window = |i: usize| {
        (0..LENGTHS[i])
            .map(|t| ((i * 131 + t * 17) % 400) as u32)
            .collect()
    };
    (0..LENGTHS.len()).map(window).collect()
}

/// The losses of all windows together, checked against the losses of each window alone.
fn losses(machine: &dyn ModelOps, model: &Model, same_bits: bool) -> Vec<Array1<f64>> {
    let windows = windows();
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let mut resident = machine.model(model, &mut |_| ()).unwrap();
    let together = resident.losses(&windows).unwrap();
    for (window, together) in windows.iter().zip(&together) {
        assert_eq!(together.len(), window.len() - 1);
        let alone = &resident.losses(&[window]).unwrap()[0];
        if same_bits {
            assert_eq!(together, alone);
        } else {
            assert_near(together, alone);
        }
    }
    together
}

/// Losses of a few nats, computed in f32 or f16, must agree to within a hundredth. A confusion of two windows
/// is far outside this limit.
fn assert_near(ours: &Array1<f64>, theirs: &Array1<f64>) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() <= 1e-2, "{ours} {theirs}");
    }
}

#[test]
fn losses_of_windows_of_different_length_are_those_of_each_alone() {
    let model = Model::embedded().unwrap();
    let machine = |kind: BackendKind| kind.models(model.config(), 20);
    let expected = losses(machine(BackendKind::Reference).unwrap().as_ref(), &model, true);
    let near = |found: &[Array1<f64>]| {
        assert_eq!(found.len(), expected.len());
        found
            .iter()
            .zip(&expected)
            .for_each(|(ours, theirs)| assert_near(ours, theirs));
    };
    // The rounding of a product may depend on the other rows of the batch.
    near(&losses(
        machine(BackendKind::Cpu).unwrap().as_ref(),
        &model,
        false,
    ));
    match machine(BackendKind::Cuda) {
        Ok(machine) => near(&losses(machine.as_ref(), &model, false)),
        Err(error) => println!("not on a GPU: {error}"),
    }
}

#[test]
fn streamed_and_resident_are_the_same() {
    let model = Model::embedded().unwrap();
    let windows = windows();
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let machine = CpuBackend::new(model.config(), 20).unwrap();
    let streamed = streamed(&machine, &model, &windows, true, &mut |_| ()).unwrap();
    let Evaluation { losses, logits } = resident(&machine, &model, &windows, true, &mut |_| ()).unwrap();
    assert_eq!(streamed.losses, losses);
    for (window, logits) in logits.iter().enumerate() {
        assert_eq!(logits.dim(), streamed.logits[window].dim());
    }
    let perplexity = streamed.perplexity();
    assert_eq!(
        perplexity.tokens,
        LENGTHS.iter().map(|length| length - 1).sum::<usize>()
    );
    let short: [&[u32]; 2] = [&[1, 2], &[1]];
    assert!(resident(&machine, &model, &short, false, &mut |_| ()).is_err());
}

#[test]
fn a_session_begins_anew_each_time() {
    let model = Model::embedded().unwrap();
    let machine = CpuBackend::new(model.config(), 20).unwrap();
    let mut resident = machine.model(&model, &mut |_| ()).unwrap();
    let mut write = || {
        let mut rng = stream(0, 0, None, Purpose::Generation);
        generate(
            resident.session().unwrap().as_mut(),
            &[1, 40, 41],
            8,
            &[],
            Sampling::Greedy,
            &mut rng,
            &mut |_| true,
        )
        .unwrap()
        .tokens
    };
    let first = write();
    assert_eq!(first.len(), 8);
    assert_eq!(write(), first);
    // A stop token ends the text and belongs to it, whether it comes first or later.
    for stop in [0, 2] {
        let mut rng = stream(0, 0, None, Purpose::Generation);
        let mut session = resident.session().unwrap();
        let stops = [first[stop]];
        let ended = generate(
            session.as_mut(),
            &[1, 40, 41],
            8,
            &stops,
            Sampling::Greedy,
            &mut rng,
            &mut |_| true,
        );
        let until = first.iter().position(|token| stops.contains(token)).unwrap();
        assert_eq!(ended.unwrap().tokens, first[..=until]);
    }
    // and ends where its reader wants no more
    let mut read = Vec::new();
    let mut rng = stream(0, 0, None, Purpose::Generation);
    let session = resident.session().unwrap();
    let generated = generate(
        { session }.as_mut(),
        &[1, 40, 41],
        8,
        &[],
        Sampling::Greedy,
        &mut rng,
        &mut |token| {
            read.push(token);
            read.len() < 3
        },
    );
    assert_eq!(read, first[..3]);
    assert_eq!(generated.unwrap().tokens, read);
    assert!(resident.session().unwrap().next(u32::MAX).is_err());
}

fn largest(machine: &impl BlockOps, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<f64> {
    machine.largest(&machine.embed(embedding, sequences)?)
}

#[test]
fn a_hidden_state_that_is_not_finite_is_named() {
    let model = Model::embedded().unwrap();
    let cpu = CpuBackend::new(model.config(), 20).unwrap();
    let reference = ReferenceBackend::new(model.config(), 20).unwrap();
    for number in [f32::NAN, f32::NEG_INFINITY] {
        let mut embedding = model.embedding().unwrap();
        embedding[[41, 7]] = number;
        let finite: [&[u32]; 1] = [&[1, 40]];
        let expected = largest(&reference, &embedding, &finite).unwrap();
        assert!(expected > 0.0);
        assert_eq!(largest(&cpu, &embedding, &finite).unwrap(), expected);
        let bad: [&[u32]; 2] = [&[1, 40], &[3, 41, 5]];
        for result in [
            largest(&cpu, &embedding, &bad),
            largest(&reference, &embedding, &bad),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("[1, 1, 7]"), "{error}");
        }
    }
}

#[test]
fn a_gpu_gives_the_losses_or_says_what_is_missing() {
    use aqlm_engine::evaluate::Streamed;

    let model = Model::embedded().unwrap();
    let job = Streamed {
        weights: &model,
        windows: &[&[1, 2]],
        with_logits: false,
        progress: &mut |_| (),
    };
    match BackendKind::Cuda.run(model.config(), 2, job) {
        Ok(evaluation) => {
            let machine = CpuBackend::new(model.config(), 2).unwrap();
            let expected = streamed(&machine, &model, &[&[1, 2]], false, &mut |_| ()).unwrap();
            // The CPU's limit of a loss in f32.
            let difference = evaluation.losses[0][0] - expected.losses[0][0];
            assert!(difference.abs() < 1e-4, "{difference}");
        }
        Err(error) => assert!(error.to_string().starts_with("GPU: no CUDA device: "), "{error}"),
    }
}
