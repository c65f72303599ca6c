//! decode from the layout of look-up tables.
//!
//! A block of a tile, 16 look-ups of 64 output groups, is 1 KiB and stays in the first-level cache while each
//! of its output groups is decoded. So a code costs one load here as in the layout by rows, only with another
//! stride, and none of the time that transposing the codes first took (docs/cpu.md).

use std::ops::Range;

use crate::cpu::layout::{PackedMatrix, TILE, TiledCodes, byte_of_row};
use crate::cpu::simd::vector::Vector;
use crate::cpu::simd::{Kernel, Width, prefetch, run};
use crate::cpu::words::{CodewordView, Value};

/// Blocks of codes that are fetched ahead. The blocks of a tile lie far apart, which the hardware does not
/// foresee.
const BLOCKS_AHEAD: usize = 4;

impl PackedMatrix {
    /// Decodes the output groups `groups` of tiled codes into `target`, [groups x out_group_size,
    /// in_features].
    pub(super) fn decode_tiles<W: Value>(
        &self,
        tiles: &TiledCodes,
        groups: Range<usize>,
        codewords: CodewordView<'_, W>,
        target: &mut [f32],
    ) {
        let codebooks = self.scheme.num_codebooks;
        let row = self.scheme.out_group_size * self.in_features();
        assert_eq!(target.len(), groups.len() * row, "decoded rows");
        for tile in groups.start / TILE..groups.end.div_ceil(TILE) {
            let block = |group: usize| {
                let lookups = tiles.groups_per_block.min(self.in_groups - group) * codebooks;
                let offset = tiles.offset(self.in_groups, codebooks, group, 0, tile);
                &tiles.bytes.as_slice()[offset..offset + lookups * TILE]
            };
            let first = groups.start.max(tile * TILE);
            let last = groups.end.min((tile + 1) * TILE);
            let target = &mut target[(first - groups.start) * row..(last - groups.start) * row];
            for group in (0..self.in_groups).step_by(tiles.groups_per_block) {
                let ahead = group + BLOCKS_AHEAD * tiles.groups_per_block;
                if ahead < self.in_groups {
                    prefetch(block(ahead));
                }
                let part = Block {
                    codes: block(group),
                    first: first - tile * TILE,
                    codewords,
                    scales: &self.scales[first..last],
                    group,
                    in_features: self.in_features(),
                    in_group: self.scheme.in_group_size,
                    padded_group: self.padded_group,
                    out_group: self.scheme.out_group_size,
                    target,
                };
                part.decode(self);
            }
        }
    }
}

/// A block of input groups of a tile's output groups.
struct Block<'a, W> {
    /// [input groups of the block, M, 64]
    codes: &'a [u8],
    /// the first wanted output group of the tile
    first: usize,
    codewords: CodewordView<'a, W>,
    /// of the wanted output groups
    scales: &'a [f32],
    /// the block's first input group
    group: usize,
    in_features: usize,
    in_group: usize,
    padded_group: usize,
    out_group: usize,
    /// [wanted output groups, out_group, in_features]
    target: &'a mut [f32],
}

impl<W: Value> Block<'_, W> {
    fn decode(self, matrix: &PackedMatrix) {
        assert!(self.first + self.scales.len() <= TILE, "output groups of a tile");
        let width = if self.padded_group.is_multiple_of(16) {
            Width::Sixteen
        } else {
            Width::Eight
        };
        let plain = self.codewords.codeword_len == 8 && self.in_group == 8;
        let level = matrix.plan.level;
        // SAFETY: target holds the rows of all scales, checked by the caller. Codes and level were checked
        // when the matrix was packed.
        unsafe {
            match (self.codewords.codebooks, plain) {
                (1, true) => run(level, width, Unrolled::<_, 1, 8>(self)),
                (2, true) => run(level, width, Unrolled::<_, 2, 8>(self)),
                (4, true) => run(level, width, Unrolled::<_, 4, 8>(self)),
                _ => run(level, width, Unrolled::<_, 0, 0>(self)),
            }
        }
    }
}

/// M and the length of codewords if known at compile time, else 0.
struct Unrolled<'a, W, const M: usize, const LEN: usize>(Block<'a, W>);

impl<W: Value, const M: usize, const LEN: usize> Kernel for Unrolled<'_, W, M, LEN> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let d = self.0;
        let codebooks = if M == 0 { d.codewords.codebooks } else { M };
        let padded = if LEN == 0 { d.padded_group } else { LEN };
        let groups = d.codes.len() / (codebooks * TILE);
        let mut lanes = [0.0; 16];
        for (row, &scale) in d.scales.iter().enumerate() {
            let first = d.codes[byte_of_row(d.first + row)..].as_ptr();
            // SAFETY: V's instructions are available by contract.
            let scale = unsafe { V::splat(scale) };
            for a in 0..d.out_group {
                let start = (row * d.out_group + a) * d.in_features + d.group * d.in_group;
                let target = &mut d.target[start..start + groups * d.in_group];
                for (group, target) in target.chunks_exact_mut(d.in_group).enumerate() {
                    for at in (0..padded).step_by(V::LANES) {
                        // SAFETY: the codes of `groups` input groups lie in `codes`; `at` is within a
                        // codeword.
                        unsafe {
                            let codes = first.add(group * codebooks * TILE);
                            let sum: V = d.codewords.sum::<V, u8, M, LEN, TILE>(codes, a * padded + at);
                            let weight = sum.mul(scale);
                            if LEN != 0 || at + V::LANES <= d.in_group {
                                weight.store(target.as_mut_ptr().add(at));
                            } else {
                                weight.store(lanes.as_mut_ptr());
                                let rest = d.in_group - at;
                                target[at..].copy_from_slice(&lanes[..rest]);
                            }
                        }
                    }
                }
            }
        }
    }
}
