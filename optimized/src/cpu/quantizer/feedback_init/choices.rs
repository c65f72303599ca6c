use crate::cpu::quantizer::sums::{Scorer, Stage, Sum};

/// Choices of a group's first codebooks that are kept while its other codebooks are undecided.
const PARTIAL: usize = 16;

/// Ways to code one group of several owners (output groups), perhaps with the group's first codebooks only.
/// Owner o has the choices `starts[o]..starts[o + 1]`, best first.
#[derive(Debug, Default, Clone)]
pub(super) struct Choices {
    pub(super) starts: Vec<usize>,
    /// loss before this group
    pub(super) base: Vec<f64>,
    /// loss with the choice
    pub(super) loss: Vec<f64>,
    /// index of the hypothesis that is extended
    pub(super) parent: Vec<u16>,
    /// what the chosen codewords leave of the target, [n, len]
    pub(super) left: Vec<f32>,
    /// [n, codebooks decided so far]
    pub(super) codes: Vec<u16>,
}

impl Choices {
    /// No owners.
    pub(super) fn clear(&mut self) {
        self.starts.clear();
        self.starts.push(0);
        self.base.clear();
        self.loss.clear();
        self.parent.clear();
        self.left.clear();
        self.codes.clear();
    }

    /// Adds a hypothesis of the current owner, without codes; its target follows in `left`.
    pub(super) fn push(&mut self, base: f64, parent: usize) {
        self.base.push(base);
        self.loss.push(base);
        self.parent.push(parent as u16);
    }

    /// Ends the current owner.
    pub(super) fn end_owner(&mut self) {
        self.starts.push(self.base.len());
    }

    /// The choices of an owner.
    pub(super) fn of(&self, owner: usize) -> std::ops::Range<usize> {
        self.starts[owner]..self.starts[owner + 1]
    }
}

/// Buffers of [`Chooser::choose`], reused from group to group.
#[derive(Default)]
pub(super) struct Chooser {
    /// a choice's offset is what it is worth before its codewords count, relative to its owner's first choice
    scorer: Scorer,
    best: Vec<Sum>,
    ranked: Vec<(f64, usize)>,
    next: Choices,
}

impl Chooser {
    /// Decides all codebooks of a group for all owners: `choices` enter with targets and leave as the `keep`
    /// best complete choices of each owner, best first. Among equals the earlier choice and the lower codes
    /// win.
    pub(super) fn choose(
        &mut self,
        choices: &mut Choices,
        stages: &[Stage],
        len: usize,
        scales: &[f32],
        keep: usize,
    ) {
        let mut decided = 0;
        for (step, stage) in stages.iter().enumerate() {
            let last = step + 1 == stages.len();
            let keep = if last { keep } else { keep.max(PARTIAL) };
            self.score(choices, stage, len, scales);
            self.next.clear();
            for (owner, &scale) in scales.iter().enumerate() {
                self.best.clear();
                self.best
                    .extend_from_slice(self.scorer.select(choices.of(owner), stage, keep, &[]));
                self.append(choices, stage, len, decided, scale);
                self.next.end_owner();
            }
            decided += if stage.second.is_some() { 2 } else { 1 };
            std::mem::swap(choices, &mut self.next);
        }
    }

    /// Scores of all codewords for all choices.
    fn score(&mut self, choices: &Choices, stage: &Stage, len: usize, scales: &[f32]) {
        let scorer = &mut self.scorer;
        scorer.clear();
        for (owner, &scale) in scales.iter().enumerate() {
            let range = choices.of(owner);
            let reference = choices.base[range.start];
            for n in range {
                let left = &choices.left[n * len..][..len];
                scorer.vectors.extend(left.iter().map(|t| -2.0 * scale * t));
                scorer.weights.push(scale * scale);
                let square: f32 = left.iter().map(|t| t * t).sum();
                scorer.offsets.push((choices.base[n] - reference) as f32 + square);
            }
        }
        scorer.score(stage);
    }

    /// Appends the selected candidates to the next choices, with losses in f64, best first.
    fn append(&mut self, choices: &Choices, stage: &Stage, len: usize, decided: usize, scale: f32) {
        let left_of = |candidate: &Sum, i: usize| {
            let first = stage.first.rows[candidate.first * len + i];
            let second = stage
                .second
                .as_ref()
                .map_or(0.0, |second| second.side.rows[candidate.second * len + i]);
            choices.left[candidate.at * len + i] - scale * (first + second)
        };
        self.ranked.clear();
        for (index, candidate) in self.best.iter().enumerate() {
            let square: f64 = (0..len).map(|i| f64::from(left_of(candidate, i)).powi(2)).sum();
            self.ranked.push((choices.base[candidate.at] + square, index));
        }
        self.ranked.sort_by(|a, b| f64::total_cmp(&a.0, &b.0));
        for &(loss, index) in &self.ranked {
            let candidate = &self.best[index];
            self.next.base.push(choices.base[candidate.at]);
            self.next.loss.push(loss);
            self.next.parent.push(choices.parent[candidate.at]);
            for i in 0..len {
                self.next.left.push(left_of(candidate, i));
            }
            self.next
                .codes
                .extend(&choices.codes[candidate.at * decided..][..decided]);
            self.next.codes.push(candidate.first as u16);
            if stage.second.is_some() {
                self.next.codes.push(candidate.second as u16);
            }
        }
    }
}

/// Codes of the nearest sums, without hypotheses: [n, M] for targets [n, len] under the identity.
pub(super) fn nearest_sums(targets: &[f32], len: usize, stages: &[Stage]) -> Vec<u16> {
    let mut choices = Choices::default();
    choices.clear();
    for target in targets.chunks_exact(len) {
        choices.push(0.0, 0);
        choices.left.extend(target);
        choices.end_owner();
    }
    let scales = vec![1.0; targets.len() / len];
    Chooser::default().choose(&mut choices, stages, len, &scales, 1);
    choices.codes
}
