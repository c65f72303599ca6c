//! Likelihoods of continuations: shared beginnings change nothing, and every backend agrees.

use aqlm_engine::backends::BackendKind;
use aqlm_engine::likelihood::{Continuation, Likelihood};
use aqlm_formats::model::Model;
use ndarray::s;

const STORY: &str = "Once upon a time there was a little cat who lived in a small house near the woods.";

/// Two continuations of a beginning, one that contains another, one that stands alone, and two of one
/// sequence.
fn sequences(model: &Model) -> Vec<Vec<u32>> {
    let tokenizer = model.tokenizer().unwrap();
    let of = |text: &str| tokenizer.encode(text, false).unwrap();
    vec![
        of(&format!("{STORY} The cat was happy")),
        of(&format!("{STORY} The cat was happy and played")),
        of(&format!("{STORY} A dog ran")),
        of("Tom saw a bird in"),
        of(STORY),
    ]
}

#[test]
fn shared_beginnings_change_no_likelihood() {
    let model = Model::embedded().unwrap();
    let owned = sequences(&model);
    let sequences: Vec<&[u32]> = owned.iter().map(Vec::as_slice).collect();
    let tails: [(usize, &[u32]); 7] = [
        (0, &[5, 300]),
        (0, &[7]),
        (1, &[300, 2, 9, 11]),
        (2, &[301]),
        (3, &[12, 13]),
        (3, &[12, 14]),
        (4, &[15]),
    ];
    let continuations = tails.map(|(sequence, tokens)| Continuation { sequence, tokens });
    let longest = sequences.iter().map(|tokens| tokens.len()).max().unwrap();
    let mut of_backends = Vec::new();
    // f32 against f64: a few dozen layers round sums of up to 704 terms, and the largest log-likelihood here
    // is about 60. eps of f32 is 1.2e-7, so 1e-4 leaves room for some ten roundings of each logit. The
    // reference computes the same numbers in another order of sums at most.
    for (backend, limit) in [(BackendKind::Reference, 1e-10), (BackendKind::Cpu, 1e-4)] {
        let machine = backend.models(model.config(), longest).unwrap();
        let mut resident = machine.model(&model, &mut |_| {}).unwrap();
        let found = resident.likelihoods(&sequences, &continuations).unwrap();
        for (found, (sequence, tokens)) in found.iter().zip(tails) {
            let logits = resident.logits(sequences[sequence]).unwrap();
            let rows = logits.slice(s![logits.nrows() - tokens.len().., ..]);
            let expected = Likelihood::of(&rows, tokens).unwrap();
            let difference = (found.log_likelihood - expected.log_likelihood).abs();
            assert!(
                difference < limit,
                "{backend} {sequence} {tokens:?}: {difference:e}"
            );
            assert_eq!(found.greedy, expected.greedy);
        }
        of_backends.push(found);
    }
    for (reference, cpu) in of_backends[0].iter().zip(&of_backends[1]) {
        let difference = (reference.log_likelihood - cpu.log_likelihood).abs();
        assert!(difference < 1e-4, "{difference:e}");
    }
}

#[test]
fn the_most_likely_tokens_are_greedy() {
    let model = Model::embedded().unwrap();
    let owned = sequences(&model);
    let machine = BackendKind::Cpu.models(model.config(), 64).unwrap();
    let mut resident = machine.model(&model, &mut |_| {}).unwrap();
    let logits = resident.logits(&owned[0]).unwrap();
    let last = logits.row(logits.nrows() - 1);
    let top = (0..last.len()).fold(0, |best, id| if last[id] > last[best] { id } else { best }) as u32;
    let other = u32::from(top == 0);
    let tails = [[top], [other]];
    let continuations: Vec<_> = tails
        .iter()
        .map(|tokens| Continuation { sequence: 0, tokens })
        .collect();
    let found = resident.likelihoods(&[&owned[0]], &continuations).unwrap();
    assert_eq!([found[0].greedy, found[1].greedy], [true, false]);
    assert!(
        resident
            .likelihoods(
                &[&owned[0]],
                &[Continuation {
                    sequence: 0,
                    tokens: &[]
                }]
            )
            .is_err()
    );
}
