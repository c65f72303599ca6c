//! Logits of a whole text, one window at a time, so that memory never holds more than one window's logits.

use ndarray::Array2;

use crate::backend_kind::BackendKind;
use crate::backends::OnMachine;
use crate::ops::{BlockOps, TrainOps, Weights};
use aqlm_formats::Result;

/// Gives the logits of windows, in any order.
pub trait WindowLogits {
    /// Logits of one of the windows, [tokens, vocab].
    ///
    /// # Errors
    /// Those of the machine.
    fn logits(&mut self, window: usize) -> Result<Array2<f64>>;
}

/// What happens to the hidden states behind each block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BehindBlocks {
    /// nothing
    Exact,
    /// every number is rounded to bf16, the type in which most models are served
    RoundedToBf16,
}

/// A model about to read windows on a backend.
pub struct Reading<'a> {
    /// the machine
    pub backend: BackendKind,
    /// the model
    pub weights: &'a dyn Weights,
    /// token ids
    pub windows: &'a [&'a [u32]],
    /// what happens behind each block
    pub behind: BehindBlocks,
}

impl Reading<'_> {
    /// Reads all windows and calls `then` with their logits. Windows pass through one block before the next
    /// is loaded, and only the last hidden states of all windows stay. `progress` is called after each block.
    ///
    /// # Errors
    /// Unreadable tensors, token ids beyond the embedding, errors of the machine and of `then`.
    pub fn with_logits<R>(
        &self,
        progress: &mut dyn FnMut(usize),
        then: impl FnOnce(&mut dyn WindowLogits) -> Result<R>,
    ) -> Result<R> {
        let longest = self.windows.iter().map(|window| window.len()).max().unwrap_or(0);
        let job = Blocks {
            reading: self,
            progress,
            then,
        };
        self.backend.run(self.weights.config(), longest, job)
    }
}

/// [`Reading::with_logits`] as a job for a machine that has blocks.
struct Blocks<'a, F> {
    reading: &'a Reading<'a>,
    progress: &'a mut dyn FnMut(usize),
    then: F,
}

impl<R, F: FnOnce(&mut dyn WindowLogits) -> Result<R>> OnMachine for Blocks<'_, F> {
    type Output = R;

    fn on<M: TrainOps>(self, machine: M) -> Result<R> {
        let Reading {
            weights,
            windows,
            behind,
            ..
        } = *self.reading;
        let (head, hidden) = last_hidden(&machine, weights, windows, behind, self.progress)?;
        (self.then)(&mut LastHidden {
            machine: &machine,
            head,
            hidden,
        })
    }
}

/// Passes all windows through one block before the next is loaded. Returns the head, and the hidden states
/// behind the last block. `progress` is called after each block.
///
/// # Errors
/// Unreadable tensors, token ids beyond the embedding, errors of the machine.
pub fn last_hidden<M: BlockOps>(
    machine: &M,
    weights: &dyn Weights,
    windows: &[&[u32]],
    behind: BehindBlocks,
    progress: &mut dyn FnMut(usize),
) -> Result<(M::Head, M::Hidden)> {
    let mut hidden = machine.embed(&weights.embedding()?, windows)?;
    for index in 0..weights.config().blocks.len() {
        let block = machine.load_block(index, &weights.block(index)?)?;
        hidden = machine.block_forward(&block, &hidden)?;
        if behind == BehindBlocks::RoundedToBf16 {
            hidden = machine.rounded_to_bf16(hidden)?;
        }
        progress(index);
    }
    let head = machine.load_head(&weights.final_norm()?, &weights.lm_head()?)?;
    Ok((head, hidden))
}

/// Hidden states behind the last block.
struct LastHidden<'m, M: BlockOps> {
    machine: &'m M,
    head: M::Head,
    hidden: M::Hidden,
}

impl<M: BlockOps> WindowLogits for LastHidden<'_, M> {
    fn logits(&mut self, window: usize) -> Result<Array2<f64>> {
        self.machine.logits(&self.head, &self.hidden, window)
    }
}
