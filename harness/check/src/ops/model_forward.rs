use aqlm_reference::llama::{KvCacheLayer, Rotary, block_decode_step, embed, logits, model_forward};
use ndarray::{Array2, Axis};

use super::Prepared;
use crate::Comparison;
use crate::cases::{BLOCKS, Case, LlamaCase, LlamaData, Operation};
use crate::compare::{Against, Findings, repeated};
use crate::limits::Number;
use crate::subject::Subject;
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::ModelForward,
        number,
    }
}

/// Sums along the longest path: all blocks, the last norm and the head.
pub(super) fn terms(problem: &LlamaCase) -> usize {
    BLOCKS * problem.terms() + 2 * problem.hidden
}

/// What n counts in the limit of a backend of this arithmetic.
pub(super) fn terms_in(number: Number, problem: &LlamaCase) -> usize {
    match number {
        // the embedding, the last norm's weight and result, and the head
        Number::F16 | Number::Bf16 => BLOCKS * problem.roundings() + 4,
        Number::F32 | Number::F64 => terms(problem),
    }
}

/// Logits of all sequences.
pub(super) fn reference(data: &LlamaData) -> Result<Vec<Array2<f64>>> {
    let model = data.model();
    data.tokens
        .iter()
        .map(|tokens| Ok(model_forward(&model, tokens)?))
        .collect()
}

/// Token by token with caches is the same as all at once.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    let model = data.model();
    let whole = reference(&data)?.swap_remove(0);
    let rotary = Rotary::new(data.config.attention(), problem.tokens);
    let mut caches = vec![KvCacheLayer::new(data.config.attention(), problem.tokens); BLOCKS];
    let mut steps = Array2::zeros(whole.dim());
    let embedded = embed(model.embedding.view(), &data.tokens[0])?;
    for (position, (x, mut row)) in embedded.outer_iter().zip(steps.outer_iter_mut()).enumerate() {
        let mut x = x.to_owned();
        for (block, cache) in model.blocks.iter().zip(&mut caches) {
            x = block_decode_step(block, &rotary, cache, x.view(), position);
        }
        let x = x.insert_axis(Axis(0));
        row.assign(
            &logits(
                data.config.final_norm,
                &model.norm,
                model.lm_head.view(),
                x.view(),
            )
            .row(0),
        );
    }
    Ok(vec![against(Number::F64).nmse(
        2 * terms(&problem),
        "token by token",
        &steps,
        &whole,
    )?])
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    let expected = reference(&data)?;
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let ((whole, steps), same) = repeated(check, "logits", || subject.model_forward(&data))?;
        let terms = terms_in(subject.number(), &problem);
        Ok(Findings {
            comparisons: vec![
                same,
                check.nmse(terms, "logits", whole.iter().flatten(), expected.iter().flatten())?,
                check.nmse(terms, "logits token by token", &steps, &expected[0])?,
            ],
            excess: None,
        })
    }))
}
