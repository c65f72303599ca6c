//! decode: codes, codebooks and scales to a dense f32 weight.

use std::ops::Range;

use aqlm_vocabulary::{AqlmError, Result};
use ndarray::Array2;
use rayon::prelude::*;

use super::layout::{Codebooks, Codes, PackedMatrix, TILE, TiledCodes, row_of_byte};
use super::matvec::expect_len;
use super::row_major::elements_mut;
use super::simd::vector::Vector;
use super::simd::{Kernel, SimdLevel, Width, prefetch, run};
use super::words::{Code, CodewordView, Value};

/// Output groups of one task: a whole tile, so that tiled codes are transposed only once.
const TASK: usize = TILE;

/// Blocks of codes that are fetched before they are joined: a few KiB.
const BLOCKS_AHEAD: usize = 4;

impl PackedMatrix {
    /// The dense weight, [out_features, in_features], on the current rayon pool.
    pub fn decode(&self) -> Array2<f32> {
        let (rows, columns) = (self.out_features(), self.in_features());
        let mut weight = Array2::zeros((rows, columns));
        let task = TASK * self.scheme.out_group_size * columns;
        if task > 0 {
            elements_mut(&mut weight)
                .par_chunks_mut(task)
                .enumerate()
                .for_each(|(index, target)| {
                    let first = index * TASK;
                    let last = (first + TASK).min(self.out_groups);
                    self.decode_groups(first..last, target);
                });
        }
        weight
    }

    /// Decodes some output groups on this thread into `target`, [groups x out_group_size, in_features], which
    /// is overwritten.
    ///
    /// # Errors
    /// `Shape` when `target` has another length or the groups end past the last.
    pub fn decode_into(&self, groups: Range<usize>, target: &mut [f32]) -> Result<()> {
        if groups.end > self.out_groups || groups.start > groups.end {
            return Err(AqlmError::Shape {
                what: "range of output groups".into(),
                expected: vec![0, self.out_groups],
                found: vec![groups.start, groups.end],
            });
        }
        let len = groups.len() * self.scheme.out_group_size * self.in_features();
        expect_len("decoded rows", len, target.len())?;
        self.decode_groups(groups, target);
        Ok(())
    }

    pub(crate) fn decode_groups(&self, groups: Range<usize>, target: &mut [f32]) {
        let row_codes = self.in_groups * self.scheme.num_codebooks;
        let range = groups.start * row_codes..groups.end * row_codes;
        let scales = &self.scales[groups.clone()];
        match &self.codes {
            Codes::Rows8(codes) => self.decode_rows(&codes.as_slice()[range], scales, target),
            Codes::Rows16(codes) => self.decode_rows(&codes.as_slice()[range], scales, target),
            Codes::Tiles(tiles) => {
                let codes = self.rows_of_tiles(tiles, groups);
                self.decode_rows(&codes, scales, target);
            }
        }
    }

    /// Codes of some output groups in row order, [groups, in_groups, M].
    fn rows_of_tiles(&self, tiles: &TiledCodes, groups: Range<usize>) -> Vec<u8> {
        let codebooks = self.scheme.num_codebooks;
        let row_codes = self.in_groups * codebooks;
        let mut rows = vec![0; groups.len() * row_codes];
        if groups.is_empty() {
            return rows;
        }
        let mut lines = vec![0; row_codes * TILE];
        for tile in groups.start / TILE..groups.end.div_ceil(TILE) {
            // A tile's blocks lie powers of two apart and would evict one another, so they are first joined.
            // The hardware does not foresee such jumps.
            let block = |group: usize| {
                let lookups = tiles.groups_per_block.min(self.in_groups - group) * codebooks;
                let offset = tiles.offset(self.in_groups, codebooks, group, 0, tile);
                &tiles.bytes.as_slice()[offset..offset + lookups * TILE]
            };
            for group in (0..self.in_groups).step_by(tiles.groups_per_block) {
                let ahead = group + BLOCKS_AHEAD * tiles.groups_per_block;
                if ahead < self.in_groups {
                    prefetch(block(ahead));
                }
                let codes = block(group);
                lines[group * codebooks * TILE..][..codes.len()].copy_from_slice(codes);
            }
            let first = groups.start.max(tile * TILE);
            let last = groups.end.min((tile + 1) * TILE);
            let rows = &mut rows[(first - groups.start) * row_codes..(last - groups.start) * row_codes];
            let wanted = first - tile * TILE..last - tile * TILE;
            // Rows, too, are often a power of two apart: only a few of them are written at a time.
            for bytes in (0..TILE).step_by(SIDE) {
                for (part, lines) in lines.chunks(SIDE * TILE).enumerate() {
                    transpose_lines(lines, bytes, &wanted, &mut rows[part * SIDE..], row_codes);
                }
            }
        }
        rows
    }

    fn decode_rows<C: Code>(&self, codes: &[C], scales: &[f32], target: &mut [f32]) {
        match &self.codebooks {
            Codebooks::F32(values) => {
                self.decode_with(codes, self.codewords(values.as_slice()), scales, target);
            }
            Codebooks::F16(bits) => self.decode_with(codes, self.codewords(bits.as_slice()), scales, target),
        }
    }

    fn decode_with<C: Code, W: Value>(
        &self,
        codes: &[C],
        codewords: CodewordView<'_, W>,
        scales: &[f32],
        target: &mut [f32],
    ) {
        let rows = DecodeRows {
            codes,
            codewords,
            scales,
            in_groups: self.in_groups,
            in_group: self.scheme.in_group_size,
            padded_group: self.padded_group,
            out_group: self.scheme.out_group_size,
            target,
        };
        decode(self.plan.level, rows);
    }
}

/// Look-ups, and output groups, that are transposed together: their codes fill eight words of 64 bits.
const SIDE: usize = 8;

/// Transposes eight bytes, from `bytes` on, of up to eight lines of a tile, [look-ups, 64], into the rows of
/// the `wanted` output groups, which are `stride` bytes apart. Byte by byte this took longer than decoding.
fn transpose_lines(lines: &[u8], bytes: usize, wanted: &Range<usize>, rows: &mut [u8], stride: usize) {
    let lookups = lines.len() / TILE;
    let mut square = [0; SIDE];
    for (line, word) in lines.chunks_exact(TILE).zip(&mut square) {
        let line = line[bytes..].first_chunk().expect("64 bytes, read in eighths");
        *word = u64::from_le_bytes(*line);
    }
    for (byte, codes) in (bytes..).zip(transposed(square)) {
        let row = row_of_byte(byte);
        if !wanted.contains(&row) {
            continue;
        }
        let row = &mut rows[(row - wanted.start) * stride..];
        let codes = codes.to_le_bytes();
        // a length known to the compiler is one store
        match row.first_chunk_mut() {
            Some(row) if lookups == SIDE => *row = codes,
            _ => row[..lookups].copy_from_slice(&codes[..lookups]),
        }
    }
}

/// Swaps blocks of four, two and one bytes across the diagonal; word i's byte j becomes word j's byte i
/// (Warren, Hacker's Delight, section 7-3, for bytes).
fn transposed(mut square: [u64; SIDE]) -> [u64; SIDE] {
    let masks = [
        (4, 0x0000_0000_ffff_ffff),
        (2, 0x0000_ffff_0000_ffff),
        (1, 0x00ff_00ff_00ff_00ff),
    ];
    for (size, low) in masks {
        let bits = 8 * size;
        for i in (0..SIDE).filter(|i| i & size == 0) {
            let swapped = ((square[i] >> bits) ^ square[i + size]) & low;
            square[i] ^= swapped << bits;
            square[i + size] ^= swapped;
        }
    }
    square
}

/// Some output groups of a matrix.
struct DecodeRows<'a, C, W> {
    /// [rows, in_groups, M]
    codes: &'a [C],
    codewords: CodewordView<'a, W>,
    /// `[rows]`
    scales: &'a [f32],
    in_groups: usize,
    in_group: usize,
    padded_group: usize,
    out_group: usize,
    /// [rows, out_group, in_groups, in_group]
    target: &'a mut [f32],
}

fn decode<C: Code, W: Value>(level: SimdLevel, rows: DecodeRows<'_, C, W>) {
    let d = &rows;
    assert_eq!(
        d.codes.len(),
        d.scales.len() * d.in_groups * d.codewords.codebooks
    );
    assert_eq!(
        d.target.len(),
        d.scales.len() * d.out_group * d.in_groups * d.in_group
    );
    let width = if d.padded_group.is_multiple_of(16) {
        Width::Sixteen
    } else {
        Width::Eight
    };
    let plain = d.codewords.codeword_len == 8 && d.in_group == 8;
    // SAFETY: lengths were just checked. Codes and level were checked when the matrix was packed.
    unsafe {
        match (d.codewords.codebooks, plain) {
            (1, true) => run(level, width, Unrolled::<_, _, 1, 8>(rows)),
            (2, true) => run(level, width, Unrolled::<_, _, 2, 8>(rows)),
            (4, true) => run(level, width, Unrolled::<_, _, 4, 8>(rows)),
            _ => run(level, width, Unrolled::<_, _, 0, 0>(rows)),
        }
    }
}

struct Unrolled<'a, C, W, const M: usize, const LEN: usize>(DecodeRows<'a, C, W>);

impl<C: Code, W: Value, const M: usize, const LEN: usize> Kernel for Unrolled<'_, C, W, M, LEN> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let d = self.0;
        let codebooks = if M == 0 { d.codewords.codebooks } else { M };
        let padded = if LEN == 0 { d.padded_group } else { LEN };
        let row_codes = d.in_groups * codebooks;
        let in_features = d.in_groups * d.in_group;
        if in_features == 0 {
            return;
        }
        let mut lanes = [0.0; 16];
        for (row, target) in d.target.chunks_exact_mut(in_features).enumerate() {
            let (group, a) = (row / d.out_group, row % d.out_group);
            // SAFETY: `decode` checked the lengths that bound codes and target.
            unsafe {
                let scale = V::splat(d.scales[group]);
                let mut codes = d.codes.as_ptr().add(group * row_codes);
                for target in target.chunks_exact_mut(d.in_group) {
                    for at in (0..padded).step_by(V::LANES) {
                        let sum: V = d.codewords.sum::<V, C, M, LEN>(codes, a * padded + at);
                        let weight = sum.mul(scale);
                        if LEN != 0 || at + V::LANES <= d.in_group {
                            weight.store(target.as_mut_ptr().add(at));
                        } else {
                            weight.store(lanes.as_mut_ptr());
                            let rest = d.in_group - at;
                            target[at..].copy_from_slice(&lanes[..rest]);
                        }
                    }
                    codes = codes.add(codebooks);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::layout::byte_of_row;

    #[test]
    fn lines_become_rows() {
        for (lookups, wanted, stride) in [(8, 0..64, 40), (8, 7..50, 8), (5, 0..64, 5), (1, 63..64, 3)] {
            let line = |lookup: usize, row: usize| (31 * lookup + 7 * row) as u8;
            let mut lines = vec![0; lookups * TILE];
            for (lookup, bytes) in lines.chunks_exact_mut(TILE).enumerate() {
                for row in 0..TILE {
                    bytes[byte_of_row(row)] = line(lookup, row);
                }
            }
            let mut rows = vec![255; (wanted.len() - 1) * stride + lookups];
            for bytes in (0..TILE).step_by(SIDE) {
                transpose_lines(&lines, bytes, &wanted, &mut rows, stride);
            }
            for (at, row) in wanted.clone().enumerate() {
                let found = &rows[at * stride..][..lookups];
                let expected: Vec<u8> = (0..lookups).map(|lookup| line(lookup, row)).collect();
                assert_eq!(found, expected, "{lookups} {wanted:?} {row}");
            }
            let between = rows.iter().enumerate().filter(|(at, _)| at % stride >= lookups);
            assert!(between.map(|(_, code)| code).all(|&code| code == 255));
        }
    }
}
