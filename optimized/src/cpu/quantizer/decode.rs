use aqlm_vocabulary::QuantizedMatrix;
use ndarray::Array2;
use rayon::prelude::*;

use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::zeroed::zeroed;

/// Output groups of one task.
const OUT_GROUPS: usize = 32;

/// The dense weight [out_features, in_features] in f32: element (o go + a, j gi + b) is
/// `scales[o] * sum_m codebooks[m, codes[o, j, m], a, b]` (paper section 3.1).
pub fn decode(matrix: &QuantizedMatrix) -> Array2<f32> {
    let mut weight = zeroed((matrix.out_features(), matrix.in_features()));
    decode_into(matrix, &mut weight);
    weight
}

/// [`decode`] into an array of the right shape in standard layout, which is overwritten.
///
/// # Panics
/// When the array's shape or layout differs.
pub(crate) fn decode_into(matrix: &QuantizedMatrix, weight: &mut Array2<f32>) {
    assert_eq!(
        weight.dim(),
        (matrix.out_features(), matrix.in_features()),
        "shape of a decoded weight"
    );
    let scheme = matrix.scheme();
    let codebooks: Vec<f32> = matrix.codebooks().iter().map(|&value| value as f32).collect();
    let scales: Vec<f32> = matrix.scales().iter().map(|&scale| scale as f32).collect();
    decode_rows(
        elements_mut(weight),
        [
            scheme.num_codebooks,
            scheme.codebook_size(),
            scheme.out_group_size,
            scheme.in_group_size,
        ],
        &codebooks,
        elements(matrix.codes()),
        &scales,
    );
}

/// Decodes from flat arrays in standard layout: codebooks [M, K, go, gi], codes [out_groups, in_groups, M],
/// scales `[out_groups]`, to [out_features, in_features].
pub(crate) fn decode_rows(
    weight: &mut [f32],
    [num_codebooks, states, go, gi]: [usize; 4],
    codebooks: &[f32],
    codes: &[u16],
    scales: &[f32],
) {
    if weight.is_empty() {
        return;
    }
    let width = weight.len() / (scales.len() * go);
    let codes_per_group = width / gi * num_codebooks;
    weight
        .par_chunks_mut(OUT_GROUPS * go * width)
        .zip(codes.par_chunks(OUT_GROUPS * codes_per_group))
        .zip(scales.par_chunks(OUT_GROUPS))
        .for_each(|((rows, codes), scales)| {
            for ((rows, codes), &scale) in rows
                .chunks_exact_mut(go * width)
                .zip(codes.chunks_exact(codes_per_group))
                .zip(scales)
            {
                if go == 1 && gi == 8 {
                    decode_by_eight(rows, num_codebooks, states, codebooks, codes, scale);
                } else {
                    decode_group(rows, [num_codebooks, states, go, gi], codebooks, codes, scale);
                }
            }
        });
}

/// One output group of any shape, [go, width].
fn decode_group(
    rows: &mut [f32],
    [num_codebooks, states, go, gi]: [usize; 4],
    codebooks: &[f32],
    codes: &[u16],
    scale: f32,
) {
    let width = rows.len() / go;
    for (a, row) in rows.chunks_exact_mut(width).enumerate() {
        for (group, codes) in row.chunks_exact_mut(gi).zip(codes.chunks_exact(num_codebooks)) {
            group.fill(0.0);
            for (m, &code) in codes.iter().enumerate() {
                let codeword = &codebooks[((m * states + usize::from(code)) * go + a) * gi..][..gi];
                for (to, from) in group.iter_mut().zip(codeword) {
                    *to += from;
                }
            }
            for value in group {
                *value *= scale;
            }
        }
    }
}

/// [`decode_group`] for groups of eight inputs and one output, by far the most frequent: sizes known to the
/// compiler.
fn decode_by_eight(
    row: &mut [f32],
    num_codebooks: usize,
    states: usize,
    codebooks: &[f32],
    codes: &[u16],
    scale: f32,
) {
    let (codewords, _) = codebooks.as_chunks::<8>();
    let (groups, _) = row.as_chunks_mut::<8>();
    for (group, codes) in groups.iter_mut().zip(codes.chunks_exact(num_codebooks)) {
        let mut sum = [0.0f32; 8];
        for (m, &code) in codes.iter().enumerate() {
            let codeword = &codewords[m * states + usize::from(code)];
            for (to, from) in sum.iter_mut().zip(codeword) {
                *to += from;
            }
        }
        *group = sum.map(|value| value * scale);
    }
}
