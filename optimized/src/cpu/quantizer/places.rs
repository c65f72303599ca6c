use aqlm_vocabulary::QuantizedMatrix;
use ndarray::{Array1, Array2, Array4};
use rayon::prelude::*;

use crate::cpu::row_major::elements;
use crate::cpu::vectorize::dot;

/// Codewords of one task.
const CODEWORDS: usize = 16;

/// The places where each codeword is used: for every codebook, its groups (out group x in_groups + in group)
/// sorted by code.
///
/// Each sum over the groups of a codeword then belongs to one task and has one order, for any number of
/// threads.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    in_groups: usize,
    /// 2^B
    states: usize,
    /// for each codebook, [2^B + 1]
    starts: Vec<Vec<u32>>,
    /// for each codebook, [out_groups x in_groups]
    groups: Vec<Vec<u32>>,
}

impl Places {
    /// From `codes` in the order [out_groups, in_groups, M].
    pub(crate) fn new(codes: &[u16], in_groups: usize, num_codebooks: usize, states: usize) -> Self {
        let sorted: Vec<(Vec<u32>, Vec<u32>)> = (0..num_codebooks)
            .into_par_iter()
            .map(|m| {
                let of_codebook = || {
                    codes
                        .iter()
                        .skip(m)
                        .step_by(num_codebooks)
                        .map(|&code| usize::from(code))
                };
                let mut starts = vec![0u32; states + 1];
                for code in of_codebook() {
                    starts[code + 1] += 1;
                }
                for k in 0..states {
                    starts[k + 1] += starts[k];
                }
                let mut next = starts.clone();
                let mut groups = vec![0u32; codes.len() / num_codebooks];
                for (group, code) in of_codebook().enumerate() {
                    groups[next[code] as usize] = group as u32;
                    next[code] += 1;
                }
                (starts, groups)
            })
            .collect();
        let (starts, groups) = sorted.into_iter().unzip();
        Self {
            in_groups,
            states,
            starts,
            groups,
        }
    }

    /// From the codes of a matrix.
    pub(crate) fn of(matrix: &QuantizedMatrix) -> Self {
        let scheme = matrix.scheme();
        Self::new(
            elements(matrix.codes()),
            matrix.groups().1,
            scheme.num_codebooks,
            scheme.codebook_size(),
        )
    }

    /// The (out group, in group)s that use codeword `k` of codebook `m`, in ascending order.
    pub(crate) fn of_codeword(&self, m: usize, k: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let range = self.starts[m][k] as usize..self.starts[m][k + 1] as usize;
        self.groups[m][range]
            .iter()
            .map(|&group| (group as usize / self.in_groups, group as usize % self.in_groups))
    }

    /// The adjoint of decoding: for a dense [out_features, in_features], the sum of s_o dense(o, j) over the
    /// groups of each codeword, in the codebooks' order [M, 2^B, go, gi], added up in f64.
    pub(crate) fn scatter<T: Copy + Into<f64> + Sync>(
        &self,
        dense: &Array2<T>,
        scales: &[f64],
        go: usize,
        gi: usize,
    ) -> Vec<f64> {
        let len = go * gi;
        let width = dense.ncols();
        let dense = elements(dense);
        let mut sums = vec![0.0; self.starts.len() * self.states * len];
        sums.par_chunks_mut(CODEWORDS * len)
            .enumerate()
            .for_each(|(task, sums)| {
                for (i, sum) in sums.chunks_exact_mut(len).enumerate() {
                    let codeword = task * CODEWORDS + i;
                    let (m, k) = (codeword / self.states, codeword % self.states);
                    if len == 8 && go == 1 {
                        let mut lanes = [0.0f64; 8];
                        for (o, j) in self.of_codeword(m, k) {
                            let scale = scales[o];
                            let group = &dense[o * width + j * 8..][..8];
                            for (sum, value) in lanes.iter_mut().zip(group) {
                                *sum += scale * (*value).into();
                            }
                        }
                        sum.copy_from_slice(&lanes);
                    } else {
                        for (o, j) in self.of_codeword(m, k) {
                            for (a, sum) in sum.chunks_exact_mut(gi).enumerate() {
                                let row = &dense[(o * go + a) * width + j * gi..][..gi];
                                for (sum, value) in sum.iter_mut().zip(row) {
                                    *sum += scales[o] * (*value).into();
                                }
                            }
                        }
                    }
                }
            });
        sums
    }
}

/// Gradients with respect to codebooks and scales, given the gradient of the decoded weight, [out_features,
/// in_features]. `decoded` is that weight, and `places` are those of the matrix's codes.
///
/// With G the gradient: grad C_m[k] is the sum of s_o G(o, j) over the groups that use it, and grad s_o the
/// sum over j of <G(o, j), sum_m C_m[code(o, j, m)]> (paper section 3.4).
pub(crate) fn quantized_gradients(
    matrix: &QuantizedMatrix,
    places: &Places,
    decoded: &Array2<f32>,
    gradient: &Array2<f32>,
) -> (Array4<f64>, Array1<f64>) {
    let (go, gi) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
    let scales = matrix.scales().to_vec();
    let sums = places.scatter(gradient, &scales, go, gi);
    let codebooks = Array4::from_shape_vec(matrix.codebooks().raw_dim(), sums)
        .expect("scatter makes as many sums as there are values in the codebooks");
    let width = decoded.ncols();
    let (decoded, gradient) = (elements(decoded), elements(gradient));
    let of_scale = |o: usize| {
        let rows = o * go * width..(o + 1) * go * width;
        if scales[o] == 0.0 {
            return unscaled_inner(matrix, o, &gradient[rows]);
        }
        let inner: f64 = decoded[rows.clone()]
            .chunks_exact(width)
            .zip(gradient[rows].chunks_exact(width))
            .map(|(decoded, gradient)| f64::from(dot(decoded, gradient)))
            .sum();
        inner / scales[o]
    };
    let of_scales: Vec<f64> = (0..scales.len()).into_par_iter().map(of_scale).collect();
    (codebooks, Array1::from(of_scales))
}

/// <G, sum of codewords> of one output group. Computed from the codebooks, because a scale of zero erases the
/// decoded weight.
fn unscaled_inner(matrix: &QuantizedMatrix, o: usize, gradient: &[f32]) -> f64 {
    let gi = matrix.scheme().in_group_size;
    let width = matrix.in_features();
    let mut inner = 0.0;
    for (a, row) in gradient.chunks_exact(width).enumerate() {
        for (i, &g) in row.iter().enumerate() {
            for (m, &code) in matrix
                .codes()
                .slice(ndarray::s![o, i / gi, ..])
                .iter()
                .enumerate()
            {
                inner += f64::from(g) * matrix.codebooks()[[m, usize::from(code), a, i % gi]];
            }
        }
    }
    inner
}
