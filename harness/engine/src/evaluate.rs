//! Measuring models: token losses, logits, perplexity.
//!
//! A model is evaluated in one of two ways. *Streamed*: all windows pass through one block before the next
//! block is loaded, so memory holds one block and the hidden states. *Resident*: the whole model stays on the
//! machine and windows pass through it. The caller chooses.

use ndarray::{Array1, Array2};
use serde::Serialize;

use crate::backends::OnMachine;
use crate::ops::{BlockOps, ModelOps, TrainOps, Weights};
use crate::window_logits::{BehindBlocks, last_hidden};
use aqlm_formats::{Error, Result};

/// Perplexity over non-overlapping windows, as the GPTQ line of papers measures it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// exp(mean_nll)
    pub perplexity: f64,
    /// mean negative log-likelihood of a predicted token, in nats
    pub mean_nll: f64,
    /// predicted tokens: windows x (ctx - 1) where all are of equal length
    pub tokens: usize,
    /// windows
    pub windows: usize,
    /// tokens in the first window
    pub ctx: usize,
}

/// Losses, and optionally logits, of a model on windows.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// negative log-likelihood in nats of each token after the first, [tokens - 1] per window
    pub losses: Vec<Array1<f64>>,
    /// [tokens, vocab] per window; empty unless requested
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

/// Token losses of a model on windows, and its logits when `with_logits`, streamed.
///
/// `progress` is called after each block.
///
/// # Errors
/// `Error::Argument` without windows, or for a window of fewer than two tokens. Unreadable tensors, token ids
/// beyond the embedding, errors of the machine.
pub fn streamed<M: BlockOps>(
    machine: &M,
    weights: &dyn Weights,
    windows: &[&[u32]],
    with_logits: bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    check(windows)?;
    let (head, hidden) = last_hidden(machine, weights, windows, BehindBlocks::Exact, progress)?;
    let losses = machine.token_losses(&head, &hidden, windows)?;
    let wanted = if with_logits { windows.len() } else { 0 };
    let logits = (0..wanted)
        .map(|window| machine.logits(&head, &hidden, window))
        .collect::<Result<Vec<_>>>()?;
    Ok(Evaluation { losses, logits })
}

/// [`streamed`] as a job for a machine.
pub struct Streamed<'a> {
    /// the model
    pub weights: &'a dyn Weights,
    /// token ids
    pub windows: &'a [&'a [u32]],
    /// whether logits are wanted
    pub with_logits: bool,
    /// called after each block
    pub progress: &'a mut dyn FnMut(usize),
}

impl OnMachine for Streamed<'_> {
    type Output = Evaluation;

    fn on<M: TrainOps>(self, machine: M) -> Result<Evaluation> {
        streamed(
            &machine,
            self.weights,
            self.windows,
            self.with_logits,
            self.progress,
        )
    }
}

/// [`streamed`], but with a resident model. `progress` is called for each block that is loaded onto the
/// machine.
///
/// # Errors
/// As [`streamed`]; `Error::Device` when the machine's memory is too small.
pub fn resident(
    machine: &dyn ModelOps,
    weights: &dyn Weights,
    windows: &[&[u32]],
    with_logits: bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    check(windows)?;
    let mut model = machine.model(weights, progress)?;
    let losses = model.losses(windows)?;
    let wanted = if with_logits { windows } else { &[] };
    let logits = wanted
        .iter()
        .map(|window| model.logits(window))
        .collect::<Result<Vec<_>>>()?;
    Ok(Evaluation { losses, logits })
}

/// Rejects windows without a token to predict.
fn check(windows: &[&[u32]]) -> Result<()> {
    let shortest = windows.iter().map(|window| window.len()).min().unwrap_or(0);
    if shortest >= 2 {
        return Ok(());
    }
    Err(Error::argument(
        "evaluation windows",
        "at least one, of two tokens or more",
        format!("{} of {shortest}", windows.len()),
    ))
}
