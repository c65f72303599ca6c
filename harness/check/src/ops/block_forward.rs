use aqlm_reference::llama::{Block, KvCacheLayer, Rotary, block_decode_step, block_forward};
use ndarray::{Array2, Axis, s};

use super::Prepared;
use crate::Comparison;
use crate::cases::{Case, LlamaData, Operation};
use crate::compare::{Against, Findings, repeated};
use crate::limits::Number;
use crate::subject::Subject;
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::BlockForward,
        number,
    }
}

/// The first block's output for every sequence.
pub(super) fn reference(data: &LlamaData) -> Vec<Array2<f64>> {
    let (block, rotary) = parts(data);
    let x = data.x.mapv(f64::from);
    x.outer_iter()
        .map(|x| block_forward(&block, &rotary, x))
        .collect()
}

/// The first block and its tables.
pub(super) fn parts(data: &LlamaData) -> (Block, Rotary) {
    let block = data.block(0);
    let rotary = Rotary::new(&block.spec().attention, data.x.dim().1);
    (block, rotary)
}

/// A position sees no later one, and token by token with a cache is the same as all at once.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    let check = against(Number::F64);
    let (block, rotary) = parts(&data);
    let whole = reference(&data);
    let x = data.x.index_axis(Axis(0), 0).mapv(f64::from);
    let half = problem.tokens.div_ceil(2);
    let part = block_forward(&block, &rotary, x.slice(s![..half, ..]));
    let mut cache = KvCacheLayer::new(&block.spec().attention, problem.tokens);
    let mut steps = Array2::zeros(x.dim());
    for (position, (x, mut y)) in x.outer_iter().zip(steps.outer_iter_mut()).enumerate() {
        y.assign(&block_decode_step(&block, &rotary, &mut cache, x, position));
    }
    let terms = 2 * problem.terms();
    Ok(vec![
        check.nmse(terms, "first half alone", &part, whole[0].slice(s![..half, ..]))?,
        check.nmse(terms, "token by token", &steps, &whole[0])?,
    ])
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    let expected: Vec<f64> = reference(&data).into_iter().flatten().collect();
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (y, same) = repeated(check, "y", || subject.block_forward(&data))?;
        let terms = match subject.number() {
            Number::F16 | Number::Bf16 => problem.roundings(),
            Number::F32 | Number::F64 => problem.terms(),
        };
        Ok(Findings {
            comparisons: vec![same, check.nmse(terms, "y", &y, &expected)?],
            excess: None,
        })
    }))
}
