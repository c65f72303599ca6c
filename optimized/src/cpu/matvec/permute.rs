//! Look-ups in byte planes by AVX-512 VBMI's `vpermb`: 64 rows at a time, no memory access per code.
//!
//! A table plane of 256 bytes is four registers. A code's low six bits select within each register, its high
//! two bits (as masks) select among the four. Bytes are added into 16-bit sums of even and odd byte
//! positions. 64 look-ups in a plane take four `vpermb` (which only one unit executes, one per cycle) and
//! four cheap operations.

#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::fixed_tables::{FixedTables, bias, common_step};
use crate::cpu::layout::TILE;

/// Prefetch distance in bytes of codes: 64 cache lines, about the latency of memory.
const PREFETCH: usize = 4096;

/// Rounds f32 tables to byte planes, 16 entries at a time, and returns the step. Gives the same bytes as the
/// portable form.
///
/// # Safety
/// The machine has `SimdLevel::Avx512`, `table_len` is a multiple of 16 that divides the tables' length, and
/// `target` is [look-ups, planes, table_len].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(super) unsafe fn round(tables: &[f32], table_len: usize, planes: usize, target: &mut [u8]) -> f32 {
    let step = common_step(tables, planes);
    if step.is_nan() {
        target.fill(0);
        return step;
    }
    let inverse = _mm512_set1_ps(1.0 / step);
    let bias = _mm512_set1_epi32(bias(planes));
    let tables = tables.chunks_exact(table_len);
    for (table, target) in tables.zip(target.chunks_exact_mut(table_len * planes)) {
        for k in (0..table_len).step_by(16) {
            // SAFETY: the contract covers 16 entries of the table, and 16 bytes of each of its planes.
            unsafe {
                let entries = _mm512_mul_ps(_mm512_loadu_ps(table.as_ptr().add(k)), inverse);
                // To nearest, ties to even: Rust code always runs in this mode.
                let mut integers = _mm512_add_epi32(_mm512_cvtps_epi32(entries), bias);
                for plane in 0..planes {
                    let bytes = _mm512_cvtepi32_epi8(integers);
                    _mm_storeu_si128(target.as_mut_ptr().add(plane * table_len + k).cast(), bytes);
                    integers = _mm512_srli_epi32::<8>(integers);
                }
            }
        }
    }
    step
}

/// Adds one block's contribution to `sums`.
///
/// # Safety
/// The machine has `SimdLevel::Avx512`; `tables.planes` is [look-ups, planes, table_len] with table_len 64,
/// 128 or 256 and at most 257 look-ups, `codes` is [tiles, look-ups, 64] with codes below table_len, and
/// `sums` [tiles, 64].
pub(super) unsafe fn look_up(
    table_len: usize,
    planes: usize,
    tables: &FixedTables<'_>,
    codes: &[u8],
    sums: &mut [f32],
) {
    // SAFETY: the same contract.
    unsafe {
        match (planes, table_len) {
            (1, 64) => look_up_in::<1, 1>(tables, codes, sums),
            (1, 128) => look_up_in::<1, 2>(tables, codes, sums),
            (1, _) => look_up_in::<1, 4>(tables, codes, sums),
            (2, 64) => look_up_in::<2, 1>(tables, codes, sums),
            (2, 128) => look_up_in::<2, 2>(tables, codes, sums),
            (2, _) => look_up_in::<2, 4>(tables, codes, sums),
            (_, 64) => look_up_in::<3, 1>(tables, codes, sums),
            (_, 128) => look_up_in::<3, 2>(tables, codes, sums),
            _ => look_up_in::<3, 4>(tables, codes, sums),
        }
    }
}

/// `look_up` for P planes and tables of R registers.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn look_up_in<const P: usize, const R: usize>(
    tables: &FixedTables<'_>,
    codes: &[u8],
    sums: &mut [f32],
) {
    let lookups = tables.planes.len() / (P * R * TILE);
    let low_byte = _mm512_set1_epi16(0x00ff);
    let low_half = _mm512_set1_epi32(0xffff);
    let offset = _mm512_set1_epi32(((lookups as i64) << (8 * P - 1)) as i32);
    let step = _mm512_set1_ps(tables.step);
    let mut codes = codes.as_ptr();
    for sums in sums.chunks_exact_mut(TILE) {
        let mut even = [_mm512_setzero_si512(); P];
        let mut odd = [_mm512_setzero_si512(); P];
        let mut table = tables.planes.as_ptr();
        for _ in 0..lookups {
            // The codes are read once, in order, and faster than the hardware prefetcher can follow.
            _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(PREFETCH).cast());
            // SAFETY: the contract keeps this inside `codes`.
            let index = unsafe { _mm512_loadu_si512(codes.cast()) };
            // Bits 7 and 6 of each code as masks that select the register among four (or bit 6 alone, among
            // two).
            let bit7 = _mm512_movepi8_mask(index);
            let bit6 = _mm512_movepi8_mask(_mm512_add_epi8(index, index));
            for p in 0..P {
                // SAFETY: the contract keeps this inside `tables.planes`.
                let register = |r: usize| unsafe { _mm512_loadu_si512(table.add((p * R + r) * TILE).cast()) };
                let mut bytes = _mm512_permutexvar_epi8(index, register(0));
                if R >= 2 {
                    let mask = if R == 4 { !bit7 & bit6 } else { bit6 };
                    bytes = _mm512_mask_permutexvar_epi8(bytes, mask, index, register(1));
                }
                if R == 4 {
                    bytes = _mm512_mask_permutexvar_epi8(bytes, bit7 & !bit6, index, register(2));
                    bytes = _mm512_mask_permutexvar_epi8(bytes, bit7 & bit6, index, register(3));
                }
                even[p] = _mm512_add_epi16(even[p], _mm512_and_si512(bytes, low_byte));
                odd[p] = _mm512_add_epi16(odd[p], _mm512_srli_epi16::<8>(bytes));
            }
            // SAFETY: at most one past the end.
            unsafe {
                codes = codes.add(TILE);
                table = table.add(P * R * TILE);
            }
        }
        // Byte 4 i + c of a tile is row 16 c + i: four vectors of 16 rows.
        for c in 0..4 {
            let mut total = _mm512_setzero_si512();
            for p in (0..P).rev() {
                let halves = if c % 2 == 0 { even[p] } else { odd[p] };
                let part = if c / 2 == 0 {
                    _mm512_and_si512(halves, low_half)
                } else {
                    _mm512_srli_epi32::<16>(halves)
                };
                total = _mm512_add_epi32(_mm512_slli_epi32::<8>(total), part);
            }
            let value = _mm512_cvtepi32_ps(_mm512_sub_epi32(total, offset));
            // SAFETY: 16 of the tile's 64 sums.
            unsafe {
                let target = sums.as_mut_ptr().add(16 * c);
                _mm512_storeu_ps(target, _mm512_fmadd_ps(value, step, _mm512_loadu_ps(target)));
            }
        }
    }
}
