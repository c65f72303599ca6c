use aqlm_engine::ops::ModelOps;
use aqlm_optimized::cuda::CudaError;
use aqlm_optimized::cuda::llama::Model;
use aqlm_reference::llama::{KvCacheLayer, Rotary, block_decode_step, embed, logits, model_forward};
use aqlm_vocabulary::AqlmError;
use ndarray::{Array2, Axis};
use proptest::strategy::BoxedStrategy;

use super::llama::{self, Llama};
use super::{CaseData as _, Op};
use crate::Comparison;
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Kind, LlamaData, Problem, llama as cases, strategy};
use crate::compare::{Against, Findings};
use crate::subject::Subject;
use aqlm_formats::Result;

/// Tokens to logits, [tokens, vocabulary] per sequence; also those of the first sequence computed token by
/// token.
pub(crate) struct ModelForward;

impl Op for ModelForward {
    type Data = Llama;
    type Answer = Logits;
    type Expected = Logits;

    const KIND: Kind = Kind::Llama;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::llama(70)
    }

    fn ways(machine: &Subject, _data: &Llama) -> Vec<Subject> {
        llama::rungs(machine)
    }

    fn run(subject: &Subject, case: &Llama) -> Result<Logits> {
        let data = &case.data;
        match subject {
            Subject::Reference => Ok(Logits {
                whole: whole(data)?,
                steps: steps(data)?,
            }),
            Subject::Cpu(_) => on_host(&case.on_cpu()?, data),
            Subject::Cuda(cuda) => {
                let mut model = case.on_gpu(cuda).map_err(AqlmError::from)?;
                let whole = data
                    .tokens
                    .iter()
                    .map(|tokens| Ok(on_gpu(&mut model, tokens, false).map_err(AqlmError::from)?))
                    .collect::<Result<Vec<_>>>()?;
                let steps = on_gpu(&mut model, &data.tokens[0], true).map_err(AqlmError::from)?;
                Ok(Logits { whole, steps })
            }
        }
    }

    /// Token by token with caches gives the same logits as all tokens at once.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let Logits { whole, steps } = Self::run(&Subject::Reference, &Llama::new(case)?)?;
        Ok(vec![check.nmse("token by token", &steps, &whole[0])?])
    }

    fn expected(case: &Llama) -> Result<Logits> {
        Self::run(&Subject::Reference, case)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        case: &Llama,
        expected: &Logits,
        found: &Logits,
    ) -> Result<Findings> {
        let first = &expected.whole[0];
        let shape = [case.problem.sequences, first.nrows(), first.ncols()];
        let logits = check.nmse(
            "logits",
            found.whole.iter().flatten(),
            expected.whole.iter().flatten(),
        )?;
        let steps = check.nmse("logits token by token", &found.steps, first)?;
        Ok(vec![logits.shaped(&shape), steps.shaped(&shape[1..])].into())
    }

    fn breakages() -> Vec<Breakage<Llama, Logits>> {
        vec![
            Breakage::of_answer("a NaN", |found, _, _| found.whole[0][[0, 0]] = f64::NAN),
            Breakage::of_answer("a stale cache", |found, _, _| {
                let first = found.steps.row(0).to_owned();
                let last = found.steps.nrows() - 1;
                found.steps.row_mut(last).assign(&first);
            }),
            Breakage::of_answer("a result off by a hundredth", |found, _, _| {
                breakage::inaccurate(&mut found.whole[0]);
                breakage::inaccurate(&mut found.whole[0]);
            }),
        ]
    }
}

/// Logits of all sequences, and those of the first one computed token by token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Logits {
    whole: Vec<Array2<f64>>,
    steps: Array2<f64>,
}

/// Logits of all sequences by the reference.
pub(super) fn whole(data: &LlamaData) -> Result<Vec<Array2<f64>>> {
    let model = data.model();
    data.tokens
        .iter()
        .map(|tokens| Ok(model_forward(&model, tokens)?))
        .collect()
}

/// Logits of the first sequence by the reference, token by token with caches.
fn steps(data: &LlamaData) -> Result<Array2<f64>> {
    let (model, tokens) = (data.model(), &data.tokens[0]);
    let rotary = Rotary::of_model(&data.config, tokens.len());
    let caches = data.config.blocks.iter();
    let caches = caches.map(|block| KvCacheLayer::new(&block.attention, tokens.len()));
    let mut caches: Vec<KvCacheLayer> = caches.collect();
    let mut steps = Array2::zeros((tokens.len(), data.lm_head.nrows()));
    let embedded = embed(model.embedding.view(), tokens, data.config.embedding_scale)?;
    for (position, (x, mut row)) in embedded.outer_iter().zip(steps.outer_iter_mut()).enumerate() {
        let mut x = x.to_owned();
        for (block, cache) in model.blocks.iter().zip(&mut caches) {
            x = block_decode_step(block, &rotary, cache, x.view(), position);
        }
        let x = x.insert_axis(Axis(0));
        let logits = logits(&data.config, &model.norm, model.lm_head.view(), x.view());
        row.assign(&logits.row(0));
    }
    Ok(steps)
}

/// Logits of all sequences, and of the first one again, token by token with the cache.
fn on_host(machine: &impl ModelOps, data: &LlamaData) -> Result<Logits> {
    let mut model = machine.model(data, &mut |_| ())?;
    let whole = data
        .tokens
        .iter()
        .map(|tokens| model.logits(tokens))
        .collect::<Result<Vec<_>>>()?;
    let mut steps = Array2::zeros((data.tokens[0].len(), data.lm_head.nrows()));
    let mut session = model.session()?;
    for (&token, mut row) in data.tokens[0].iter().zip(steps.outer_iter_mut()) {
        row.assign(&session.next(token)?);
    }
    Ok(Logits { whole, steps })
}

/// The logits of a sequence, [tokens, vocab]; NaN where the machine wrote none.
fn on_gpu(
    model: &mut Model<'_>,
    tokens: &[u32],
    one_by_one: bool,
) -> std::result::Result<Array2<f64>, CudaError> {
    model.reset();
    let vocab = model.arch().vocab_size;
    let mut logits = Vec::with_capacity(tokens.len() * vocab);
    if one_by_one {
        for &token in tokens {
            logits.extend(model.step(token)?);
        }
    } else {
        logits = model.forward(tokens)?;
    }
    Ok(Array2::from_shape_fn((tokens.len(), vocab), |(t, token)| {
        logits
            .get(t * vocab + token)
            .map_or(f64::NAN, |&logit| f64::from(logit))
    }))
}
