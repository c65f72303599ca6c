//! One codebook laid out so that sixteen codewords are scored at a time, and searches over it.
//!
//! Every choice of a code in the quantizer is the least of  w f_k + <v, c_k>  over the codewords c_k of a
//! codebook. In k-means, f_k = <c_k, c_k>, v = -2 x and w = 1. Under the metric of an input group,
//! f_k = <c_k H_jj, c_k> and v = -2 x H_jj. In the search for codes, w = s^2 and v = -2 s U.

mod nearest;

use crate::cpu::simd::vector::{Vector, multiply_add_by};
use crate::cpu::simd::{Kernel, SimdLevel, Width, run};
use crate::cpu::vectorize::{LANES, multiply_add, vectorized};

pub(crate) use nearest::Nearest;

/// The codewords of one codebook.
#[derive(Debug, Clone)]
pub(crate) struct Codewords {
    len: usize,
    states: usize,
    /// [len, padded states]: each coordinate of all codewords, padded with zeros
    columns: Vec<f32>,
    /// [states, len]
    rows: Vec<f32>,
}

impl Codewords {
    /// From codewords [states, len].
    pub(crate) fn new(rows: Vec<f32>, len: usize) -> Self {
        let states = rows.len() / len;
        let padded = states.next_multiple_of(LANES);
        let mut columns = vec![0.0; len * padded];
        for (k, codeword) in rows.chunks_exact(len).enumerate() {
            for (i, &value) in codeword.iter().enumerate() {
                columns[i * padded + k] = value;
            }
        }
        Self {
            len,
            states,
            columns,
            rows,
        }
    }

    /// Length of the forms for a search: the number of codewords, padded.
    pub(crate) fn padded(&self) -> usize {
        self.columns.len() / self.len
    }

    /// One codeword.
    pub(crate) fn row(&self, k: usize) -> &[f32] {
        &self.rows[k * self.len..][..self.len]
    }

    /// <c B, c> summed over the rows of each codeword of [go, gi], for a symmetric B of [gi, gi] in standard
    /// layout. The padding is infinity, which no search chooses.
    pub(crate) fn forms(&self, block: &[f32], gi: usize, forms: &mut [f32]) {
        quadratic_forms(&self.columns, self.padded(), block, gi, forms);
        forms[self.states..].fill(f32::INFINITY);
    }

    /// [`Codewords::forms`] for the identity: squared lengths.
    pub(crate) fn squares(&self) -> Vec<f32> {
        let mut squares = vec![f32::INFINITY; self.padded()];
        for (square, codeword) in squares.iter_mut().zip(self.rows.chunks_exact(self.len)) {
            *square = codeword.iter().map(|c| c * c).sum();
        }
        squares
    }

    /// Number of codewords.
    pub(crate) fn states(&self) -> usize {
        self.states
    }

    /// f_k + <v, c_k> for one vector and every codeword; the padding gets infinity.
    pub(crate) fn scores(&self, forms: &[f32], vector: &[f32], scores: &mut [f32]) {
        all_scores(&self.columns, forms, vector, scores);
    }

    /// For each vector of `vectors`, [n, len], and its weight, the codeword with the least score.
    pub(crate) fn nearest(&self, forms: &[f32], vectors: &[f32], weights: &[f32], found: &mut Vec<Nearest>) {
        nearest::search::<false>(&self.columns, self.len, forms, vectors, weights, found);
    }

    /// [`Codewords::nearest`], also with the scores of the runners-up.
    pub(crate) fn nearest_two(
        &self,
        forms: &[f32],
        vectors: &[f32],
        weights: &[f32],
        found: &mut Vec<Nearest>,
    ) {
        nearest::search::<true>(&self.columns, self.len, forms, vectors, weights, found);
    }

    /// Each coordinate of all codewords, [len, padded].
    pub(crate) fn columns(&self) -> &[f32] {
        &self.columns
    }

    /// The score of one codeword, bit for bit as in the searches.
    pub(crate) fn score(&self, k: usize, forms: &[f32], vector: &[f32], weight: f32) -> f32 {
        let score = Score {
            codeword: self.row(k),
            form: forms[k],
            vector,
            weight,
        };
        // SAFETY: the current level is available, and Score has no other requirement.
        unsafe { run(SimdLevel::current(), Width::Sixteen, score) }
    }
}

#[inline(always)]
fn forms_body<const FUSED: bool>(
    columns: &[f32],
    padded: usize,
    block: &[f32],
    gi: usize,
    forms: &mut [f32],
) {
    let len = columns.len() / padded;
    for first in (0..padded).step_by(LANES) {
        let mut form = [0.0; LANES];
        for row in 0..len / gi {
            for i in 0..gi {
                let mut image = [0.0; LANES];
                for b in 0..gi {
                    let column = lanes(columns, (row * gi + b) * padded + first);
                    for l in 0..LANES {
                        image[l] = multiply_add::<FUSED>(block[i * gi + b], column[l], image[l]);
                    }
                }
                let column = lanes(columns, (row * gi + i) * padded + first);
                for l in 0..LANES {
                    form[l] = multiply_add::<FUSED>(image[l], column[l], form[l]);
                }
            }
        }
        forms[first..first + LANES].copy_from_slice(&form);
    }
}

vectorized! {
    fn quadratic_forms(columns: &[f32], padded: usize, block: &[f32], gi: usize, forms: &mut [f32]) = forms_body
}

#[inline(always)]
fn all_scores_body<const FUSED: bool>(columns: &[f32], forms: &[f32], vector: &[f32], scores: &mut [f32]) {
    let padded = forms.len();
    for first in (0..padded).step_by(LANES) {
        let mut score = lanes(forms, first);
        for (i, &value) in vector.iter().enumerate() {
            let column = lanes(columns, i * padded + first);
            for l in 0..LANES {
                score[l] = multiply_add::<FUSED>(value, column[l], score[l]);
            }
        }
        scores[first..first + LANES].copy_from_slice(&score);
    }
}

vectorized! {
    fn all_scores(columns: &[f32], forms: &[f32], vector: &[f32], scores: &mut [f32]) = all_scores_body
}

/// Sixteen consecutive values.
#[inline(always)]
fn lanes(values: &[f32], at: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&values[at..at + LANES]);
    lanes
}

/// The score of one codeword, bit for bit as in a search with vectors of V.
#[inline(always)]
pub(crate) fn score_by<V: Vector>(codeword: &[f32], form: f32, vector: &[f32], weight: f32) -> f32 {
    let mut score = weight * form;
    for i in 0..vector.len() {
        score = multiply_add_by::<V>(vector[i], codeword[i], score);
    }
    score
}

/// [`score_by`] with the vectors of the current level.
struct Score<'a> {
    codeword: &'a [f32],
    form: f32,
    vector: &'a [f32],
    weight: f32,
}

impl Kernel for Score<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        score_by::<V>(self.codeword, self.form, self.vector, self.weight)
    }
}

#[inline(always)]
fn subtract_rows_body<const FUSED: bool>(target: &mut [f32], factors: &[f32], rows: &[f32], stride: usize) {
    let len = target.len();
    let whole = len / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        let mut sum = [0.0; LANES];
        sum.copy_from_slice(&target[first..first + LANES]);
        for (i, &factor) in factors.iter().enumerate() {
            let row = lanes(rows, i * stride + first);
            for l in 0..LANES {
                sum[l] = multiply_add::<FUSED>(-factor, row[l], sum[l]);
            }
        }
        target[first..first + LANES].copy_from_slice(&sum);
    }
    for c in whole..len {
        for (i, &factor) in factors.iter().enumerate() {
            target[c] = multiply_add::<FUSED>(-factor, rows[i * stride + c], target[c]);
        }
    }
}

vectorized! {
    /// target -= sum over i of factors[i] rows[i], with rows `stride` apart.
    pub(crate) fn subtract_rows(target: &mut [f32], factors: &[f32], rows: &[f32], stride: usize)
        = subtract_rows_body
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, so that all scores are exact and many are equal.
    fn integers(len: usize, salt: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 7 + i / 5 * 3 + salt) % 9) as f32 - 4.0)
            .collect()
    }

    #[test]
    fn the_first_least_score_is_found() {
        for (states, len, n) in [
            (1, 1, 1),
            (5, 8, 9),
            (16, 3, 4),
            (700, 8, 6),
            (1100, 4, 3),
            (64, 6, 7),
        ] {
            let codewords = Codewords::new(integers(states * len, 1), len);
            let (vectors, weights) = (integers(n * len, 5), integers(n, 2));
            let mut forms = vec![0.0; codewords.padded()];
            let identity: Vec<f32> = (0..len * len)
                .map(|i| f32::from(u8::from(i % (len + 1) == 0)))
                .collect();
            codewords.forms(&identity, len, &mut forms);
            assert_eq!(forms, codewords.squares());
            let mut found = Vec::new();
            codewords.nearest_two(&forms, &vectors, &weights, &mut found);
            let mut alone = Vec::new();
            codewords.nearest(&forms, &vectors, &weights, &mut alone);
            for r in 0..n {
                let vector = &vectors[r * len..(r + 1) * len];
                let score = |k: usize| {
                    let product: f32 = vector.iter().zip(codewords.row(k)).map(|(v, c)| v * c).sum();
                    weights[r] * forms[k] + product
                };
                let mut sorted: Vec<(f32, usize)> = (0..states).map(|k| (score(k), k)).collect();
                sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
                let expected = Nearest {
                    score: sorted[0].0,
                    second: sorted.get(1).map_or(f32::INFINITY, |other| other.0),
                    code: sorted[0].1 as u32,
                };
                // A weight of zero or less times the infinity of a padded codeword would break the search.
                if weights[r] > 0.0 {
                    assert_eq!(found[r], expected, "{states} codewords of {len}");
                    assert_eq!((alone[r].score, alone[r].code), (expected.score, expected.code));
                }
                for k in 0..states {
                    assert_eq!(codewords.score(k, &forms, vector, weights[r]), score(k));
                }
                let mut scores = vec![0.0; forms.len()];
                codewords.scores(&forms, vector, &mut scores);
                for k in 0..states {
                    assert_eq!(scores[k], codewords.score(k, &forms, vector, 1.0));
                }
                assert!(scores[states..].iter().all(|&score| score == f32::INFINITY));
            }
        }
    }

    #[test]
    fn forms_take_the_metric_of_each_row() {
        let codewords = Codewords::new(vec![1.0, 2.0, 3.0, 4.0], 4);
        let mut forms = vec![0.0; codewords.padded()];
        codewords.forms(&[2.0, 1.0, 1.0, 3.0], 2, &mut forms);
        // (1, 2): 2 + 2 x 2 + 12 = 18; (3, 4): 18 + 24 + 48 = 90
        assert_eq!(forms[0], 108.0);
        assert_eq!(forms[1], f32::INFINITY);
    }

    #[test]
    fn rows_are_subtracted() {
        let mut target = vec![1.0; 21];
        let rows: Vec<f32> = (0..60).map(|i| i as f32).collect();
        subtract_rows(&mut target, &[1.0, 0.0, -2.0], &rows, 18);
        for (c, value) in target.iter().enumerate() {
            assert_eq!(*value, 1.0 - c as f32 + 2.0 * (36 + c) as f32);
        }
    }
}
