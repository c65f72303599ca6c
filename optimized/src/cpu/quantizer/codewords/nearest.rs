//! The search for each vector's least score, which compares all codewords of a register at once.

use crate::cpu::simd::vector::{LANE_NUMBERS, Vector};
use crate::cpu::simd::{Kernel, SimdLevel, Width, run};

/// Codewords that all vectors of a call process before the next ones are loaded: for group length 8, half of
/// an L1 data cache.
const TILE: usize = 512;

/// Vectors that share each load of a codeword: four independent chains of multiply-adds keep both FMA units
/// busy.
const ROWS: usize = 4;

/// The codeword with the least score for one vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Nearest {
    /// its score
    pub(crate) score: f32,
    /// the least score of the other codewords; only if requested
    pub(crate) second: f32,
    /// the lowest code with that score
    pub(crate) code: u32,
}

impl Nearest {
    /// The state before any codeword.
    const NONE: Self = Self {
        score: f32::INFINITY,
        second: f32::INFINITY,
        code: 0,
    };

    /// Merges the result for higher codewords.
    fn join(&mut self, other: Self) {
        if other.score < self.score {
            self.second = self.score.min(other.second);
            (self.score, self.code) = (other.score, other.code);
        } else {
            self.second = self.second.min(other.score);
        }
    }
}

/// Searches `columns` [len, padded] for vectors [n, len], with the runner-up's score where `SECOND`.
pub(super) fn search<const SECOND: bool>(
    columns: &[f32],
    len: usize,
    forms: &[f32],
    vectors: &[f32],
    weights: &[f32],
    found: &mut Vec<Nearest>,
) {
    found.clear();
    found.resize(weights.len(), Nearest::NONE);
    let padded = forms.len();
    assert_eq!(columns.len(), padded * len, "coordinates of the codewords");
    assert_eq!(vectors.len(), weights.len() * len, "coordinates of the vectors");
    assert!(
        padded.is_multiple_of(LANE_NUMBERS.len()),
        "codewords without padding"
    );
    let search = Search::<SECOND> {
        columns,
        padded,
        len,
        forms,
        vectors,
        weights,
        found,
    };
    // SAFETY: the current level is available, and the lengths that the kernel relies on were just compared.
    unsafe { run(SimdLevel::current(), Width::Sixteen, search) }
}

struct Search<'a, const SECOND: bool> {
    columns: &'a [f32],
    padded: usize,
    len: usize,
    forms: &'a [f32],
    vectors: &'a [f32],
    weights: &'a [f32],
    found: &'a mut [Nearest],
}

impl<const SECOND: bool> Kernel for Search<'_, SECOND> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            if self.len == 8 {
                self.tiles::<V, 8>();
            } else {
                self.tiles::<V, 0>();
            }
        }
    }
}

impl<const SECOND: bool> Search<'_, SECOND> {
    /// `LEN` is the length of a codeword if known at compile time, else 0.
    #[inline(always)]
    unsafe fn tiles<V: Vector, const LEN: usize>(self) {
        let len = if LEN == 0 { self.len } else { LEN };
        for start in (0..self.padded).step_by(TILE) {
            let end = self.padded.min(start + TILE);
            let whole = self.weights.len() / ROWS * ROWS;
            for row in (0..whole).step_by(ROWS) {
                // SAFETY: rows row..row + ROWS exist, and codewords start..end.
                let found = unsafe { self.rows::<V, ROWS, LEN>(len, row, start, end) };
                for (of_row, found) in self.found[row..].iter_mut().zip(found) {
                    of_row.join(found);
                }
            }
            for row in whole..self.weights.len() {
                // SAFETY: this row exists, and codewords start..end.
                let [found] = unsafe { self.rows::<V, 1, LEN>(len, row, start, end) };
                self.found[row].join(found);
            }
        }
    }

    #[inline(always)]
    unsafe fn rows<V: Vector, const N: usize, const LEN: usize>(
        &self,
        len: usize,
        row: usize,
        start: usize,
        end: usize,
    ) -> [Nearest; N] {
        // SAFETY: columns holds len x padded values and forms padded values, where padded is a multiple of
        // the lanes. vectors and weights hold rows row..row + N.
        unsafe {
            let vectors = self.vectors.as_ptr().add(row * len);
            // Loops instead of closures, because a closure would be compiled without V's instructions.
            let none = V::splat(f32::INFINITY);
            let mut weights = [none; N];
            for r in 0..N {
                weights[r] = V::splat(self.weights[row + r]);
            }
            let mut best = [none; N];
            let mut second = [none; N];
            let mut at = [V::splat(0.0); N];
            let mut number = V::load(LANE_NUMBERS.as_ptr()).add(V::splat(start as f32));
            for first in (start..end).step_by(V::LANES) {
                let form = V::load(self.forms.as_ptr().add(first));
                let mut scores = [form; N];
                for r in 0..N {
                    scores[r] = weights[r].mul(form);
                }
                for i in 0..len {
                    let column = V::load(self.columns.as_ptr().add(i * self.padded + first));
                    for r in 0..N {
                        scores[r] = V::splat(*vectors.add(r * len + i)).mul_add(column, scores[r]);
                    }
                }
                for r in 0..N {
                    if SECOND {
                        let loser = scores[r].pick_below(best[r], best[r], scores[r]);
                        second[r] = loser.pick_below(second[r], loser, second[r]);
                    }
                    at[r] = scores[r].pick_below(best[r], number, at[r]);
                    best[r] = scores[r].pick_below(best[r], scores[r], best[r]);
                }
                number = number.add(V::splat(V::LANES as f32));
            }
            let mut found = [Nearest::NONE; N];
            for r in 0..N {
                let score = best[r].least();
                // Among the lanes with that score, the lowest codeword.
                let code = best[r].pick_equal(V::splat(score), at[r], none).least();
                found[r].score = score;
                found[r].code = code as u32;
                if SECOND {
                    let others = at[r].pick_equal(V::splat(code), none, best[r]);
                    found[r].second = others.least().min(second[r].least());
                }
            }
            found
        }
    }
}
