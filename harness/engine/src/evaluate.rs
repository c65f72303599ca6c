//! Measuring models: token losses, logits, perplexity.

use aqlm_optimized::cpu::llama::token_losses;
use aqlm_optimized::cuda::llama::{Options, Rung};
use aqlm_vocabulary::AqlmError;
use ndarray::{Array1, Array2, ArrayView2, s};
use serde::Serialize;

use crate::backends::{Backend, cuda};
use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};

/// Perplexity over non-overlapping windows, as the GPTQ line of papers measures it (paper.md 2.5).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// exp(mean_nll)
    pub perplexity: f64,
    /// mean negative log-likelihood of a predicted token, in nats
    pub mean_nll: f64,
    /// predicted tokens: windows x (ctx - 1)
    pub tokens: usize,
    /// windows
    pub windows: usize,
    /// tokens in a window
    pub ctx: usize,
}

/// What a model makes of windows of equal length.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// negative log-likelihood in nats of each token after the first, [ctx - 1] a window
    pub losses: Vec<Array1<f64>>,
    /// [ctx, vocab] a window, where they were asked for
    pub logits: Vec<Array2<f64>>,
}

impl Evaluation {
    /// The mean over all predicted tokens of all windows, and its exponential.
    pub fn perplexity(&self) -> Perplexity {
        let tokens: usize = self.losses.iter().map(ndarray::ArrayBase::len).sum();
        let mean_nll = self.losses.iter().map(|losses| losses.sum()).sum::<f64>() / tokens as f64;
        Perplexity {
            perplexity: mean_nll.exp(),
            mean_nll,
            tokens,
            windows: self.losses.len(),
            ctx: self.losses.first().map_or(0, |losses| losses.len() + 1),
        }
    }
}

/// Token losses of a model on windows of equal length, and its logits when `with_logits`.
///
/// Blocks are read one at a time, so a model needs the memory of one block plus that of the hidden states.
/// `progress` hears of every finished block.
///
/// # Errors
/// `Error::Argument` without windows or with windows of fewer than two tokens; unreadable tensors, token ids
/// beyond the embedding, what the backend refuses.
pub fn evaluate<B: Backend>(
    backend: &B,
    model: &Model,
    windows: &[&[u32]],
    with_logits: bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    checked_ctx(windows)?;
    let mut hidden = backend.embed(&model.embedding()?, windows)?;
    for index in 0..model.config().blocks.len() {
        let block = backend.load_block(index, &model.block(index)?)?;
        hidden = backend.block_forward(&block, &hidden)?;
        progress(index);
    }
    let head = backend.load_head(&model.final_norm()?, &model.lm_head()?)?;
    let losses = backend.token_losses(&head, &hidden, windows)?;
    let wanted = if with_logits { windows.len() } else { 0 };
    let logits = (0..wanted)
        .map(|window| backend.logits(&head, &hidden, window))
        .collect::<Result<Vec<_>>>()?;
    Ok(Evaluation { losses, logits })
}

/// The same on a GPU: the whole model resides there, and windows go through it one after the other.
///
/// # Errors
/// As [`evaluate`]; `Error::Device` when there is no GPU or its memory is too small.
pub fn evaluate_on_gpu(
    model: &Model,
    windows: &[&[u32]],
    with_logits: bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    let ctx = checked_ctx(windows)?;
    let device = cuda::open(None)?;
    let options = Options {
        positions: ctx,
        prompts: true,
        rung: Rung::Joined,
    };
    let mut resident = cuda::load(&device, model, options, progress)?;
    let vocab = model.config().vocab_size;
    let mut evaluation = Evaluation {
        losses: Vec::with_capacity(windows.len()),
        logits: Vec::new(),
    };
    for window in windows {
        resident.reset();
        let logits = resident.forward(window).map_err(AqlmError::from)?;
        evaluation.losses.push(losses(&logits, vocab, window)?);
        if with_logits {
            let rows = Array2::from_shape_fn((ctx, vocab), |(t, token)| f64::from(logits[t * vocab + token]));
            evaluation.logits.push(rows);
        }
    }
    Ok(evaluation)
}

/// Negative log-likelihoods of each next token by logits [tokens, vocab].
///
/// # Errors
/// `Shape` when there are not so many logits, `TokenOutOfRange` for a token without one.
pub fn losses(logits: &[f32], vocab: usize, tokens: &[u32]) -> Result<Array1<f64>> {
    let predicting = tokens.len().saturating_sub(1);
    let shape = |_| AqlmError::Shape {
        what: "logits".into(),
        expected: vec![tokens.len(), vocab],
        found: vec![logits.len()],
    };
    let logits = ArrayView2::from_shape((tokens.len(), vocab), logits).map_err(shape)?;
    let logits = logits.slice(s![..predicting, ..]);
    Ok(token_losses(logits, &tokens[tokens.len() - predicting..])?)
}

/// Tokens in a window.
fn checked_ctx(windows: &[&[u32]]) -> Result<usize> {
    let ctx = windows.first().map_or(0, |window| window.len());
    if ctx < 2 {
        return Err(Error::argument(
            "evaluation windows",
            "at least one of two tokens or more",
            format!("{} of {ctx}", windows.len()),
        ));
    }
    Ok(ctx)
}
