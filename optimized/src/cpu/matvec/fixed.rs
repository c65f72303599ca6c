//! Look-ups in fixed-point tables: 64 at a time by AVX-512 VBMI, and a portable equivalent.

use super::fixed_tables::{FixedTables, bias, common_step};
use crate::cpu::layout::TILE;
use crate::cpu::simd::SimdLevel;

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

/// Adds one block's contribution to `sums` ([tiles, 64]); `codes` are the block's, [tiles, look-ups, 64].
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
        // SAFETY: lengths were just checked. The level and the range of codes (below 2^B) were checked when
        // the matrix was packed.
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
