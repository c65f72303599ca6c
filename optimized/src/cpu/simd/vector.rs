//! f32 vectors behind one trait, so that a kernel is written once.

use crate::cpu::vectorize::multiply_add;

/// A vector of f32 lanes.
///
/// # Safety
/// Methods may only be called where the implementing type's instructions are available. Pointers must be
/// valid for [`Vector::LANES`] elements (f32, or f16 as u16) and need no alignment.
pub(crate) unsafe trait Vector: Copy {
    /// Lanes: 8 or 16.
    const LANES: usize;
    /// Whether [`Vector::mul_add`] rounds once.
    const FUSED: bool;
    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self;
    /// Consecutive f32.
    unsafe fn load(source: *const f32) -> Self;
    /// Consecutive f16, widened.
    unsafe fn load_f16(source: *const u16) -> Self;
    /// Stores to consecutive f32.
    unsafe fn store(self, target: *mut f32);
    /// Lane by lane.
    unsafe fn add(self, other: Self) -> Self;
    /// Lane by lane.
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + term`; fused except in [`Portable`].
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The sum over lanes, in a fixed order.
    unsafe fn sum(self) -> f32;
    /// Lane by lane the smaller value; no lane may be NaN.
    unsafe fn lesser(self, other: Self) -> Self;
    /// The minimum over lanes; no lane may be NaN.
    unsafe fn least(self) -> f32;
    /// `yes` in the lanes where `self < bound`, `no` in the others, including those with NaN.
    unsafe fn pick_below(self, bound: Self, yes: Self, no: Self) -> Self;
    /// `yes` in the lanes where `self == other`, `no` in the others.
    unsafe fn pick_equal(self, other: Self, yes: Self, no: Self) -> Self;
    /// One bit for each lane, the first lane lowest: whether `self < bound`.
    unsafe fn below(self, bound: Self) -> u32;
    /// `table[codes[4 lane + byte]]` for every lane; `byte` is 0 to 3.
    unsafe fn look_up(table: *const f32, codes: *const u8, byte: usize) -> Self;
}

/// a b + c, rounded as the vectors of V round it.
#[inline(always)]
pub(crate) fn multiply_add_by<V: Vector>(a: f32, b: f32, c: f32) -> f32 {
    if V::FUSED {
        multiply_add::<true>(a, b, c)
    } else {
        multiply_add::<false>(a, b, c)
    }
}

/// 0, 1, 2, …: a number for each lane of the widest vector.
pub(crate) const LANE_NUMBERS: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
];

/// Eight lanes of plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

// SAFETY: needs no instructions beyond the baseline.
unsafe impl Vector for Portable {
    const LANES: usize = 8;
    const FUSED: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: valid for 8 elements by the trait's contract.
        Self(unsafe { source.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16(source: *const u16) -> Self {
        // SAFETY: valid for 8 elements by the trait's contract.
        let bits = unsafe { source.cast::<[u16; 8]>().read_unaligned() };
        // Shifts exponent and mantissa into place, then multiplies by 2^112 for the difference in bias. This
        // is exact for every finite f16, subnormal ones included, and a compiler can vectorise it. Packed
        // codebooks are finite.
        Self(bits.map(|bits| {
            let magnitude =
                f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
            f32::from_bits(magnitude.to_bits() | (u32::from(bits & 0x8000) << 16))
        }))
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: valid for 8 elements by the trait's contract.
        unsafe { target.cast::<[f32; 8]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a += b;
        }
        self
    }

    #[inline(always)]
    unsafe fn mul(mut self, other: Self) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a *= b;
        }
        self
    }

    #[inline(always)]
    unsafe fn mul_add(mut self, factor: Self, term: Self) -> Self {
        // Two roundings on purpose: `f32::mul_add` is a library call if the baseline has no FMA.
        for ((a, b), c) in self.0.iter_mut().zip(factor.0).zip(term.0) {
            *a = *a * b + c;
        }
        self
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    unsafe fn lesser(mut self, other: Self) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a = if b < *a { b } else { *a };
        }
        self
    }

    #[inline(always)]
    unsafe fn least(self) -> f32 {
        self.0.into_iter().fold(f32::INFINITY, f32::min)
    }

    #[inline(always)]
    unsafe fn pick_below(self, bound: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|l| {
            if self.0[l] < bound.0[l] { yes.0[l] } else { no.0[l] }
        }))
    }

    #[inline(always)]
    unsafe fn pick_equal(self, other: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|l| {
            if self.0[l] == other.0[l] {
                yes.0[l]
            } else {
                no.0[l]
            }
        }))
    }

    #[inline(always)]
    unsafe fn below(self, bound: Self) -> u32 {
        let bits = |l: usize| u32::from(self.0[l] < bound.0[l]) << l;
        (0..8).map(bits).sum()
    }

    #[inline(always)]
    unsafe fn look_up(table: *const f32, codes: *const u8, byte: usize) -> Self {
        let mut lanes = [0.0; 8];
        for (lane, value) in lanes.iter_mut().enumerate() {
            // SAFETY: 32 codes, and a table that covers them, by the trait's contract.
            *value = unsafe { *table.add(usize::from(*codes.add(4 * lane + byte))) };
        }
        Self(lanes)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;

    use crate::cpu::simd::vector::Vector;

    /// Eight lanes of AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    // SAFETY (whole block): the trait's contract gives the instructions and the pointers.
    #[allow(clippy::undocumented_unsafe_blocks)]
    unsafe impl Vector for Avx2 {
        const LANES: usize = 8;
        const FUSED: bool = true;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(source: *const f32) -> Self {
            Self(unsafe { _mm256_loadu_ps(source) })
        }

        #[inline(always)]
        unsafe fn load_f16(source: *const u16) -> Self {
            Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(source.cast())) })
        }

        #[inline(always)]
        unsafe fn store(self, target: *mut f32) {
            unsafe { _mm256_storeu_ps(target, self.0) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
            Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        unsafe fn lesser(self, other: Self) -> Self {
            Self(unsafe { _mm256_min_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn least(self) -> f32 {
            unsafe {
                let four = _mm_min_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        unsafe fn pick_below(self, bound: Self, yes: Self, no: Self) -> Self {
            unsafe {
                let below = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0);
                Self(_mm256_blendv_ps(no.0, yes.0, below))
            }
        }

        #[inline(always)]
        unsafe fn pick_equal(self, other: Self, yes: Self, no: Self) -> Self {
            unsafe {
                let equal = _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0);
                Self(_mm256_blendv_ps(no.0, yes.0, equal))
            }
        }

        #[inline(always)]
        unsafe fn below(self, bound: Self) -> u32 {
            unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0)) as u32 }
        }

        #[inline(always)]
        unsafe fn look_up(table: *const f32, codes: *const u8, byte: usize) -> Self {
            unsafe {
                let words = _mm256_loadu_si256(codes.cast());
                let shifted = _mm256_srl_epi32(words, _mm_cvtsi32_si128((8 * byte) as i32));
                let index = _mm256_and_si256(shifted, _mm256_set1_epi32(255));
                Self(_mm256_i32gather_ps::<4>(table, index))
            }
        }
    }

    /// Sixteen lanes of AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    // SAFETY (whole block): the trait's contract gives the instructions and the pointers.
    #[allow(clippy::undocumented_unsafe_blocks)]
    unsafe impl Vector for Avx512 {
        const LANES: usize = 16;
        const FUSED: bool = true;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(source: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(source) })
        }

        #[inline(always)]
        unsafe fn load_f16(source: *const u16) -> Self {
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.cast())) })
        }

        #[inline(always)]
        unsafe fn store(self, target: *mut f32) {
            unsafe { _mm512_storeu_ps(target, self.0) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe {
                let low = _mm512_castps512_ps256(self.0);
                let high = _mm512_extractf32x8_ps::<1>(self.0);
                Avx2(_mm256_add_ps(low, high)).sum()
            }
        }

        #[inline(always)]
        unsafe fn lesser(self, other: Self) -> Self {
            Self(unsafe { _mm512_min_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn least(self) -> f32 {
            unsafe {
                let low = _mm512_castps512_ps256(self.0);
                let high = _mm512_extractf32x8_ps::<1>(self.0);
                Avx2(_mm256_min_ps(low, high)).least()
            }
        }

        #[inline(always)]
        unsafe fn pick_below(self, bound: Self, yes: Self, no: Self) -> Self {
            unsafe {
                let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0);
                Self(_mm512_mask_blend_ps(below, no.0, yes.0))
            }
        }

        #[inline(always)]
        unsafe fn pick_equal(self, other: Self, yes: Self, no: Self) -> Self {
            unsafe {
                let equal = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0);
                Self(_mm512_mask_blend_ps(equal, no.0, yes.0))
            }
        }

        #[inline(always)]
        unsafe fn below(self, bound: Self) -> u32 {
            unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0)) }
        }

        #[inline(always)]
        unsafe fn look_up(table: *const f32, codes: *const u8, byte: usize) -> Self {
            unsafe {
                let words = _mm512_loadu_si512(codes.cast());
                let shifted = _mm512_srl_epi32(words, _mm_cvtsi32_si128((8 * byte) as i32));
                let index = _mm512_and_si512(shifted, _mm512_set1_epi32(255));
                Self(_mm512_i32gather_ps::<4>(index, table))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    #[allow(clippy::wildcard_imports)]
    use std::arch::aarch64::*;

    use crate::cpu::simd::vector::Vector;

    /// Eight lanes in two registers of NEON, which every 64-bit ARM has.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon(float32x4_t, float32x4_t);

    // SAFETY (whole block): NEON is part of aarch64's baseline, and the trait's contract gives the pointers.
    #[allow(clippy::undocumented_unsafe_blocks)]
    unsafe impl Vector for Neon {
        const LANES: usize = 8;
        const FUSED: bool = true;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Self(vdupq_n_f32(value), vdupq_n_f32(value)) }
        }

        #[inline(always)]
        unsafe fn load(source: *const f32) -> Self {
            unsafe { Self(vld1q_f32(source), vld1q_f32(source.add(4))) }
        }

        #[inline(always)]
        unsafe fn load_f16(source: *const u16) -> Self {
            // The f16 intrinsics are not stable. Widening by integer operations is exact for every f16,
            // subnormal ones included: shift exponent and mantissa into place, then scale by 2^112 to move
            // the bias.
            unsafe {
                let bits = vld1q_u16(source);
                let widen = |half: uint16x4_t| {
                    let word = vmovl_u16(half);
                    let sign = vshlq_n_u32::<16>(vandq_u32(word, vdupq_n_u32(0x8000)));
                    let magnitude = vshlq_n_u32::<13>(vandq_u32(word, vdupq_n_u32(0x7fff)));
                    let scaled = vmulq_f32(
                        vreinterpretq_f32_u32(magnitude),
                        vdupq_n_f32(f32::from_bits((127 + 112) << 23)),
                    );
                    vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(scaled), sign))
                };
                Self(widen(vget_low_u16(bits)), widen(vget_high_u16(bits)))
            }
        }

        #[inline(always)]
        unsafe fn store(self, target: *mut f32) {
            unsafe {
                vst1q_f32(target, self.0);
                vst1q_f32(target.add(4), self.1);
            }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Self(vaddq_f32(self.0, other.0), vaddq_f32(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Self(vmulq_f32(self.0, other.0), vmulq_f32(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
            unsafe {
                Self(
                    vfmaq_f32(term.0, self.0, factor.0),
                    vfmaq_f32(term.1, self.1, factor.1),
                )
            }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { vaddvq_f32(vaddq_f32(self.0, self.1)) }
        }

        #[inline(always)]
        unsafe fn lesser(self, other: Self) -> Self {
            unsafe { Self(vminq_f32(self.0, other.0), vminq_f32(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn least(self) -> f32 {
            unsafe { vminvq_f32(vminq_f32(self.0, self.1)) }
        }

        #[inline(always)]
        unsafe fn pick_below(self, bound: Self, yes: Self, no: Self) -> Self {
            unsafe {
                Self(
                    vbslq_f32(vcltq_f32(self.0, bound.0), yes.0, no.0),
                    vbslq_f32(vcltq_f32(self.1, bound.1), yes.1, no.1),
                )
            }
        }

        #[inline(always)]
        unsafe fn pick_equal(self, other: Self, yes: Self, no: Self) -> Self {
            unsafe {
                Self(
                    vbslq_f32(vceqq_f32(self.0, other.0), yes.0, no.0),
                    vbslq_f32(vceqq_f32(self.1, other.1), yes.1, no.1),
                )
            }
        }

        #[inline(always)]
        unsafe fn below(self, bound: Self) -> u32 {
            const BITS: [u32; 4] = [1, 2, 4, 8];
            unsafe {
                let bits = vld1q_u32(BITS.as_ptr());
                let low = vaddvq_u32(vandq_u32(vcltq_f32(self.0, bound.0), bits));
                let high = vaddvq_u32(vandq_u32(vcltq_f32(self.1, bound.1), bits));
                low | high << 4
            }
        }

        #[inline(always)]
        unsafe fn look_up(table: *const f32, codes: *const u8, byte: usize) -> Self {
            let mut lanes = [0.0; 8];
            unsafe {
                for (lane, value) in lanes.iter_mut().enumerate() {
                    *value = *table.add(usize::from(*codes.add(4 * lane + byte)));
                }
                Self::load(lanes.as_ptr())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Kernel, SimdLevel, Width, run};

    /// Widens 16 f16.
    struct Widen([u16; 16]);

    impl Kernel for Widen {
        type Output = [f32; 16];

        #[inline(always)]
        unsafe fn run<V: Vector>(self) -> [f32; 16] {
            let mut wide = [f32::NAN; 16];
            for at in (0..16).step_by(V::LANES) {
                // SAFETY: 16 is a multiple of LANES, and the caller has V's instructions.
                unsafe { V::load_f16(self.0.as_ptr().add(at)).store(wide.as_mut_ptr().add(at)) };
            }
            wide
        }
    }

    /// The results of the comparing operations on 16 pairs.
    struct Compare([f32; 16], [f32; 16]);

    impl Kernel for Compare {
        /// (a < b ? a : -1, a == b ? a : -1, bits of a < b, least of b)
        type Output = ([f32; 16], [f32; 16], u32, f32);

        #[inline(always)]
        unsafe fn run<V: Vector>(self) -> Self::Output {
            let (mut below, mut equal, mut bits, mut least) =
                ([f32::NAN; 16], [f32::NAN; 16], 0, f32::INFINITY);
            for at in (0..16).step_by(V::LANES) {
                // SAFETY: 16 is a multiple of LANES, and the caller has V's instructions.
                unsafe {
                    let (a, b) = (V::load(self.0.as_ptr().add(at)), V::load(self.1.as_ptr().add(at)));
                    a.pick_below(b, a, V::splat(-1.0))
                        .store(below.as_mut_ptr().add(at));
                    a.pick_equal(b, a, V::splat(-1.0))
                        .store(equal.as_mut_ptr().add(at));
                    bits |= a.below(b) << at;
                    least = least.min(b.least());
                }
            }
            (below, equal, bits, least)
        }
    }

    #[test]
    fn comparisons_agree_lane_by_lane() {
        let a: [f32; 16] = std::array::from_fn(|l| if l == 3 { f32::NAN } else { (l * 7 % 5) as f32 });
        let b: [f32; 16] =
            std::array::from_fn(|l| (l * 11 % 6) as f32 + 0.5 * f32::from(u8::from(l % 3 == 0)));
        let expected = (
            std::array::from_fn(|l| if a[l] < b[l] { a[l] } else { -1.0 }),
            std::array::from_fn(|l| if a[l] == b[l] { a[l] } else { -1.0 }),
            (0..16).map(|l| u32::from(a[l] < b[l]) << l).sum(),
            b.into_iter().fold(f32::INFINITY, f32::min),
        );
        for level in SimdLevel::available() {
            for width in [Width::Eight, Width::Sixteen] {
                // SAFETY: the level is available, and Compare has no other requirement.
                assert_eq!(unsafe { run(level, width, Compare(a, b)) }, expected, "{level}");
            }
        }
    }

    #[test]
    fn every_finite_f16_widens_exactly() {
        for level in SimdLevel::available() {
            for start in (0..=u16::MAX).step_by(16) {
                let bits: [u16; 16] = std::array::from_fn(|i| start + i as u16);
                if !half::f16::from_bits(start).is_finite() {
                    continue;
                }
                let expected = bits.map(|bits| half::f16::from_bits(bits).to_f32().to_bits());
                for width in [Width::Eight, Width::Sixteen] {
                    // SAFETY: the level is available, and Widen has no other requirement.
                    let wide = unsafe { run(level, width, Widen(bits)) };
                    assert_eq!(wide.map(f32::to_bits), expected, "{level} {start:#x}");
                }
            }
        }
    }
}
