use super::stage::Stage;

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

/// A choice among the candidates of one owner.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    value: f32,
    at: usize,
    first: usize,
    second: usize,
}

/// Buffers of [`Chooser::choose`], reused from group to group.
#[derive(Default)]
pub(super) struct Chooser {
    vectors: Vec<f32>,
    weights: Vec<f32>,
    /// what a choice is worth before its codewords count, relative to its owner's first choice
    offsets: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    least: Vec<f32>,
    rows: Vec<Candidate>,
    best: Vec<Candidate>,
    ranked: Vec<(f64, usize)>,
    next: Choices,
    unsorted: Vec<f32>,
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
                self.select(choices.of(owner), stage, keep);
                self.append(choices, stage, len, decided, scale);
                self.next.end_owner();
            }
            decided += if stage.second.is_some() { 2 } else { 1 };
            std::mem::swap(choices, &mut self.next);
        }
    }

    /// Scores of all codewords for all choices.
    fn score(&mut self, choices: &Choices, stage: &Stage, len: usize, scales: &[f32]) {
        self.vectors.clear();
        self.weights.clear();
        self.offsets.clear();
        for (owner, &scale) in scales.iter().enumerate() {
            let range = choices.of(owner);
            let reference = choices.base[range.start];
            for n in range {
                let left = &choices.left[n * len..][..len];
                self.vectors.extend(left.iter().map(|t| -2.0 * scale * t));
                self.weights.push(scale * scale);
                let square: f32 = left.iter().map(|t| t * t).sum();
                self.offsets.push((choices.base[n] - reference) as f32 + square);
            }
        }
        stage.first.scores(&self.vectors, &self.weights, &mut self.first);
        if let Some(second) = &stage.second {
            second.side.scores(&self.vectors, &self.weights, &mut self.second);
            second.least(&self.second, &self.weights, &mut self.least);
        }
    }

    /// The best candidates among the choices of one owner.
    fn select(&mut self, range: std::ops::Range<usize>, stage: &Stage, keep: usize) {
        let states = stage.first.rows.len() / (self.vectors.len() / self.weights.len());
        let padded = stage.first.padded();
        self.best.clear();
        let Some(second) = &stage.second else {
            for at in range {
                let scores = &self.first[at * padded..][..states];
                collect(&mut self.best, keep, scores, self.offsets[at], |value, k| {
                    Candidate {
                        value,
                        at,
                        first: k,
                        second: 0,
                    }
                });
            }
            return;
        };
        // The best sums lie in the rows with the least minima: every other row's minimum is above `keep`
        // sums.
        self.rows.clear();
        for at in range {
            let least = &mut self.least[at * states..][..states];
            for (least, first) in least.iter_mut().zip(&self.first[at * padded..]) {
                *least += first;
            }
            collect(&mut self.rows, keep, least, self.offsets[at], |value, k| {
                Candidate {
                    value,
                    at,
                    first: k,
                    second: 0,
                }
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
            collect(&mut self.best, keep, &self.unsorted, offset, |value, k| {
                Candidate {
                    value,
                    second: k,
                    ..*row
                }
            });
        }
    }

    /// Appends the selected candidates to the next choices, with losses in f64, best first.
    fn append(&mut self, choices: &Choices, stage: &Stage, len: usize, decided: usize, scale: f32) {
        let left_of = |candidate: &Candidate, i: usize| {
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

/// Puts the scores that belong to the `keep` least into the sorted `best`. Among equals the earlier ones
/// stay.
#[inline]
fn collect(
    best: &mut Vec<Candidate>,
    keep: usize,
    scores: &[f32],
    offset: f32,
    candidate: impl Fn(f32, usize) -> Candidate,
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
