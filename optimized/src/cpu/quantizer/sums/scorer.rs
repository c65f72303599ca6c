use std::ops::Range;

use super::Stage;

/// A candidate: a codeword of a step's first codebook and, if there are two, one of its second, for one
/// target.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu::quantizer) struct Sum {
    /// the target's offset plus the sum's score
    pub(in crate::cpu::quantizer) value: f32,
    /// index of the target
    pub(in crate::cpu::quantizer) at: usize,
    /// codeword of the first codebook
    pub(in crate::cpu::quantizer) first: usize,
    /// codeword of the second codebook; 0 without one
    pub(in crate::cpu::quantizer) second: usize,
}

/// Scores of all sums for many targets, and the best of them. A target is a vector v and a weight w; the
/// score of a sum c is w <c, c> + <v, c>. Buffers are reused from one step to the next.
#[derive(Default)]
pub(in crate::cpu::quantizer) struct Scorer {
    /// [targets, len]
    pub(in crate::cpu::quantizer) vectors: Vec<f32>,
    /// `[targets]`
    pub(in crate::cpu::quantizer) weights: Vec<f32>,
    /// added to the scores of a target, `[targets]`
    pub(in crate::cpu::quantizer) offsets: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    least: Vec<f32>,
    rows: Vec<Sum>,
    best: Vec<Sum>,
    unsorted: Vec<f32>,
}

impl Scorer {
    /// Forgets all targets.
    pub(in crate::cpu::quantizer) fn clear(&mut self) {
        self.vectors.clear();
        self.weights.clear();
        self.offsets.clear();
    }

    /// Scores all codewords of the step for all targets, and for two codebooks the least score of each
    /// codeword of the first.
    pub(in crate::cpu::quantizer) fn score(&mut self, stage: &Stage) {
        stage.first.scores(&self.vectors, &self.weights, &mut self.first);
        if let Some(second) = &stage.second {
            second.side.scores(&self.vectors, &self.weights, &mut self.second);
            second.least(&self.second, &self.weights, &mut self.least);
        }
    }

    /// The score of one sum for a target, from [`Scorer::score`].
    pub(in crate::cpu::quantizer) fn score_of(
        &self,
        stage: &Stage,
        at: usize,
        first: usize,
        second: usize,
    ) -> f32 {
        let mut score = self.first[at * stage.first.padded() + first];
        if let Some(side) = &stage.second {
            let width = side.side.padded();
            score += self.weights[at] * side.cross[first * width + second] + self.second[at * width + second];
        }
        score
    }

    /// The `keep` best sums of these targets, best first, from [`Scorer::score`]. Among equals the earlier
    /// target and the lower codewords win. `start` holds candidates that are there already, best first; a sum
    /// must be better to displace one.
    pub(in crate::cpu::quantizer) fn select(
        &mut self,
        targets: Range<usize>,
        stage: &Stage,
        keep: usize,
        start: &[Sum],
    ) -> &[Sum] {
        let states = stage.first.states();
        let padded = stage.first.padded();
        self.best.clear();
        self.best.extend_from_slice(start);
        let sum = |at, first| {
            move |value, second| Sum {
                value,
                at,
                first,
                second,
            }
        };
        let Some(second) = &stage.second else {
            for at in targets {
                let scores = &self.first[at * padded..][..states];
                collect(&mut self.best, keep, scores, self.offsets[at], |value, k| {
                    sum(at, k)(value, 0)
                });
            }
            return &self.best;
        };
        // The best sums lie in the rows with the least minima: every other row's minimum is above `keep`
        // sums.
        self.rows.clear();
        for at in targets {
            let least = &mut self.least[at * states..][..states];
            for (least, first) in least.iter_mut().zip(&self.first[at * padded..]) {
                *least += first;
            }
            collect(&mut self.rows, keep, least, self.offsets[at], |value, k| {
                sum(at, k)(value, 0)
            });
        }
        self.rows.sort_unstable_by_key(|row| (row.at, row.first));
        let width = second.side.padded();
        for row in &self.rows {
            let weight = self.weights[row.at];
            let cross = &second.cross[row.first * width..][..states];
            let scores = &self.second[row.at * width..][..states];
            self.unsorted.clear();
            self.unsorted.extend(
                cross
                    .iter()
                    .zip(scores)
                    .map(|(cross, score)| weight * cross + score),
            );
            let offset = self.offsets[row.at] + self.first[row.at * padded + row.first];
            collect(
                &mut self.best,
                keep,
                &self.unsorted,
                offset,
                sum(row.at, row.first),
            );
        }
        &self.best
    }
}

/// Puts the scores that belong to the `keep` least into the sorted `best`. Among equals the earlier ones
/// stay.
#[inline]
fn collect(
    best: &mut Vec<Sum>,
    keep: usize,
    scores: &[f32],
    offset: f32,
    candidate: impl Fn(f32, usize) -> Sum,
) {
    const CHUNK: usize = 16;
    for (chunk, scores) in scores.chunks(CHUNK).enumerate() {
        if best.len() == keep {
            let bound = best[keep - 1].value - offset;
            let mut any = false;
            for &score in scores {
                any |= score <= bound;
            }
            if !any {
                continue;
            }
        }
        for (k, &score) in scores.iter().enumerate() {
            let value = score + offset;
            if best.len() < keep || value < best[keep - 1].value {
                let place = best.partition_point(|other| other.value <= value);
                best.insert(place, candidate(value, chunk * CHUNK + k));
                best.truncate(keep);
            }
        }
    }
}
