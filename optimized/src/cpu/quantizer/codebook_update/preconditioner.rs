use aqlm_vocabulary::{QuantizedMatrix, Result};
use ndarray::Array2;
use rayon::prelude::*;

use crate::cpu::quantizer::places::Places;
use crate::cpu::quantizer::small_solve::SmallCholesky;
use crate::cpu::row_major::elements;

/// An approximate inverse of the codebooks' normal matrix, which has M 2^B gi unknowns a side.
pub(crate) enum Preconditioner {
    /// each codeword's own diagonal block, factored; `None` for codewords without weight
    OwnBlocks {
        factors: Vec<Option<SmallCholesky>>,
        /// in_group_size
        gi: usize,
    },
    /// the whole matrix, factored with a unit diagonal
    Whole {
        factor: SmallCholesky,
        /// the diagonal to the power of -1/2, zero for unknowns without weight
        scaling: Vec<f64>,
        /// (out_group_size, in_group_size)
        group: (usize, usize),
    },
}

impl Preconditioner {
    /// From each codeword's own block: the sum of s_o^2 H_jj over its places.
    ///
    /// # Errors
    /// `NotPositiveDefinite` when H is indefinite.
    pub(super) fn own_blocks<T: Copy + Into<f64> + Sync>(
        hessian: &Array2<T>,
        matrix: &QuantizedMatrix,
        places: &Places,
    ) -> Result<Self> {
        let gi = matrix.scheme().in_group_size;
        let (_, in_groups) = matrix.groups();
        let states = matrix.scheme().codebook_size();
        let scales = elements(matrix.scales());
        let factors = (0..matrix.scheme().num_codebooks * states)
            .into_par_iter()
            .map_init(
                || vec![0.0f64; in_groups],
                |weights, codeword| {
                    weights.fill(0.0);
                    for (o, j) in places.of_codeword(codeword / states, codeword % states) {
                        weights[j] += scales[o] * scales[o];
                    }
                    let mut block = vec![0.0; gi * gi];
                    for (j, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
                        for (i, sums) in block.chunks_exact_mut(gi).enumerate() {
                            let row = hessian.row(j * gi + i);
                            for (sum, h) in sums.iter_mut().zip(row.iter().skip(j * gi)) {
                                *sum += weight * (*h).into();
                            }
                        }
                    }
                    if (0..gi).all(|i| block[i * (gi + 1)] == 0.0) {
                        return Ok(None);
                    }
                    SmallCholesky::new(&block, gi, "metric of a codeword").map(Some)
                },
            )
            .collect::<Result<_>>()?;
        Ok(Self::OwnBlocks { factors, gi })
    }

    /// From the whole normal matrix: for codewords (m, k) and (m', k') the sum over output groups o of s_o^2
    /// times the sum of H_jj' over all j that use (m, k) and j' that use (m', k') in o. The matrix is
    /// singular for M > 1, because moving a vector from one codebook to another changes nothing. So its
    /// factor includes a jitter, which makes it only a good start for conjugate gradients.
    ///
    /// # Errors
    /// `NotPositiveDefinite` when H is indefinite.
    pub(crate) fn whole(hessian: &Array2<f64>, matrix: &QuantizedMatrix) -> Result<Self> {
        let scheme = matrix.scheme();
        let (gi, states) = (scheme.in_group_size, scheme.codebook_size());
        let unknowns = scheme.num_codebooks * states * gi;
        let mut normal = vec![0.0; unknowns * unknowns];
        for (codes, scale) in matrix.codes().outer_iter().zip(matrix.scales()) {
            // where each group's codewords begin among the unknowns
            let at = |j: usize, m: usize| (m * states + usize::from(codes[[j, m]])) * gi;
            let (in_groups, num_codebooks) = codes.dim();
            for j in 0..in_groups {
                for i in 0..gi {
                    let row = hessian.row(j * gi + i);
                    for m in 0..num_codebooks {
                        let sums = &mut normal[(at(j, m) + i) * unknowns..][..unknowns];
                        for other in 0..in_groups {
                            let h = row.slice(ndarray::s![other * gi..(other + 1) * gi]);
                            for n in 0..num_codebooks {
                                for (sum, h) in sums[at(other, n)..].iter_mut().zip(h) {
                                    *sum += scale * scale * h;
                                }
                            }
                        }
                    }
                }
            }
        }
        let scaling: Vec<f64> = (0..unknowns)
            .map(|i| normal[i * (unknowns + 1)])
            .map(|x| if x > 0.0 { x.sqrt().recip() } else { 0.0 })
            .collect();
        for (row, of_row) in normal.chunks_exact_mut(unknowns).zip(&scaling) {
            for (x, of_column) in row.iter_mut().zip(&scaling) {
                *x *= of_row * of_column;
            }
        }
        // Far above the rounding of the sums and of the factorisation, so that no pivot of a singular
        // direction or of an unknown without weight is pure rounding. Far below what f32 could resolve.
        let jitter = 64.0 * unknowns as f64 * f64::EPSILON;
        for i in 0..unknowns {
            normal[i * (unknowns + 1)] += jitter;
        }
        let factor = SmallCholesky::new(&normal, unknowns, "normal matrix of the codebooks")?;
        Ok(Self::Whole {
            factor,
            scaling,
            group: (scheme.out_group_size, gi),
        })
    }

    /// The approximate solution for a right-hand side in the codebooks' order [M, 2^B, go, gi].
    pub(crate) fn apply(&self, residual: &[f64]) -> Vec<f64> {
        let mut result = residual.to_vec();
        match self {
            Self::OwnBlocks { factors, gi } => {
                let len = residual.len() / factors.len();
                result
                    .par_chunks_mut(len)
                    .zip(factors)
                    .for_each(|(codeword, factor)| match factor {
                        Some(factor) => codeword.chunks_exact_mut(*gi).for_each(|row| factor.solve(row)),
                        None => codeword.fill(0.0),
                    });
            }
            Self::Whole {
                factor,
                scaling,
                group: (go, gi),
            } => {
                let mut unknowns = vec![0.0; scaling.len()];
                for a in 0..*go {
                    let of_row = |i: usize| (i / gi * go + a) * gi + i % gi;
                    for (i, x) in unknowns.iter_mut().enumerate() {
                        *x = scaling[i] * residual[of_row(i)];
                    }
                    factor.solve(&mut unknowns);
                    for (i, x) in unknowns.iter().enumerate() {
                        result[of_row(i)] = scaling[i] * x;
                    }
                }
            }
        }
        result
    }
}
