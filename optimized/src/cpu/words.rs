//! The stored forms of codes and codewords, so that each kernel is written once for all of them.

use super::simd::vector::Vector;

/// A stored code.
pub(crate) trait Code: Copy + Send + Sync {
    /// As an index.
    fn index(self) -> usize;
}

impl Code for u8 {
    #[inline(always)]
    fn index(self) -> usize {
        usize::from(self)
    }
}

impl Code for u16 {
    #[inline(always)]
    fn index(self) -> usize {
        usize::from(self)
    }
}

/// A stored value of a codeword.
pub(crate) trait Value: Copy + Send + Sync {
    /// Consecutive values, widened to f32.
    ///
    /// # Safety
    /// As [`Vector::load`].
    unsafe fn load<V: Vector>(source: *const Self) -> V;
}

impl Value for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(source: *const Self) -> V {
        // SAFETY: the same contract.
        unsafe { V::load(source) }
    }
}

/// Bits of an f16.
impl Value for u16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(source: *const Self) -> V {
        // SAFETY: the same contract.
        unsafe { V::load_f16(source) }
    }
}

/// The layout of the codewords of all codebooks: [M, 2^B, out_group, padded_group].
#[derive(Clone, Copy)]
pub(crate) struct CodewordView<'a, W> {
    pub(crate) values: &'a [W],
    /// M
    pub(crate) codebooks: usize,
    /// values of one codebook
    pub(crate) codebook_len: usize,
    /// values of one codeword
    pub(crate) codeword_len: usize,
}

impl<W: Value> CodewordView<'_, W> {
    /// The sum over codebooks of LANES consecutive values, `at` values into each codeword. `M` and `LEN` are
    /// the number of codebooks and the codeword's length if known at compile time, else 0. The codes lie
    /// `STRIDE` apart.
    ///
    /// # Safety
    /// `codes` points at one valid code per codebook, `at + LANES <= codeword_len`, and V's instructions are
    /// available.
    #[inline(always)]
    pub(crate) unsafe fn sum<V: Vector, C: Code, const M: usize, const LEN: usize, const STRIDE: usize>(
        &self,
        codes: *const C,
        at: usize,
    ) -> V {
        let codebooks = if M == 0 { self.codebooks } else { M };
        let len = if LEN == 0 { self.codeword_len } else { LEN };
        // SAFETY: codes are below 2^B, checked when the matrix was packed, and `at` is in range by contract.
        unsafe {
            let base = self.values.as_ptr().add(at);
            let mut sum: V = W::load(base.add((*codes).index() * len));
            for m in 1..codebooks {
                let codeword = base.add(m * self.codebook_len + (*codes.add(m * STRIDE)).index() * len);
                sum = sum.add(W::load(codeword));
            }
            sum
        }
    }
}
