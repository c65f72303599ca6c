//! The direct form: codewords as vectors.
//!
//! Each group takes M loads of a codeword, M - 1 additions and one multiply-add with x. Four rows are
//! computed together: a load of x then serves four groups, and four independent sums hide the latency of the
//! multiply-add.

use crate::cpu::simd::vector::Vector;
use crate::cpu::simd::{Kernel, SimdLevel, Width, prefetch, run};
use crate::cpu::words::{Code, CodewordView, Value};

/// Output groups that share a load of x.
const ROWS: usize = 4;

/// Some output groups of a matrix and the x to multiply them with.
pub(super) struct Direct<'a, C, W> {
    /// [rows, in_groups, M]
    pub(super) codes: &'a [C],
    pub(super) codewords: CodewordView<'a, W>,
    pub(super) in_groups: usize,
    pub(super) padded_group: usize,
    pub(super) out_group: usize,
    /// `[rows]`
    pub(super) scales: &'a [f32],
    /// [in_groups, padded_group], zero in the padding
    pub(super) x: &'a [f32],
    /// [rows, out_group]
    pub(super) y: &'a mut [f32],
}

/// Computes `y = scale * (sum of codewords) . x` for every row of `direct`.
pub(super) fn matvec<C: Code, W: Value>(level: SimdLevel, direct: Direct<'_, C, W>) {
    let d = &direct;
    assert_eq!(
        d.codes.len(),
        d.scales.len() * d.in_groups * d.codewords.codebooks
    );
    assert_eq!(d.x.len(), d.in_groups * d.padded_group);
    assert_eq!(d.y.len(), d.scales.len() * d.out_group);
    let width = if d.padded_group.is_multiple_of(16) {
        Width::Sixteen
    } else {
        Width::Eight
    };
    // A compile-time length makes a code's address a shift; a compile-time M unrolls the sum.
    let plain = d.codewords.codeword_len == 8;
    // SAFETY: lengths were just checked. Codes and level were checked when the matrix was packed.
    unsafe {
        match (d.codewords.codebooks, plain) {
            (1, true) => run(level, width, Unrolled::<_, _, 1, 8>(direct)),
            (2, true) => run(level, width, Unrolled::<_, _, 2, 8>(direct)),
            (4, true) => run(level, width, Unrolled::<_, _, 4, 8>(direct)),
            (_, true) => run(level, width, Unrolled::<_, _, 0, 8>(direct)),
            (1, false) => run(level, width, Unrolled::<_, _, 1, 0>(direct)),
            (2, false) => run(level, width, Unrolled::<_, _, 2, 0>(direct)),
            _ => run(level, width, Unrolled::<_, _, 0, 0>(direct)),
        }
    }
}

struct Unrolled<'a, C, W, const M: usize, const LEN: usize>(Direct<'a, C, W>);

impl<C: Code, W: Value, const M: usize, const LEN: usize> Kernel for Unrolled<'_, C, W, M, LEN> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Direct {
            scales, y, out_group, ..
        } = self.0;
        let d = Direct { y: &mut [], ..self.0 };
        let whole = scales.len() / ROWS * ROWS;
        let block_codes = ROWS * d.in_groups * d.codewords.codebooks;
        for a in 0..out_group {
            for row in (0..whole).step_by(ROWS) {
                // Prefetches the next rows' codes: each row is its own stream, too short for the hardware
                // prefetcher.
                let next = (row / ROWS + 1) * block_codes;
                prefetch(d.codes.get(next..next + block_codes).unwrap_or_default());
                // SAFETY: rows row..row+ROWS exist.
                let dots = unsafe { dots::<V, C, W, M, LEN, ROWS>(&d, row, a) };
                for (r, dot) in dots.into_iter().enumerate() {
                    y[(row + r) * out_group + a] = scales[row + r] * dot;
                }
            }
            for row in whole..scales.len() {
                // SAFETY: row `row` exists.
                let [dot] = unsafe { dots::<V, C, W, M, LEN, 1>(&d, row, a) };
                y[row * out_group + a] = scales[row] * dot;
            }
        }
    }
}

/// Row `a` of output groups `row..row + R`, unscaled, times x. The order of a row's sum does not depend on R.
///
/// # Safety
/// The rows exist, and V's instructions are available.
#[inline(always)]
unsafe fn dots<V: Vector, C: Code, W: Value, const M: usize, const LEN: usize, const R: usize>(
    d: &Direct<'_, C, W>,
    row: usize,
    a: usize,
) -> [f32; R] {
    let codebooks = if M == 0 { d.codewords.codebooks } else { M };
    let padded = if LEN == 0 { d.padded_group } else { LEN };
    let row_codes = d.in_groups * codebooks;
    let first = if LEN == 0 { a * padded } else { 0 };
    // SAFETY: `matvec` checked the lengths that bound all of these.
    unsafe {
        let mut sums = [V::splat(0.0); R];
        let mut codes: [*const C; R] = std::array::from_fn(|r| d.codes.as_ptr().add((row + r) * row_codes));
        let mut x = d.x.as_ptr();
        for _ in 0..d.in_groups {
            for at in (0..padded).step_by(V::LANES) {
                let inputs = V::load(x.add(at));
                for r in 0..R {
                    let weight: V = d.codewords.sum::<V, C, M, LEN, 1>(codes[r], first + at);
                    sums[r] = weight.mul_add(inputs, sums[r]);
                }
            }
            for code in &mut codes {
                *code = code.add(codebooks);
            }
            x = x.add(padded);
        }
        sums.map(|sum| sum.sum())
    }
}
