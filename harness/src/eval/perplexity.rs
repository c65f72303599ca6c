use ndarray::Array2;
use serde::Serialize;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::Model;

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

/// The hidden states behind the last block for windows of equal length: [tokens, hidden] each.
///
/// Blocks are read one at a time, so a model needs the memory of one block plus that of the hidden states.
/// `progress` hears of every finished block.
///
/// # Errors
/// Unreadable tensors, token ids beyond the embedding, what the backend refuses.
pub fn hidden_after_blocks<B: Backend>(
    backend: &B,
    model: &Model,
    windows: &[&[u32]],
    progress: &mut dyn FnMut(usize),
) -> Result<B::Hidden> {
    let mut hidden = backend.embed(&model.embedding()?, windows)?;
    for index in 0..model.config().num_hidden_layers {
        let block = backend.load_block(&model.block(index)?)?;
        hidden = backend.block_forward(&block, &hidden)?;
        progress(index);
    }
    Ok(hidden)
}

/// Perplexity of a model on windows of equal length.
///
/// # Errors
/// As [`evaluate`].
pub fn perplexity<B: Backend>(
    backend: &B,
    model: &Model,
    windows: &[&[u32]],
    progress: &mut dyn FnMut(usize),
) -> Result<Perplexity> {
    Ok(evaluate(backend, model, windows, 0, progress)?.0)
}

/// Perplexity, and the logits [ctx, vocab] of the first `with_logits` windows.
///
/// # Errors
/// `Error::Invalid` without windows or with windows of fewer than two tokens; else as [`hidden_after_blocks`].
pub fn evaluate<B: Backend>(
    backend: &B,
    model: &Model,
    windows: &[&[u32]],
    with_logits: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<(Perplexity, Vec<Array2<f64>>)> {
    let ctx = windows.first().map_or(0, |window| window.len());
    if ctx < 2 {
        return Err(Error::invalid(
            "evaluation windows",
            "at least one of two tokens or more",
            format!("{} of {ctx}", windows.len()),
        ));
    }
    let hidden = hidden_after_blocks(backend, model, windows, progress)?;
    let head = backend.load_head(&model.final_norm()?, &model.lm_head()?)?;
    let losses = backend.token_losses(&head, &hidden, windows)?;
    let tokens: usize = losses.iter().map(ndarray::ArrayBase::len).sum();
    let mean_nll = losses.iter().map(|losses| losses.sum()).sum::<f64>() / tokens as f64;
    let logits = (0..with_logits.min(windows.len()))
        .map(|window| backend.logits(&head, &hidden, window))
        .collect::<Result<Vec<_>>>()?;
    Ok((
        Perplexity {
            perplexity: mean_nll.exp(),
            mean_nll,
            tokens,
            windows: windows.len(),
            ctx,
        },
        logits,
    ))
}
