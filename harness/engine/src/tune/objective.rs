use std::ops::Range;

use aqlm_vocabulary::{CodeChange, Rates, Target};

use super::teacher::{Said, Teacher};
use crate::ops::{BlockTraining as _, ModelTraining as _, PartSums, TrainOps, joined};
use crate::ranks::{Ranks, sum_in_order};
use aqlm_formats::Result;

/// The trained parameters and their loss over sequences, which are identified by index. Methods fail with
/// errors of the machine.
pub(super) trait Objective {
    /// Number of units that the mean loss over these sequences is a mean over.
    fn count(&self, sequences: &[usize]) -> f64;

    /// Sum of the losses of these sequences.
    fn losses(&mut self, sequences: &[usize]) -> Result<f64>;

    /// [`Objective::losses`]; also adds the gradients of the mean loss.
    fn accumulate(&mut self, batch: &[usize]) -> Result<f64>;

    /// One step along the accumulated gradients.
    fn step(&mut self, rates: Rates) -> Result<CodeChange>;
}

/// Sums of gradients and the loss of each sequence.
struct Sums<'a, T> {
    tuner: &'a mut T,
    losses: Vec<f64>,
}

impl<T: PartSums> PartSums for Sums<'_, T> {
    fn take(&mut self) -> Vec<f64> {
        let mut sums = self.losses.take();
        sums.extend(self.tuner.take());
        sums
    }

    fn add(&mut self, sums: &[f64]) -> aqlm_vocabulary::Result<()> {
        let (losses, gradients) = sums.split_at(self.losses.len().min(sums.len()));
        self.losses.add(losses)?;
        self.tuner.add(gradients)
    }
}

/// Adds the gradients of sequences of these lengths part by part. `add` adds the gradients of a range of
/// sequences and returns their losses. Returns all losses.
fn gather<T: PartSums>(
    ranks: &dyn Ranks,
    tuner: &mut T,
    lengths: &[usize],
    parts: &[Range<usize>],
    mut add: impl FnMut(&mut T, Range<usize>) -> Result<Vec<f64>>,
) -> Result<Vec<f64>> {
    let mut sums = Sums {
        tuner,
        losses: vec![0.0; lengths.len()],
    };
    sum_in_order(ranks, &mut sums, parts.len(), &mut |sums, range| {
        let range = joined(parts, range);
        let losses = add(sums.tuner, range.clone())?;
        sums.losses[range].copy_from_slice(&losses);
        Ok(())
    })?;
    Ok(sums.losses)
}

/// The squared error of a block's outputs.
pub(super) struct SquaredError<'a, M: TrainOps> {
    pub(super) machine: &'a M,
    pub(super) tuner: M::BlockTuner,
    pub(super) inputs: &'a M::Hidden,
    pub(super) targets: &'a M::Hidden,
    pub(super) ranks: &'a dyn Ranks,
}

impl<M: TrainOps> SquaredError<'_, M> {
    /// Number of tokens of each of these sequences.
    fn lengths(&self, sequences: &[usize]) -> Vec<usize> {
        let lengths = self.machine.lengths(self.targets);
        sequences.iter().map(|&sequence| lengths[sequence]).collect()
    }
}

impl<M: TrainOps> Objective for SquaredError<'_, M> {
    /// Number of output elements.
    fn count(&self, sequences: &[usize]) -> f64 {
        let tokens: usize = self.lengths(sequences).iter().sum();
        (tokens * self.machine.config().hidden_size) as f64
    }

    fn losses(&mut self, sequences: &[usize]) -> Result<f64> {
        let parts = self.machine.parts(&self.lengths(sequences));
        let mut losses = vec![0.0; sequences.len()];
        let (machine, tuner) = (self.machine, &self.tuner);
        sum_in_order(self.ranks, &mut losses, parts.len(), &mut |losses, range| {
            let range = joined(&parts, range);
            let part = &sequences[range.clone()];
            let found = machine.block_losses(tuner, self.inputs, self.targets, part)?;
            losses[range].copy_from_slice(&found);
            Ok(())
        })?;
        Ok(losses.iter().sum())
    }

    fn accumulate(&mut self, batch: &[usize]) -> Result<f64> {
        let lengths = self.lengths(batch);
        let parts = self.machine.parts(&lengths);
        let scale = 1.0 / self.count(batch);
        let (machine, inputs, targets) = (self.machine, self.inputs, self.targets);
        let losses = gather(self.ranks, &mut self.tuner, &lengths, &parts, |tuner, range| {
            machine.block_accumulate(tuner, inputs, targets, &batch[range], scale)
        })?;
        Ok(losses.iter().sum())
    }

    fn step(&mut self, rates: Rates) -> Result<CodeChange> {
        self.tuner.step(rates.lr);
        Ok(CodeChange::default())
    }
}

/// A model's loss on next-token distributions, from a teacher or from the text itself.
pub(super) struct NextTokens<'a, M: TrainOps> {
    pub(super) machine: &'a M,
    pub(super) tuner: M::ModelTuner,
    pub(super) teacher: &'a Teacher<M>,
    pub(super) sequences: &'a [&'a [u32]],
    /// maximum number of sequences whose targets are in memory together
    pub(super) batch: usize,
    pub(super) ranks: &'a dyn Ranks,
}

impl<'a, M: TrainOps> NextTokens<'a, M> {
    /// Token ids of these sequences.
    pub(super) fn tokens(&self, sequences: &[usize]) -> Vec<&'a [u32]> {
        sequences.iter().map(|&index| self.sequences[index]).collect()
    }

    /// Sum of the losses of some of these texts, whose targets a teacher gives.
    fn losses_on(&mut self, teacher: &Teacher<M>, texts: &[&[u32]], indices: &[usize]) -> Result<f64> {
        let mut total = 0.0;
        let (machine, tuner) = (self.machine, &mut self.tuner);
        for batch in indices.chunks(self.batch) {
            let tokens: Vec<&[u32]> = batch.iter().map(|&index| texts[index]).collect();
            let parts = machine.parts(&lengths(&tokens));
            let mut losses = vec![0.0; batch.len()];
            sum_in_order(self.ranks, &mut losses, parts.len(), &mut |losses, range| {
                let range = joined(&parts, range);
                let (part, tokens) = (&batch[range.clone()], &tokens[range.clone()]);
                let said = teacher.says(machine, part, tokens)?;
                let targets: Vec<Target<'_>> = said.iter().map(|said: &Said| teacher.target(said)).collect();
                losses[range].copy_from_slice(&tuner.losses(tokens, &targets)?);
                Ok(())
            })?;
            total += losses.iter().sum::<f64>();
        }
        Ok(total)
    }

    /// Mean loss over the positions of texts, whose targets a teacher gives. Trains nothing.
    pub(super) fn mean_loss(&mut self, teacher: &Teacher<M>, texts: &[&[u32]]) -> Result<f64> {
        let indices: Vec<usize> = (0..texts.len()).collect();
        let positions = teacher.positions(texts.iter().map(|tokens| tokens.len()));
        Ok(self.losses_on(teacher, texts, &indices)? / positions)
    }
}

impl<M: TrainOps> Objective for NextTokens<'_, M> {
    /// Number of positions with a loss.
    fn count(&self, sequences: &[usize]) -> f64 {
        let tokens = sequences.iter().map(|&index| self.sequences[index].len());
        self.teacher.positions(tokens)
    }

    fn losses(&mut self, sequences: &[usize]) -> Result<f64> {
        self.losses_on(self.teacher, self.sequences, sequences)
    }

    fn accumulate(&mut self, batch: &[usize]) -> Result<f64> {
        let scale = 1.0 / self.count(batch);
        let tokens = self.tokens(batch);
        let lengths = lengths(&tokens);
        let (machine, teacher) = (self.machine, self.teacher);
        let parts = machine.parts(&lengths);
        let losses = gather(self.ranks, &mut self.tuner, &lengths, &parts, |tuner, range| {
            let (part, tokens) = (&batch[range.clone()], &tokens[range]);
            let said = teacher.says(machine, part, tokens)?;
            let targets: Vec<Target<'_>> = said.iter().map(|said: &Said| teacher.target(said)).collect();
            Ok(tuner.accumulate(tokens, &targets, scale, &mut |_, _, _| ())?)
        })?;
        Ok(losses.iter().sum())
    }

    fn step(&mut self, rates: Rates) -> Result<CodeChange> {
        Ok(self.tuner.step(rates)?)
    }
}

/// Number of tokens of each of these sequences.
fn lengths(sequences: &[&[u32]]) -> Vec<usize> {
    sequences.iter().map(|tokens| tokens.len()).collect()
}
