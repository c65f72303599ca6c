//! Codes in tiles: the layout shared by matmul k2, k3 and k4 and decode k2 (kernels/tiles.cuh).

use aqlm_kernels::defines::tiles::{STEPS, TILE_ROWS};
use aqlm_vocabulary::{QuantizedMatrix, Scheme};
use rayon::prelude::*;

use super::operand::{bytes_of_u32, codebook_bytes, operand, scale_bytes};
use super::{Operand, Target};

/// Input groups of a unit.
pub(super) const UNIT_GROUPS: usize = 4 * STEPS;
/// Shared memory for copies of the codebooks, at most, so that stages of x fit beside them.
const CODEBOOK_LIMIT: usize = 131_072;
pub(super) const WARP: usize = 32;

/// Properties of a scheme that determine the layout of codes in tiles.
pub(super) struct Form {
    pub(super) m: usize,
    /// bits a code takes
    field: usize,
    /// 16-byte vectors of a codeword
    pub(super) vectors: usize,
    /// 4-byte words of a lane in a unit
    pub(super) words: usize,
    /// words that a lane loads at once
    part: usize,
    pub(super) units: usize,
    pub(super) tiles: usize,
    pub(super) codebook_bytes: usize,
    /// copies of the codebooks in shared memory
    pub(super) replicas: usize,
}

impl Form {
    pub(super) fn new(scheme: Scheme, out_features: usize, in_features: usize, target: &Target) -> Self {
        let m = scheme.num_codebooks;
        let field = if scheme.nbits <= 8 { 8 } else { 16 };
        let words = m * field / 8;
        let codebook_bytes = m * scheme.codebook_size() * scheme.in_group_size * 2;
        let limit = CODEBOOK_LIMIT.min(target.shared_bytes * 3 / 5);
        let replicas = [8, 4, 2, 1]
            .into_iter()
            .find(|replicas| replicas * codebook_bytes <= limit);
        Self {
            m,
            field,
            vectors: scheme.in_group_size / 8,
            words,
            part: [4, 2, 1]
                .into_iter()
                .find(|part| words.is_multiple_of(*part))
                .expect("1 divides all"),
            units: in_features.div_ceil(STEPS * 4 * scheme.in_group_size),
            tiles: out_features.div_ceil(TILE_ROWS),
            codebook_bytes,
            replicas: replicas.unwrap_or(0),
        }
    }

    pub(super) fn of(matrix: &QuantizedMatrix, target: &Target) -> Self {
        Self::new(
            matrix.scheme(),
            matrix.out_features(),
            matrix.in_features(),
            target,
        )
    }

    /// Codes in the order of the kernel's lanes.
    pub(super) fn codes(&self, matrix: &QuantizedMatrix) -> Vec<u8> {
        let (out_groups, in_groups) = matrix.groups();
        let tile_words = self.units * self.words * WARP;
        let mut words = vec![0_u32; self.tiles * tile_words];
        words
            .par_chunks_mut(tile_words)
            .enumerate()
            .for_each(|(tile, words)| {
                for g in 0..TILE_ROWS.min(out_groups - tile * TILE_ROWS) {
                    for group in 0..in_groups {
                        let (unit, step, t) = (group / (4 * STEPS), group / 4 % STEPS, group % 4);
                        for codebook in 0..self.m {
                            let code = u32::from(matrix.codes()[[tile * TILE_ROWS + g, group, codebook]]);
                            let bit = (step * self.m + codebook) * self.field;
                            let (word, lane) = (bit / 32, g * 4 + t);
                            let at = (unit * self.words + word / self.part * self.part) * WARP
                                + lane * self.part
                                + word % self.part;
                            words[at] |= code << (bit % 32);
                        }
                    }
                }
            });
        bytes_of_u32(&words)
    }

    /// The operands of matmul k2, k3 and decode k2.
    pub(super) fn operands(&self, matrix: &QuantizedMatrix) -> Vec<Operand> {
        vec![
            operand("codes", self.codes(matrix)),
            operand("codebooks", codebook_bytes(matrix)),
            operand("scales", scale_bytes(matrix)),
        ]
    }

    pub(super) fn defines(&self, scheme: Scheme) -> Vec<(&'static str, usize)> {
        vec![
            ("AQLM_M", self.m),
            ("AQLM_B", scheme.nbits as usize),
            ("AQLM_G", scheme.in_group_size),
            ("AQLM_REPLICAS", self.replicas),
        ]
    }
}
