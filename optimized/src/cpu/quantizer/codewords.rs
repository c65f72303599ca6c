//! One codebook laid out so that sixteen codewords are scored at a time, and the searches over it.
//!
//! Every choice of a code in the quantizer is the least of  w f_k + <v, c_k>  over the codewords c_k of a codebook: in
//! k-means with f_k = <c_k, c_k>, v = -2 x and w = 1; under the metric of an input group with f_k = <c_k H_jj, c_k> and
//! v = -2 x H_jj; in the search for codes with w = s^2 and v = -2 s U (paper.md 2.3).

use crate::cpu::vectorize::{LANES, multiply_add, vectorized};

/// Codewords that all vectors of a call see before the next ones are loaded: of group length 8, half of a first-level
/// data cache.
const TILE: usize = 512;

/// Vectors that share each load of a codeword.
const ROWS: usize = 4;

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
    /// Of codewords [states, len].
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

    /// Number of forms that a search takes: the codewords, padded.
    pub(crate) fn padded(&self) -> usize {
        self.columns.len() / self.len
    }

    /// One codeword.
    pub(crate) fn row(&self, k: usize) -> &[f32] {
        &self.rows[k * self.len..][..self.len]
    }

    /// <c B, c> summed over the rows of each codeword of [go, gi], for a symmetric B of [gi, gi] in standard layout;
    /// padded with infinities, which no search chooses.
    pub(crate) fn forms(&self, block: &[f32], gi: usize, forms: &mut [f32]) {
        quadratic_forms(&self.columns, self.padded(), block, gi, forms);
        forms[self.states..].fill(f32::INFINITY);
    }

    /// [`Codewords::forms`] of the identity: squared lengths.
    pub(crate) fn squares(&self) -> Vec<f32> {
        let mut squares = vec![f32::INFINITY; self.padded()];
        for (square, codeword) in squares.iter_mut().zip(self.rows.chunks_exact(self.len)) {
            *square = codeword.iter().map(|c| c * c).sum();
        }
        squares
    }

    /// For each vector of `vectors`, [n, len], with its weight, the codeword of least score and that score; the lowest
    /// of equals.
    pub(crate) fn least(&self, forms: &[f32], vectors: &[f32], weights: &[f32], found: &mut Vec<(f32, u32)>) {
        found.clear();
        found.resize(weights.len(), (f32::INFINITY, 0));
        if self.len == 8 {
            least_of_eight(&self.columns, self.padded(), forms, vectors, weights, found);
        } else {
            least_of_any(
                &self.columns,
                self.padded(),
                self.len,
                forms,
                vectors,
                weights,
                found,
            );
        }
    }

    /// Scores of all codewords for one vector, [padded].
    pub(crate) fn scores(&self, forms: &[f32], vector: &[f32], weight: f32, scores: &mut [f32]) {
        all_scores(&self.columns, self.padded(), forms, vector, weight, scores);
    }

    /// The score of one codeword, to the last bit what the searches see.
    pub(crate) fn score(&self, k: usize, forms: &[f32], vector: &[f32], weight: f32) -> f32 {
        score_of_one(self.row(k), forms[k], vector, weight)
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

/// Sixteen consecutive values.
#[inline(always)]
fn lanes(values: &[f32], at: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&values[at..at + LANES]);
    lanes
}

/// Scores of codewords `first..first + LANES` for `N` vectors.
#[inline(always)]
fn scores_of<const FUSED: bool, const N: usize>(
    columns: &[f32],
    padded: usize,
    len: usize,
    first: usize,
    form: [f32; LANES],
    vectors: [&[f32]; N],
    weights: [f32; N],
) -> [[f32; LANES]; N] {
    let mut scores = [[0.0; LANES]; N];
    for r in 0..N {
        for l in 0..LANES {
            scores[r][l] = weights[r] * form[l];
        }
    }
    for i in 0..len {
        let column = lanes(columns, i * padded + first);
        for r in 0..N {
            let v = vectors[r][i];
            for l in 0..LANES {
                scores[r][l] = multiply_add::<FUSED>(v, column[l], scores[r][l]);
            }
        }
    }
    scores
}

#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "an inner loop, and its buffers come from outside"
)]
fn least_rows<const FUSED: bool, const N: usize>(
    columns: &[f32],
    padded: usize,
    len: usize,
    forms: &[f32],
    (start, end): (usize, usize),
    vectors: &[f32],
    weights: &[f32],
    found: &mut [(f32, u32)],
) {
    let of_row: [&[f32]; N] = std::array::from_fn(|r| &vectors[r * len..(r + 1) * len]);
    let weight: [f32; N] = std::array::from_fn(|r| weights[r]);
    let mut best = [[f32::INFINITY; LANES]; N];
    let mut at = [[0u32; LANES]; N];
    for first in (start..end).step_by(LANES) {
        let form = lanes(forms, first);
        let scores = scores_of::<FUSED, N>(columns, padded, len, first, form, of_row, weight);
        for r in 0..N {
            for l in 0..LANES {
                let better = scores[r][l] < best[r][l];
                best[r][l] = if better { scores[r][l] } else { best[r][l] };
                at[r][l] = if better { first as u32 } else { at[r][l] };
            }
        }
    }
    for r in 0..N {
        // Earlier tiles hold lower codewords, so they win ties.
        for l in 0..LANES {
            let candidate = (best[r][l], at[r][l] + l as u32);
            let first_of_equals = candidate.0 == found[r].0 && candidate.1 < found[r].1;
            if candidate.0 < found[r].0 || first_of_equals {
                found[r] = candidate;
            }
        }
    }
}

#[inline(always)]
fn least_body<const FUSED: bool>(
    columns: &[f32],
    padded: usize,
    len: usize,
    forms: &[f32],
    vectors: &[f32],
    weights: &[f32],
    found: &mut [(f32, u32)],
) {
    for start in (0..padded).step_by(TILE) {
        let range = (start, padded.min(start + TILE));
        let mut row = 0;
        while row + ROWS <= weights.len() {
            let (vectors, weights) = (&vectors[row * len..], &weights[row..]);
            least_rows::<FUSED, ROWS>(
                columns,
                padded,
                len,
                forms,
                range,
                vectors,
                weights,
                &mut found[row..],
            );
            row += ROWS;
        }
        while row < weights.len() {
            let (vectors, weights) = (&vectors[row * len..], &weights[row..]);
            least_rows::<FUSED, 1>(
                columns,
                padded,
                len,
                forms,
                range,
                vectors,
                weights,
                &mut found[row..],
            );
            row += 1;
        }
    }
}

vectorized! {
    fn least_of_any(
        columns: &[f32],
        padded: usize,
        len: usize,
        forms: &[f32],
        vectors: &[f32],
        weights: &[f32],
        found: &mut [(f32, u32)],
    ) = least_body
}

/// The same with a length that the compiler knows.
#[inline(always)]
fn least_of_eight_body<const FUSED: bool>(
    columns: &[f32],
    padded: usize,
    forms: &[f32],
    vectors: &[f32],
    weights: &[f32],
    found: &mut [(f32, u32)],
) {
    least_body::<FUSED>(columns, padded, 8, forms, vectors, weights, found);
}

vectorized! {
    fn least_of_eight(
        columns: &[f32],
        padded: usize,
        forms: &[f32],
        vectors: &[f32],
        weights: &[f32],
        found: &mut [(f32, u32)],
    ) = least_of_eight_body
}

#[inline(always)]
fn all_scores_body<const FUSED: bool>(
    columns: &[f32],
    padded: usize,
    forms: &[f32],
    vector: &[f32],
    weight: f32,
    scores: &mut [f32],
) {
    for first in (0..padded).step_by(LANES) {
        let [lanes] = scores_of::<FUSED, 1>(
            columns,
            padded,
            vector.len(),
            first,
            lanes(forms, first),
            [vector],
            [weight],
        );
        scores[first..first + LANES].copy_from_slice(&lanes);
    }
}

vectorized! {
    fn all_scores(columns: &[f32], padded: usize, forms: &[f32], vector: &[f32], weight: f32, scores: &mut [f32])
        = all_scores_body
}

#[inline(always)]
fn score_of_one_body<const FUSED: bool>(codeword: &[f32], form: f32, vector: &[f32], weight: f32) -> f32 {
    let mut score = weight * form;
    for (v, c) in vector.iter().zip(codeword) {
        score = multiply_add::<FUSED>(*v, *c, score);
    }
    score
}

vectorized! {
    fn score_of_one(codeword: &[f32], form: f32, vector: &[f32], weight: f32) -> f32 = score_of_one_body
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
    /// target -= sum over i of factors[i] rows[i], rows being `stride` apart.
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
            codewords.least(&forms, &vectors, &weights, &mut found);
            for r in 0..n {
                let vector = &vectors[r * len..(r + 1) * len];
                let score = |k: usize| {
                    let product: f32 = vector.iter().zip(codewords.row(k)).map(|(v, c)| v * c).sum();
                    weights[r] * forms[k] + product
                };
                let mut expected = (f32::INFINITY, 0);
                for k in 0..states {
                    if score(k) < expected.0 {
                        expected = (score(k), k as u32);
                    }
                }
                // A padded codeword of weight zero or less would be 0 x infinity or worse.
                if weights[r] > 0.0 {
                    assert_eq!(found[r], expected, "{states} codewords of {len}");
                }
                let mut scores = vec![0.0; codewords.padded()];
                codewords.scores(&forms, vector, weights[r], &mut scores);
                for k in 0..states {
                    assert_eq!(scores[k], score(k));
                    assert_eq!(codewords.score(k, &forms, vector, weights[r]), score(k));
                }
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
