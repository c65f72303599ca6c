//! A model reads the questions of a task.

use std::collections::HashMap;

use aqlm_formats::Result;

use super::encode::Encoded;
use crate::likelihood::{Continuation, Likelihood};
use crate::ops::ResidentModel;

/// Tokens that a model reads together.
const TOKENS: usize = 1 << 12;

/// The likelihoods of all pairs of all questions.
///
/// Equal inputs are read once: answers of one token, as in MMLU, are all predicted at the end of the same
/// context. The others are read in the order of their tokens, so that texts that begin alike are neighbours
/// and machines can share the beginning. `progress` receives the tokens of every batch.
///
/// # Errors
/// Those of the model.
pub fn likelihoods(
    model: &mut dyn ResidentModel,
    questions: &[Vec<Encoded>],
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<Likelihood>>> {
    let pairs: Vec<&Encoded> = questions.iter().flatten().collect();
    let mut by_input: HashMap<&[u32], Vec<usize>> = HashMap::new();
    for (index, pair) in pairs.iter().enumerate() {
        by_input.entry(&pair.input).or_default().push(index);
    }
    let mut inputs: Vec<(&[u32], Vec<usize>)> = by_input.into_iter().collect();
    inputs.sort_unstable_by_key(|(input, _)| *input);
    let mut found: Vec<Option<Likelihood>> = vec![None; pairs.len()];
    let mut rest = &inputs[..];
    while !rest.is_empty() {
        let mut tokens = 0;
        let batch = rest.iter().take_while(|(input, _)| {
            tokens += input.len();
            tokens <= TOKENS
        });
        let (batch, behind) = rest.split_at(batch.count().max(1));
        let sequences: Vec<&[u32]> = batch.iter().map(|(input, _)| *input).collect();
        let places = batch.iter().enumerate();
        let places: Vec<(usize, usize)> = places
            .flat_map(|(sequence, (_, pairs))| pairs.iter().map(move |&pair| (sequence, pair)))
            .collect();
        let continuations: Vec<Continuation<'_>> = places
            .iter()
            .map(|&(sequence, pair)| Continuation {
                sequence,
                tokens: &pairs[pair].continuation,
            })
            .collect();
        for (&(_, pair), likelihood) in places.iter().zip(model.likelihoods(&sequences, &continuations)?) {
            found[pair] = Some(likelihood);
        }
        progress(sequences.iter().map(|sequence| sequence.len()).sum());
        rest = behind;
    }
    let mut found = found.into_iter().flatten();
    Ok(questions
        .iter()
        .map(|pairs| found.by_ref().take(pairs.len()).collect())
        .collect())
}

/// Tokens that [`likelihoods`] lets a model read.
pub fn tokens_read(questions: &[Vec<Encoded>]) -> usize {
    let distinct: std::collections::HashSet<&[u32]> =
        questions.iter().flatten().map(|pair| &pair.input[..]).collect();
    distinct.iter().map(|input| input.len()).sum()
}
