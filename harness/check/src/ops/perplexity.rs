use aqlm_reference::llama::token_losses;
use ndarray::{Array1, Array2, s};

use super::Prepared;
use super::model_forward::{reference, terms_in};
use crate::Comparison;
use crate::cases::{Case, LlamaData, Operation, VOCABULARY};
use crate::compare::{Against, Findings, repeated};
use crate::limits::Number;
use crate::subject::Subject;
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::Perplexity,
        number,
    }
}

fn losses(data: &LlamaData) -> Result<Vec<Array1<f64>>> {
    let last = data.x.dim().1 - 1;
    reference(data)?
        .iter()
        .zip(&data.tokens)
        .map(|(logits, tokens)| Ok(token_losses(logits.slice(s![..last, ..]), &tokens[1..])?))
        .collect()
}

/// A loss is -ln of the softmax; equal logits make it ln of the vocabulary; a constant added to all changes
/// nothing.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    let check = against(Number::F64);
    let logits = reference(&data)?.swap_remove(0);
    let last = problem.tokens - 1;
    let (logits, targets) = (logits.slice(s![..last, ..]), &data.tokens[0][1..]);
    let found = token_losses(logits, targets)?;
    let definition: Array1<f64> = logits
        .outer_iter()
        .zip(targets)
        .map(|(row, &target)| {
            let sum: f64 = row.iter().rev().map(|l| l.exp()).sum();
            -(row[target as usize].exp() / sum).ln()
        })
        .collect();
    let shifted = token_losses((&logits + 100.0).view(), targets)?;
    let equal = token_losses(Array2::from_elem((last, VOCABULARY), 3.0).view(), targets)?;
    let uniform = Array1::from_elem(last, (VOCABULARY as f64).ln());
    // a constant of 100 takes seven bits of a logit of unit size
    let terms = 2 * VOCABULARY + 128;
    Ok(vec![
        check.nmse(terms, "definition", &found, &definition)?,
        check.nmse(terms, "a constant added to all logits", &shifted, &found)?,
        check.nmse(terms, "equal logits", &equal, &uniform)?,
    ])
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    let expected = losses(&data)?;
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (found, same) = repeated(check, "losses", || subject.perplexity(&data))?;
        // in every arithmetic the sum over the vocabulary is of f32 at least
        let terms = terms_in(subject.number(), &problem) + VOCABULARY;
        Ok(Findings {
            comparisons: vec![
                same,
                check.nmse(terms, "losses", found.iter().flatten(), expected.iter().flatten())?,
            ],
            excess: None,
        })
    }))
}
