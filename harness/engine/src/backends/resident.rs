use aqlm_vocabulary::AqlmError;
use ndarray::{Array1, Array2};

use crate::ops::{BlockOps, ModelOps, ResidentModel, Session, Weights};
use aqlm_formats::Result;

/// The operations beyond [`BlockOps`] that a machine needs to generate token by token.
pub(super) trait StepOps: BlockOps {
    /// keys and values of one block for the tokens seen so far
    type Cache;

    /// An empty cache for one block.
    fn new_cache(&self, block: &Self::Block) -> Self::Cache;

    /// Passes one token through all blocks: takes its embedding row, returns its logits `[vocab]`.
    fn decode_step(
        &self,
        blocks: &[Self::Block],
        head: &Self::Head,
        caches: &mut [Self::Cache],
        embedding_row: &Array1<f32>,
        position: usize,
    ) -> Result<Array1<f64>>;
}

/// All blocks of a model in host memory.
struct HostModel<'m, M: StepOps> {
    machine: &'m M,
    embedding: Array2<f32>,
    blocks: Vec<M::Block>,
    head: M::Head,
}

impl<M: StepOps> ModelOps for M {
    fn model<'m>(
        &'m self,
        weights: &dyn Weights,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Box<dyn ResidentModel + 'm>> {
        let mut blocks = Vec::with_capacity(self.config().blocks.len());
        for index in 0..self.config().blocks.len() {
            blocks.push(self.load_block(index, &weights.block(index)?)?);
            progress(index);
        }
        Ok(Box::new(HostModel {
            machine: self,
            embedding: weights.embedding()?,
            blocks,
            head: self.load_head(&weights.final_norm()?, &weights.lm_head()?)?,
        }))
    }
}

impl<M: StepOps> HostModel<'_, M> {
    fn hidden(&self, sequences: &[&[u32]]) -> Result<M::Hidden> {
        let mut hidden = self.machine.embed(&self.embedding, sequences)?;
        for block in &self.blocks {
            hidden = self.machine.block_forward(block, &hidden)?;
        }
        Ok(hidden)
    }
}

impl<M: StepOps> ResidentModel for HostModel<'_, M> {
    fn losses(&mut self, sequences: &[&[u32]]) -> Result<Vec<Array1<f64>>> {
        let hidden = self.hidden(sequences)?;
        self.machine.token_losses(&self.head, &hidden, sequences)
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Array2<f64>> {
        let hidden = self.hidden(&[tokens])?;
        self.machine.logits(&self.head, &hidden, 0)
    }

    fn session(&mut self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(HostSession {
            caches: self
                .blocks
                .iter()
                .map(|block| self.machine.new_cache(block))
                .collect(),
            model: self,
            position: 0,
        }))
    }
}

/// A model and the text that it has read so far.
struct HostSession<'s, 'm, M: StepOps> {
    model: &'s HostModel<'m, M>,
    caches: Vec<M::Cache>,
    position: usize,
}

impl<M: StepOps> Session for HostSession<'_, '_, M> {
    fn prompt(&mut self, tokens: &[u32]) -> Result<Array1<f64>> {
        let mut logits = Array1::zeros(0);
        for &token in tokens {
            logits = self.next(token)?;
        }
        Ok(logits)
    }

    fn next(&mut self, token: u32) -> Result<Array1<f64>> {
        let model = self.model;
        let vocab_size = model.embedding.nrows();
        if token as usize >= vocab_size {
            return Err(AqlmError::TokenOutOfRange {
                token,
                position: self.position,
                vocab_size,
            }
            .into());
        }
        let row = model.embedding.row(token as usize).to_owned();
        let logits =
            model
                .machine
                .decode_step(&model.blocks, &model.head, &mut self.caches, &row, self.position)?;
        self.position += 1;
        Ok(logits)
    }

    fn greedy(&mut self, _token: u32, _count: usize, _each: &mut dyn FnMut(u32) -> bool) -> Result<bool> {
        Ok(false)
    }
}
