//! decode: codes, codebooks and scales to a dense f32 weight.

mod tiles;

use std::ops::Range;

use aqlm_vocabulary::{AqlmError, Result};
use ndarray::Array2;
use rayon::prelude::*;

use super::layout::{Codebooks, Codes, PackedMatrix, TILE};
use super::matvec::expect_len;
use super::row_major::elements_mut;
use super::simd::vector::Vector;
use super::simd::{Kernel, SimdLevel, Width, run};
use super::words::{Code, CodewordView, Value};

/// Output groups of one task: a whole tile, so that tiled codes are read only once.
const TASK: usize = TILE;

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
            Codes::Tiles(tiles) => match &self.codebooks {
                Codebooks::F32(values) => {
                    self.decode_tiles(tiles, groups, self.codewords(values.as_slice()), target);
                }
                Codebooks::F16(bits) => {
                    self.decode_tiles(tiles, groups, self.codewords(bits.as_slice()), target);
                }
            },
        }
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
                        let sum: V = d.codewords.sum::<V, C, M, LEN, 1>(codes, a * padded + at);
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
