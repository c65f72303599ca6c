use faer::Accum;
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::cpu::product::product_on_this_thread;
use crate::cpu::simd::vector::Vector;
use crate::cpu::simd::{Kernel, SimdLevel, Width, run};
use crate::cpu::vectorize::LANES;

/// Targets that share each load of a table.
const ROWS: usize = 4;

/// The codewords of one codebook under a metric: <a, b> is a M b^T, summed over the rows of a group.
pub(in crate::cpu::quantizer) struct Side {
    len: usize,
    states: usize,
    padded: usize,
    /// what a codeword's products with others are taken of, [2^B, len]: c L under M = L L^T, where others are
    /// c L, too; else c M, where others are plain codewords
    pub(in crate::cpu::quantizer) rows: Vec<f32>,
    /// what a vector's products with codewords are taken of, [len, padded 2^B], padded with zeros: c L, or c
    columns: Vec<f32>,
    /// <c, c>, padded with zeros
    squares: Vec<f32>,
}

impl Side {
    /// In the space where plain distances count: each row of a codeword times L.
    pub(super) fn in_space(codebook: &[f32], len: usize, lower: &[f32], gi: usize) -> Self {
        let mut rows = vec![0.0; codebook.len()];
        for (from, to) in codebook.chunks_exact(gi).zip(rows.chunks_exact_mut(gi)) {
            times_block(from, lower, gi, to);
        }
        Self::of(rows.clone(), &rows, len)
    }

    /// Under a symmetric M, [gi, gi].
    pub(super) fn under(codebook: &[f32], len: usize, metric: &[f32], gi: usize) -> Self {
        let mut rows = vec![0.0; codebook.len()];
        for (from, to) in codebook.chunks_exact(gi).zip(rows.chunks_exact_mut(gi)) {
            times_block(from, metric, gi, to);
        }
        Self::of(rows, codebook, len)
    }

    /// From the rows, [2^B, len], and those that become columns.
    fn of(rows: Vec<f32>, columns_of: &[f32], len: usize) -> Self {
        let states = rows.len() / len;
        let padded = states.next_multiple_of(LANES);
        let mut columns = vec![0.0; len * padded];
        let mut squares = vec![0.0; padded];
        for (k, (row, column)) in rows
            .chunks_exact(len)
            .zip(columns_of.chunks_exact(len))
            .enumerate()
        {
            for (i, (&image, &value)) in row.iter().zip(column).enumerate() {
                columns[i * padded + k] = value;
                squares[k] += image * value;
            }
        }
        Self {
            len,
            states,
            padded,
            rows,
            columns,
            squares,
        }
    }

    /// Number of codewords.
    pub(super) fn states(&self) -> usize {
        self.states
    }

    /// For each vector of `vectors`, [n, len], and its weight: weight |c|^2 + <vector, c> for all codewords,
    /// [n, padded]; infinity in the padding.
    pub(super) fn scores(&self, vectors: &[f32], weights: &[f32], scores: &mut Vec<f32>) {
        assert_eq!(
            vectors.len(),
            weights.len() * self.len,
            "coordinates of the vectors"
        );
        scores.clear();
        scores.resize(weights.len() * self.padded, 0.0);
        let kernel = Scores {
            side: self,
            vectors,
            weights,
            to: scores,
        };
        // SAFETY: the current level is available. Lengths were just set, and padded is a multiple of LANES.
        unsafe { run(SimdLevel::current(), Width::Sixteen, kernel) };
        for scores in scores.chunks_exact_mut(self.padded) {
            scores[self.states..].fill(f32::INFINITY);
        }
    }

    /// Number of scores of one vector.
    pub(super) fn padded(&self) -> usize {
        self.padded
    }
}

/// x L for one row x of a group and a matrix L, [gi, gi].
pub(in crate::cpu::quantizer) fn times_block(x: &[f32], lower: &[f32], gi: usize, product: &mut [f32]) {
    product.fill(0.0);
    for (x, row) in x.iter().zip(lower.chunks_exact(gi)) {
        for (sum, l) in product.iter_mut().zip(row) {
            *sum += x * l;
        }
    }
}

struct Scores<'a> {
    side: &'a Side,
    vectors: &'a [f32],
    weights: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Scores<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Side {
            len,
            padded,
            ref columns,
            ref squares,
            ..
        } = *self.side;
        for (n, &weight) in self.weights.iter().enumerate() {
            let vector = &self.vectors[n * len..(n + 1) * len];
            let scores = &mut self.to[n * padded..(n + 1) * padded];
            for first in (0..padded).step_by(V::LANES) {
                // SAFETY: columns holds len x padded values, squares and scores padded values; padded is a
                // multiple of the lanes.
                unsafe {
                    let mut score = V::load(squares.as_ptr().add(first)).mul(V::splat(weight));
                    for i in 0..len {
                        let column = V::load(columns.as_ptr().add(i * padded + first));
                        score = column.mul_add(V::splat(vector[i]), score);
                    }
                    score.store(scores.as_mut_ptr().add(first));
                }
            }
        }
    }
}

/// One step of a group's decision: a codebook, or two codebooks that are searched jointly.
pub(in crate::cpu::quantizer) struct Stage {
    pub(in crate::cpu::quantizer) first: Side,
    pub(in crate::cpu::quantizer) second: Option<Second>,
}

/// The second codebook of a joint search.
pub(in crate::cpu::quantizer) struct Second {
    pub(in crate::cpu::quantizer) side: Side,
    /// 2 <a, b> for every codeword a of the first and b of the second codebook, [2^B, padded 2^B]
    pub(super) cross: Vec<f32>,
}

impl Stage {
    /// From the sides of the step's codebooks.
    pub(super) fn of(first: Side, second: Option<Side>) -> Self {
        let len = first.len;
        let second = second.map(|side| {
            let mut cross = vec![0.0; first.states * side.padded];
            let shape = (first.states, side.padded);
            product_on_this_thread(
                ArrayViewMut2::from_shape(shape, &mut cross).expect("made with this length"),
                Accum::Replace,
                ArrayView2::from_shape((first.states, len), &first.rows).expect("a codebook's length"),
                ArrayView2::from_shape((len, side.padded), &side.columns).expect("a codebook's length"),
                2.0,
            );
            Second { side, cross }
        });
        Self { first, second }
    }
}

impl Second {
    /// For each target and each codeword a of the first codebook, the least of
    /// weight 2 <a, b> + score of b over the second codebook: [n, 2^B].
    pub(super) fn least(&self, scores: &[f32], weights: &[f32], least: &mut Vec<f32>) {
        let (states, padded) = (self.cross.len() / self.side.padded, self.side.padded);
        assert_eq!(
            scores.len(),
            weights.len() * padded,
            "scores of the second codebook"
        );
        least.clear();
        least.resize(weights.len() * states, 0.0);
        let kernel = Least {
            cross: &self.cross,
            states,
            padded,
            scores,
            weights,
            to: least,
        };
        // SAFETY: the current level is available, and the lengths were just compared.
        unsafe { run(SimdLevel::current(), Width::Sixteen, kernel) }
    }
}

struct Least<'a> {
    cross: &'a [f32],
    states: usize,
    padded: usize,
    scores: &'a [f32],
    weights: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Least<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        let whole = self.weights.len() / ROWS * ROWS;
        // SAFETY: these rows exist; the caller guarantees the rest.
        unsafe {
            for row in (0..whole).step_by(ROWS) {
                self.rows::<V, ROWS>(row);
            }
            for row in whole..self.weights.len() {
                self.rows::<V, 1>(row);
            }
        }
    }
}

impl Least<'_> {
    #[inline(always)]
    unsafe fn rows<V: Vector, const N: usize>(&mut self, row: usize) {
        let (states, padded) = (self.states, self.padded);
        // SAFETY: cross holds states x padded values, scores padded values for each row; padded is a multiple
        // of the lanes. Loops instead of closures, because a closure would be compiled without V's
        // instructions.
        unsafe {
            let scores = self.scores.as_ptr().add(row * padded);
            let mut weights = [V::splat(0.0); N];
            for r in 0..N {
                weights[r] = V::splat(self.weights[row + r]);
            }
            for a in 0..states {
                let cross = self.cross.as_ptr().add(a * padded);
                let mut least = [V::splat(f32::INFINITY); N];
                let mut b = 0;
                while b < padded {
                    let product = V::load(cross.add(b));
                    for r in 0..N {
                        let score = V::load(scores.add(r * padded + b));
                        least[r] = product.mul_add(weights[r], score).lesser(least[r]);
                    }
                    b += V::LANES;
                }
                for r in 0..N {
                    self.to[(row + r) * states + a] = least[r].least();
                }
            }
        }
    }
}
