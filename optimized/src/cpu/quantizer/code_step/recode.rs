use aqlm_vocabulary::{CodeSettings, Residuals};

use super::metric::Root;
use crate::cpu::quantizer::codewords::{Codewords, Nearest};

/// The codebooks of a matrix, ready for scoring.
pub(super) struct Books {
    codewords: Vec<Codewords>,
    squares: Vec<Vec<f32>>,
    len: usize,
}

/// Codes of some groups on the way: `width` hypotheses for each.
struct Beams {
    width: usize,
    /// [groups, width, M]
    codes: Vec<u16>,
    /// target minus the sum of codewords, [groups, width, length]
    residuals: Vec<f32>,
}

impl Books {
    /// From codebooks [M, 2^B, length of a group], in the coordinates of a root if there is one.
    pub(super) fn new(codebooks: &[f64], num_codebooks: usize, len: usize, root: Option<&Root>) -> Self {
        let codewords: Vec<Codewords> = codebooks
            .chunks_exact(codebooks.len() / num_codebooks)
            .map(|rows| {
                let mut rows: Vec<f32> = rows.iter().map(|&entry| entry as f32).collect();
                if let Some(root) = root {
                    root.transform(&mut rows);
                }
                Codewords::new(rows, len)
            })
            .collect();
        Self {
            squares: codewords.iter().map(Codewords::squares).collect(),
            codewords,
            len,
        }
    }

    /// New codes for groups with these targets, [groups, length], and old codes, [groups, M]: one visit of
    /// the codebooks in `order`, at each of which as many of the least squared distances are kept as the beam
    /// is wide, after the last the least. Among equals the earlier hypothesis and the lower code win.
    pub(super) fn recode(
        &self,
        targets: Vec<f32>,
        old: &[u16],
        order: &[usize],
        settings: &CodeSettings,
    ) -> Vec<u16> {
        let mut beams = Beams {
            width: 1,
            codes: old.to_vec(),
            residuals: targets,
        };
        for (codes, residual) in old
            .chunks_exact(order.len())
            .zip(beams.residuals.chunks_exact_mut(self.len))
        {
            for (m, &code) in codes.iter().enumerate() {
                for (residual, entry) in residual.iter_mut().zip(self.codewords[m].row(usize::from(code))) {
                    *residual -= entry;
                }
            }
        }
        for (visit, &codebook) in order.iter().enumerate() {
            let kept = if visit + 1 == order.len() {
                1
            } else {
                settings.beam
            };
            beams = self.visit(beams, codebook, kept, settings.residuals);
        }
        beams.codes
    }

    /// Replaces the codes of one codebook and keeps the best hypotheses of each group.
    fn visit(&self, mut beams: Beams, codebook: usize, kept: usize, residuals: Residuals) -> Beams {
        let (words, squares, len) = (&self.codewords[codebook], &self.squares[codebook], self.len);
        let num_codebooks = self.codewords.len();
        let states = words.states();
        for (codes, residual) in beams
            .codes
            .chunks_exact(num_codebooks)
            .zip(beams.residuals.chunks_exact_mut(len))
        {
            let own = words.row(usize::from(codes[codebook]));
            residual
                .iter_mut()
                .zip(own)
                .for_each(|(residual, entry)| *residual += entry);
        }
        let lengths: Vec<f32> = beams
            .residuals
            .chunks_exact(len)
            .map(|residual| residual.iter().map(|r| r * r).sum())
            .collect();
        let vectors: Vec<f32> = beams.residuals.iter().map(|r| -2.0 * r).collect();
        let width = kept.min(beams.width * states);
        let groups = lengths.len() / beams.width;
        let mut next = Beams {
            width,
            codes: Vec::with_capacity(groups * width * num_codebooks),
            residuals: Vec::with_capacity(groups * width * len),
        };
        let mut nearest: Vec<Nearest> = Vec::new();
        let mut scores = vec![0.0; squares.len()];
        if kept == 1 {
            words.nearest(squares, &vectors, &vec![1.0; lengths.len()], &mut nearest);
        }
        let mut best = Best::new(width);
        for group in 0..groups {
            best.clear();
            for hypothesis in group * beams.width..(group + 1) * beams.width {
                if kept == 1 {
                    let found = nearest[hypothesis];
                    best.offer(lengths[hypothesis] + found.score, hypothesis, found.code as u16);
                } else {
                    words.scores(squares, &vectors[hypothesis * len..][..len], &mut scores);
                    for (code, score) in scores[..states].iter().enumerate() {
                        best.offer(lengths[hypothesis] + score, hypothesis, code as u16);
                    }
                }
            }
            for (place, &(_, hypothesis, code)) in best.found.iter().enumerate() {
                let from = next.codes.len();
                next.codes
                    .extend_from_slice(&beams.codes[hypothesis * num_codebooks..][..num_codebooks]);
                next.codes[from + codebook] = code;
                let goes_on = match residuals {
                    Residuals::Own => hypothesis,
                    Residuals::Place => group * beams.width + place.min(beams.width - 1),
                };
                let residual = &beams.residuals[goes_on * len..][..len];
                let row = words.row(usize::from(code));
                next.residuals
                    .extend(residual.iter().zip(row).map(|(r, entry)| r - entry));
            }
        }
        next
    }
}

/// The least scores so far, in order; an equal score comes after the earlier one.
struct Best {
    room: usize,
    /// (score, hypothesis, code)
    found: Vec<(f32, usize, u16)>,
}

impl Best {
    fn new(room: usize) -> Self {
        Self {
            room,
            found: Vec::with_capacity(room + 1),
        }
    }

    fn clear(&mut self) {
        self.found.clear();
    }

    fn offer(&mut self, score: f32, hypothesis: usize, code: u16) {
        if self.found.len() == self.room {
            match self.found.last() {
                Some(&(worst, ..)) if score < worst => {
                    self.found.pop();
                }
                _ => return,
            }
        }
        let at = self.found.partition_point(|&(other, ..)| other <= score);
        self.found.insert(at, (score, hypothesis, code));
    }
}
