use aqlm_reference::vocabulary::{AqlmError, QuantizedMatrix, Result};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::{MatMut, MatRef, Par, Spec};
use rayon::prelude::*;

use super::{Places, flat};
use crate::cpu::quantizer::problem::Problem;

/// Largest number of unknowns that are worth a dense factorisation: its n^3 / 3 operations on one thread grow past those of
/// a few dozen steps of conjugate gradients, which use all of them.
const UNKNOWNS: usize = 1536;

/// Steps of refinement at most. Each divides the error along an eigenvector of eigenvalue e by 1 + e / jitter, so only
/// directions that the loss can hardly see need more than one.
const REFINEMENTS: usize = 12;

/// Whether forming and factoring the normal matrix is cheaper than doing without it. Depends on shapes alone.
pub(super) fn pay_off(matrix: &QuantizedMatrix) -> bool {
    let scheme = matrix.scheme;
    scheme.num_codebooks * scheme.codebook_size() * scheme.in_group_size <= UNKNOWNS
}

/// The codebooks of least layer error for the codes and scales of `matrix`, in the order [M, 2^B, go, gi] (paper section
/// 3.3; paper.md 2.4).
///
/// The normal matrix A has, for codewords (m, k) and (m', k'), the gi x gi block: sum over o of s_o^2 times the sum of H_jj'
/// over all j that use (m, k) and j' that use (m', k') in output group o. It is singular for M > 1, so it is scaled to a
/// unit diagonal, factored with a jitter of its own rounding, and solved for the change from the current codebooks with
/// refinement. Blocks are added up in f64; their H is f32.
///
/// # Errors
/// `NotPositiveDefinite` when H is indefinite.
pub(super) fn solve(problem: &Problem, matrix: &QuantizedMatrix, places: &Places) -> Result<Vec<f64>> {
    let scheme = matrix.scheme;
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let mut normal = assemble(problem, matrix, places);
    let n = scheme.num_codebooks * scheme.codebook_size() * gi;
    let scaling: Vec<f64> = (0..n)
        .map(|i| normal[i * (n + 1)])
        .map(|x| if x > 0.0 { x.sqrt().recip() } else { 0.0 })
        .collect();
    if scaling.iter().all(|&x| x == 0.0) {
        return Ok(flat(matrix));
    }
    normal.par_chunks_mut(n).zip(&scaling).for_each(|(row, factor)| {
        for (x, other) in row.iter_mut().zip(&scaling) {
            *x *= factor * other;
        }
    });
    // A is symmetric, so its rows serve as the columns that faer wants.
    let factor = factor(&normal, n)?;

    let image = problem.image(&problem.error(matrix));
    let gradient = places.scatter(&image, matrix.scales.as_slice().unwrap_or_default(), go, gi);
    // Unknowns are (codeword, input); each row of a group is a right-hand side of its own.
    let at = |unknown: usize, a: usize| (unknown / gi * go + a) * gi + unknown % gi;
    let mut codebooks = flat(matrix);
    for a in 0..go {
        let mut residual: Vec<f64> = (0..n).map(|i| gradient[at(i, a)] * scaling[i]).collect();
        let mut total_gain = 0.0;
        for _ in 0..REFINEMENTS {
            let step = solve_factored(&factor, n, &residual);
            let next: Vec<f64> = normal
                .par_chunks(n)
                .zip(&residual)
                .map(|(row, r)| r - row.iter().zip(&step).map(|(a, x)| a * x).sum::<f64>())
                .collect();
            let gain: f64 = step
                .iter()
                .zip(&residual)
                .zip(&next)
                .map(|((x, r), next)| x * (r + next))
                .sum();
            // Also false for NaN. The first step that gains nothing more is dropped.
            let worthwhile = gain > f64::from(f32::EPSILON) * total_gain;
            if !worthwhile {
                break;
            }
            total_gain += gain;
            for (i, x) in step.iter().enumerate() {
                codebooks[at(i, a)] += x * scaling[i];
            }
            residual = next;
        }
    }
    Ok(codebooks)
}

/// A, [n, n] with both halves filled.
fn assemble(problem: &Problem, matrix: &QuantizedMatrix, places: &Places) -> Vec<f64> {
    let scheme = matrix.scheme;
    let gi = scheme.in_group_size;
    let states = scheme.codebook_size();
    let (_, in_groups) = matrix.groups();
    let n = scheme.num_codebooks * states * gi;
    let codes = matrix.codes.as_standard_layout();
    let codes = codes.as_slice().unwrap_or_default();
    let mut normal = vec![0.0; n * n];
    normal
        .par_chunks_mut(gi * n)
        .enumerate()
        .for_each(|(codeword, rows)| {
            let (m, k) = (codeword / states, codeword % states);
            for (o, j) in places.of_codeword(m, k) {
                let weight = matrix.scales[o] * matrix.scales[o];
                let codes =
                    &codes[o * in_groups * scheme.num_codebooks..][..in_groups * scheme.num_codebooks];
                for (i, row) in rows.chunks_exact_mut(n).enumerate() {
                    let h = problem.hessian.row(j * gi + i);
                    let Some(h) = h.to_slice() else { continue };
                    for (h, codes) in h.chunks_exact(gi).zip(codes.chunks_exact(scheme.num_codebooks)) {
                        for (m, &code) in codes.iter().enumerate() {
                            let column = (m * states + usize::from(code)) * gi;
                            for (sum, h) in row[column..column + gi].iter_mut().zip(h) {
                                *sum += weight * f64::from(*h);
                            }
                        }
                    }
                }
            }
        });
    normal
}

/// The Cholesky factor of A with the smallest jitter that works of: none, n x epsilon of f32 (the entries' own
/// rounding), and a hundred times more from try to try.
fn factor(normal: &[f64], n: usize) -> Result<Vec<f64>> {
    let mut jitter = 0.0;
    loop {
        let mut factor = normal.to_vec();
        for i in 0..n {
            let diagonal = &mut factor[i * (n + 1)];
            // A codeword that no group uses has a row of zeros; its change is zero with any pivot.
            *diagonal = if *diagonal == 0.0 { 1.0 } else { *diagonal + jitter };
        }
        match factor_in_place(&mut factor, n) {
            Ok(()) => return Ok(factor),
            Err(pivot) if jitter > 1e-2 => {
                return Err(AqlmError::NotPositiveDefinite {
                    what: "normal matrix of the codebooks".into(),
                    pivot,
                });
            }
            Err(_) => jitter = (100.0 * jitter).max(n as f64 * f64::EPSILON),
        }
    }
}

fn factor_in_place(matrix: &mut [f64], n: usize) -> std::result::Result<(), usize> {
    let mut memory = MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(
        n,
        Par::Seq,
        Spec::default(),
    ));
    let result = llt::factor::cholesky_in_place(
        MatMut::from_column_major_slice_mut(matrix, n, n),
        llt::factor::LltRegularization::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        Spec::default(),
    );
    crate::cpu::product::clear_upper_registers();
    match result {
        Ok(_) => Ok(()),
        Err(llt::factor::LltError::NonPositivePivot { index }) => Err(index),
    }
}

fn solve_factored(factor: &[f64], n: usize, b: &[f64]) -> Vec<f64> {
    let mut x = b.to_vec();
    llt::solve::solve_in_place(
        MatRef::from_column_major_slice(factor, n, n),
        MatMut::from_column_major_slice_mut(&mut x, n, 1),
        Par::Seq,
        MemStack::new(&mut []),
    );
    crate::cpu::product::clear_upper_registers();
    x
}
