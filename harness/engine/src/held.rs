use std::ops::Range;

use aqlm_vocabulary::AqlmError;

use crate::ops::{BlockOps, joined};
use crate::ranks::{Ranks, gather, own_parts};
use aqlm_formats::{Error, Result};

/// The calibration sequences whose hidden states a rank holds.
///
/// A block's tuning draws its batches from all sequences, so every rank holds all. Without tuning a rank
/// holds those of its own leaves, and passes only these through the blocks.
pub(crate) struct Held {
    /// tokens of every sequence of the run
    lengths: Vec<usize>,
    /// the parts in which training sequences are added to Hessians
    parts: Vec<Range<usize>>,
    /// first the own training sequences, with those that share a part with them, then the own others
    own: [Range<usize>; 2],
    /// whether this rank does not hold all
    spread: bool,
}

impl Held {
    /// All of these sequences. The first `training` of them are for Hessians.
    pub(crate) fn all<M: BlockOps>(machine: &M, lengths: Vec<usize>, training: Range<usize>) -> Self {
        let parts = machine.parts(&lengths[training.clone()]);
        let shifted = |part: Range<usize>| training.start + part.start..training.start + part.end;
        Self {
            parts: parts.into_iter().map(shifted).collect(),
            own: [0..lengths.len(), 0..0],
            lengths,
            spread: false,
        }
    }

    /// This rank's share of sequences of one length. Borders between ranks are borders between parts, so that
    /// a sequence passes through the blocks together with the same others on any number of ranks.
    pub(crate) fn share<M: BlockOps>(
        machine: &M,
        lengths: Vec<usize>,
        training: usize,
        ranks: &dyn Ranks,
    ) -> Self {
        let equal = lengths.windows(2).all(|pair| pair[0] == pair[1]);
        let mut held = Self::all(machine, lengths, 0..training);
        if ranks.size() == 1 || !equal {
            return held;
        }
        // Sequences of equal length: these begin with the parts of the training sequences, but for the end of
        // the last.
        let together = machine.parts(&held.lengths);
        let (trained, all) = (held.parts.len(), together.len());
        let own = own_parts(trained, ranks);
        let others = all - trained;
        let (rank, size) = (ranks.rank(), ranks.size());
        let rest = trained + others * rank / size..trained + others * (rank + 1) / size;
        held.own = [joined(&together, own), joined(&together, rest)];
        if held.own.iter().all(Range::is_empty) {
            // Nothing is for this rank. It computes the first part, too, so that no backend is given nothing.
            held.own[0] = joined(&together, 0..together.len().min(1));
        }
        held.spread = true;
        held
    }

    /// The held ones among things of all sequences.
    pub(crate) fn of<T: Copy>(&self, all: &[T]) -> Vec<T> {
        let own = self.own.clone().into_iter();
        own.flat_map(|range| all[range].iter().copied()).collect()
    }

    /// The parts in which training sequences are added to Hessians.
    pub(crate) fn parts(&self) -> &[Range<usize>] {
        &self.parts
    }

    /// Where own training sequences are among the held ones.
    pub(crate) fn place(&self, training: Range<usize>) -> Range<usize> {
        let first = self.own[0].start;
        training.start - first..training.end - first
    }

    /// An error about the hidden states of held sequences, as one about those of the run.
    pub(crate) fn named(&self, error: Error) -> Error {
        let Error::Aqlm(AqlmError::NotFinite {
            what,
            mut index,
            value,
        }) = error
        else {
            return error;
        };
        if let Some(sequence) = index.first_mut().filter(|_| self.spread) {
            let [first, rest] = &self.own;
            *sequence = match sequence.checked_sub(first.len()) {
                None => first.start + *sequence,
                Some(beyond) => rest.start + beyond,
            };
        }
        AqlmError::NotFinite { what, index, value }.into()
    }

    /// Numbers of every sequence, on every rank, from those of the held ones.
    pub(crate) fn gathered(&self, own: Vec<f64>, ranks: &dyn Ranks) -> Result<Vec<f64>> {
        if !self.spread {
            return Ok(own);
        }
        let mut all = vec![0.0; self.lengths.len()];
        let places = self.own.clone().into_iter().flatten();
        // as bits, because JSON has no numbers that are not finite
        let own: Vec<(usize, u64)> = places.zip(own.into_iter().map(f64::to_bits)).collect();
        for (place, bits) in gather(ranks, own)?.into_iter().flatten() {
            all[place] = f64::from_bits(bits);
        }
        Ok(all)
    }

    /// The largest of the ranks' numbers, on every rank.
    pub(crate) fn largest(&self, own: f64, ranks: &dyn Ranks) -> Result<f64> {
        if !self.spread {
            return Ok(own);
        }
        Ok(gather(ranks, own)?.into_iter().fold(0.0, f64::max))
    }
}
