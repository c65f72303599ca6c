use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use aqlm_vocabulary::AqlmError;
use ndarray::{Array1, Array2, s};

use super::shared_beginnings::pieces;
use crate::likelihood::{Continuation, Likelihood};
use crate::ops::{BlockOps, ModelOps, ResidentModel, Session, Weights, WriteText};
use aqlm_formats::{Error, Result};

/// Logits that [`ResidentModel::likelihoods`] holds at once.
const LOGITS: usize = 1 << 24;

/// The operations beyond [`BlockOps`] that a machine needs to read beginnings once and to generate token by
/// token.
pub(super) trait StepOps: BlockOps<Block: Sync, Head: Sync> + Sync {
    /// keys and values of one block for the tokens seen so far
    type Cache;

    /// The block's output for sequences of which some continue others: `stems` names for each the sequence
    /// before it that it continues, which continues none itself. A beginning that several sequences share is
    /// one sequence then, and computed once.
    fn block_forward_continued(
        &self,
        block: &Self::Block,
        hidden: &Self::Hidden,
        stems: &[Option<usize>],
    ) -> Result<Self::Hidden>;

    /// An empty cache for one block.
    fn new_cache(&self, block: &Self::Block) -> Self::Cache;

    /// Passes one token through all blocks: takes its row of the embedding, not scaled yet, and returns its
    /// logits `[vocab]`.
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

    fn likelihoods(
        &mut self,
        sequences: &[&[u32]],
        continuations: &[Continuation<'_>],
    ) -> Result<Vec<Likelihood>> {
        let mut kept = vec![1; sequences.len()];
        for continuation in continuations {
            let kept = &mut kept[continuation.sequence];
            *kept = continuation.tokens.len().max(*kept);
        }
        let cut = pieces(sequences, &kept);
        let mut hidden = self.machine.embed(&self.embedding, &cut.tokens)?;
        for block in &self.blocks {
            hidden = self.machine.block_forward_continued(block, &hidden, &cut.stems)?;
        }
        let rows_at_once = (LOGITS / self.embedding.nrows().max(1)).max(1);
        let mut result = Vec::with_capacity(continuations.len());
        let mut rest = continuations;
        while !rest.is_empty() {
            let mut places = Vec::new();
            let mut rows = 0;
            for continuation in rest {
                let end = cut.ends[continuation.sequence];
                let positions = continuation.positions(cut.tokens[end].len())?;
                rows += positions.len();
                if !places.is_empty() && rows > rows_at_once {
                    break;
                }
                places.push((end, positions));
            }
            let (batch, behind) = rest.split_at(places.len());
            let logits = self.machine.logits_at(&self.head, &hidden, &places)?;
            let mut from = 0;
            for continuation in batch {
                let rows = logits.slice(s![from..from + continuation.tokens.len(), ..]);
                result.push(Likelihood::of(&rows, continuation.tokens)?);
                from += continuation.tokens.len();
            }
            rest = behind;
        }
        Ok(result)
    }

    fn session(&mut self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(HostSession::new(self)))
    }

    /// Each thread writes a text of its own. Inside a text the operations then have one thread, which is
    /// faster than dividing rows of a few hundred numbers.
    fn write_texts(&mut self, count: usize, write: &WriteText<'_>) -> Result<Vec<Vec<u32>>> {
        let model = &*self;
        let next = AtomicUsize::new(0);
        let written = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..rayon::current_num_threads().min(count) {
                scope.spawn(|| {
                    loop {
                        let text = next.fetch_add(1, Ordering::Relaxed);
                        if text >= count {
                            break;
                        }
                        let result = alone(|| write(text, &mut HostSession::new(model)));
                        let failed = result.is_err();
                        written
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .insert(text, result);
                        if failed {
                            next.store(count, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
        written.into_values().collect()
    }
}

/// A model and the text that it has read so far.
struct HostSession<'s, 'm, M: StepOps> {
    model: &'s HostModel<'m, M>,
    caches: Vec<M::Cache>,
    position: usize,
}

impl<'s, 'm, M: StepOps> HostSession<'s, 'm, M> {
    /// An empty text.
    fn new(model: &'s HostModel<'m, M>) -> Self {
        Self {
            caches: model
                .blocks
                .iter()
                .map(|block| model.machine.new_cache(block))
                .collect(),
            model,
            position: 0,
        }
    }
}

/// Runs a job whose parallel loops get one thread.
fn alone<R: Send>(job: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.map_err(|error| Error::Internal(format!("cannot start a thread: {error}")))?;
    pool.install(job)
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
