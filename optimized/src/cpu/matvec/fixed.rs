//! Look-up tables in fixed point: byte planes that AVX-512 VBMI looks up 64 at a time, and a portable
//! equivalent.
//!
//! An entry t of a block's tables is stored as the unsigned integer round(t / step) + bias of P bytes, one
//! byte in each of P planes. `step` is a power of two, shared by the block, so that values which are exact
//! multiples of it stay exact. Sums over the block are integers: exact, in any order.

use crate::cpu::layout::TILE;
use crate::cpu::simd::SimdLevel;

/// The tables of one block in fixed point.
pub(super) struct FixedTables<'a> {
    /// [look-ups, planes, table length], the lowest byte first
    pub(super) planes: &'a [u8],
    /// value of one unit
    pub(super) step: f32,
}

/// Half the range of an entry of `planes` bytes: what is added to make it unsigned.
pub(super) fn bias(planes: usize) -> i32 {
    1 << (8 * planes - 1)
}

/// The smallest power of two that keeps round(t / step) within the signed range for |t| <= `largest`.
///
/// NaN when `largest` is not finite, so that the product becomes NaN rather than a wrong number; never below
/// 2^-120, where a quotient could overflow.
pub(super) fn step(largest: f32, planes: usize) -> f32 {
    if !largest.is_finite() {
        return f32::NAN;
    }
    let bits = 8 * planes as i32 - 1;
    let exponent = ((largest.to_bits() >> 23) as i32 - 127 + 1 - bits).max(-120);
    let step = f32::from_bits(((exponent + 127) << 23) as u32);
    // largest / step is below 2^bits, but may round up to it.
    if (largest / step).round_ties_even() >= bias(planes) as f32 {
        2.0 * step
    } else {
        step
    }
}

/// [`step`] for the largest magnitude in `tables`; NaN when one of them is not finite.
#[inline(always)]
pub(super) fn common_step(tables: &[f32], planes: usize) -> f32 {
    // NaN must not get lost: `f32::max` ignores it, an integer maximum of the bits does not.
    let largest = tables
        .iter()
        .fold(0, |largest, t| largest.max(t.to_bits() & 0x7fff_ffff));
    step(f32::from_bits(largest), planes)
}

/// Rounds f32 tables to `planes` bytes; returns the step. `target` is [look-ups, planes, table length].
pub(super) fn round(
    level: SimdLevel,
    tables: &[f32],
    table_len: usize,
    planes: usize,
    target: &mut [u8],
) -> f32 {
    assert_eq!(target.len(), tables.len() * planes);
    assert!(table_len.is_multiple_of(16) && tables.len().is_multiple_of(table_len));
    #[cfg(target_arch = "x86_64")]
    if level == SimdLevel::Avx512 {
        // SAFETY: the level was checked when the matrix was packed.
        return unsafe { super::permute::round(tables, table_len, planes, target) };
    }
    let _ = level;
    let step = common_step(tables, planes);
    if step.is_nan() {
        target.fill(0);
        return step;
    }
    let (inverse, bias) = (1.0 / step, bias(planes));
    for (table, target) in tables
        .chunks_exact(table_len)
        .zip(target.chunks_exact_mut(table_len * planes))
    {
        for (plane, target) in target.chunks_exact_mut(table_len).enumerate() {
            for (target, t) in target.iter_mut().zip(table) {
                let integer = (t * inverse).round_ties_even() as i32;
                *target = ((integer + bias) >> (8 * plane)) as u8;
            }
        }
    }
    step
}

/// Adds one block's share to `sums` ([tiles, 64]); `codes` are the block's, [tiles, look-ups, 64].
pub(super) fn look_up(
    level: SimdLevel,
    table_len: usize,
    planes: usize,
    tables: &FixedTables<'_>,
    codes: &[u8],
    sums: &mut [f32],
) {
    let lookups = tables.planes.len() / (table_len * planes);
    assert_eq!(tables.planes.len() % (table_len * planes), 0);
    assert_eq!(codes.len(), sums.len() * lookups);
    assert_eq!(sums.len() % TILE, 0);
    #[cfg(target_arch = "x86_64")]
    if level == SimdLevel::Avx512 {
        // SAFETY: lengths were just checked; the level, and that codes are below 2^B, when the matrix was
        // packed.
        return unsafe { super::permute::look_up(table_len, planes, tables, codes, sums) };
    }
    let _ = level;
    look_up_portable(table_len, planes, tables, codes, sums);
}

fn look_up_portable(
    table_len: usize,
    planes: usize,
    tables: &FixedTables<'_>,
    codes: &[u8],
    sums: &mut [f32],
) {
    let lookups = tables.planes.len() / (table_len * planes);
    let offset = bias(planes) * lookups as i32;
    for (sums, codes) in sums
        .chunks_exact_mut(TILE)
        .zip(codes.chunks_exact(TILE * lookups))
    {
        let mut totals = [0; TILE];
        for (codes, table) in codes
            .chunks_exact(TILE)
            .zip(tables.planes.chunks_exact(table_len * planes))
        {
            for (plane, bytes) in table.chunks_exact(table_len).enumerate() {
                for (total, &code) in totals.iter_mut().zip(codes) {
                    *total += i32::from(bytes[usize::from(code)]) << (8 * plane);
                }
            }
        }
        for (byte, total) in totals.into_iter().enumerate() {
            let row = 16 * (byte % 4) + byte / 4;
            sums[row] = ((total - offset) as f32).mul_add(tables.step, sums[row]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_the_smallest_that_fit() {
        for planes in 1..=3 {
            let limit = bias(planes) as f32;
            for largest in [1.0f32, 1.0 - f32::EPSILON / 2.0, 3.7e-5, 123.456, 1.0e30] {
                let step = step(largest, planes);
                assert_eq!(step.to_bits() & 0x7f_ffff, 0, "a power of two");
                assert!((largest / step).round_ties_even() < limit);
                assert!(
                    (largest / (step / 2.0)).round_ties_even() >= limit,
                    "{largest} {planes}"
                );
            }
            assert!(step(f32::NAN, planes).is_nan());
            assert!(step(f32::INFINITY, planes).is_nan());
            assert!(step(0.0, planes) > 0.0);
        }
    }

    #[test]
    fn entries_round_to_the_nearest_step() {
        let tables: Vec<f32> = (0..128).map(|i| (i as f32 * 1.3).sin() * 5.0).collect();
        for planes in 1..=3 {
            let mut bytes = vec![0; 128 * planes];
            let step = round(SimdLevel::Portable, &tables, 64, planes, &mut bytes);
            for level in SimdLevel::available() {
                let mut same = vec![0; bytes.len()];
                assert_eq!(round(level, &tables, 64, planes, &mut same), step);
                assert_eq!(same, bytes, "{level}");
            }
            for (i, &t) in tables.iter().enumerate() {
                let stored: i32 = (0..planes)
                    .map(|p| i32::from(bytes[(i / 64 * planes + p) * 64 + i % 64]) << (8 * p))
                    .sum();
                let value = f64::from(stored - bias(planes)) * f64::from(step);
                assert!((value - f64::from(t)).abs() <= f64::from(step) / 2.0);
            }
        }
    }
}
