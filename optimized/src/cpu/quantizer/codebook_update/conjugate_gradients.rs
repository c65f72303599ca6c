use aqlm_reference::vocabulary::{QuantizedMatrix, Result};
use ndarray::Array2;
use rayon::prelude::*;

use super::{Places, flat};
use crate::cpu::quantizer::decode::decode_rows;
use crate::cpu::quantizer::problem::{Problem, inner};
use crate::cpu::quantizer::small_solve::SmallCholesky;

/// When conjugate gradients stop before their number of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// when a step gains less of the loss than f32 products resolve
    Resolution,
    /// when what the last steps gained says that the minimum is close enough for an alternation to go on from
    Minimum,
}

/// Share of the loss below which the gain of one step is rounding of its f32 products.
const RESOLUTION: f64 = 1e-7;

/// Steps whose gains together say how far the minimum is ...
const WINDOW: usize = 8;
/// ... and the share of the loss below which they say that it is reached. A tenth of a thousandth is a tenth of what the
/// searches that follow may differ by.
const NEAR: f64 = 1e-4;

/// The least-squares problem of the codebooks for fixed codes and scales without its normal matrix: at most `steps`
/// steps of conjugate gradients from the current codebooks, which are returned in the order [M, 2^B, go, gi].
///
/// A step decodes a direction, multiplies it by H in f32 and scatters the result back to the codewords in f64: 2
/// out_features in_features^2 operations whatever the size of the codebooks. The preconditioner is the block of the
/// normal matrix that each codeword has with itself; vectors and inner products are f64. Codewords that no group uses
/// keep their values.
///
/// # Errors
/// `NotPositiveDefinite` when H is indefinite.
pub(super) fn solve(
    problem: &Problem,
    matrix: &QuantizedMatrix,
    places: &Places,
    steps: usize,
    stop: Stop,
) -> Result<Vec<f64>> {
    let scheme = matrix.scheme;
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let sizes = [scheme.num_codebooks, scheme.codebook_size(), go, gi];
    let scales = matrix.scales.to_vec();
    let narrow_scales: Vec<f32> = scales.iter().map(|&s| s as f32).collect();
    let codes = matrix.codes.as_standard_layout();
    let codes = codes.as_slice().unwrap_or_default();
    let preconditioner = own_blocks(problem, matrix, places)?;

    let error = problem.error(matrix);
    let image = problem.image(&error);
    let mut loss = inner(&image, &error);
    let mut residual = places.scatter(&image, &scales, go, gi);
    drop((error, image));
    let mut codebooks = flat(matrix);
    let mut preconditioned = apply(&preconditioner, &residual, gi);
    let mut direction = preconditioned.clone();
    let mut slope = dot(&residual, &preconditioned);
    let mut dense = Array2::<f32>::zeros(problem.weight.dim());
    let mut gains = Vec::new();
    for _ in 0..steps {
        let narrow: Vec<f32> = direction.iter().map(|&d| d as f32).collect();
        decode_rows(
            dense.as_slice_mut().unwrap_or_default(),
            sizes,
            &narrow,
            codes,
            &narrow_scales,
        );
        let image = problem.image(&dense);
        let curvature = inner(&image, &dense);
        // The step length slope / curvature lowers the loss by slope^2 / curvature.
        let gain = slope * slope / curvature;
        let worthwhile = curvature > 0.0 && gain > RESOLUTION * loss;
        if !worthwhile {
            break;
        }
        let image = places.scatter(&image, &scales, go, gi);
        let step = slope / curvature;
        add(&mut codebooks, step, &direction);
        add(&mut residual, -step, &image);
        loss -= gain;
        gains.push(gain);
        let recent: f64 = gains.iter().rev().take(WINDOW).sum();
        if stop == Stop::Minimum && gains.len() >= WINDOW && recent < NEAR * loss {
            break;
        }
        preconditioned = apply(&preconditioner, &residual, gi);
        let next_slope = dot(&residual, &preconditioned);
        let keep = next_slope / slope;
        for (direction, preconditioned) in direction.iter_mut().zip(&preconditioned) {
            *direction = keep * *direction + preconditioned;
        }
        slope = next_slope;
    }
    Ok(codebooks)
}

/// The factored block of the normal matrix that each codeword has with itself, the sum of s_o^2 H_jj over its places;
/// `None` for codewords without weight.
fn own_blocks(
    problem: &Problem,
    matrix: &QuantizedMatrix,
    places: &Places,
) -> Result<Vec<Option<SmallCholesky>>> {
    let gi = matrix.scheme.in_group_size;
    let (_, in_groups) = matrix.groups();
    let states = matrix.scheme.codebook_size();
    let scales = matrix.scales.as_slice().unwrap_or_default();
    (0..matrix.scheme.num_codebooks * states)
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
                        let row = problem.hessian.row(j * gi + i);
                        for (sum, h) in sums.iter_mut().zip(row.iter().skip(j * gi)) {
                            *sum += weight * f64::from(*h);
                        }
                    }
                }
                if (0..gi).all(|i| block[i * (gi + 1)] == 0.0) {
                    return Ok(None);
                }
                SmallCholesky::new(&block, gi, "metric of a codeword").map(Some)
            },
        )
        .collect()
}

fn apply(preconditioner: &[Option<SmallCholesky>], residual: &[f64], gi: usize) -> Vec<f64> {
    let mut result = residual.to_vec();
    let len = residual.len() / preconditioner.len();
    result
        .par_chunks_mut(len)
        .zip(preconditioner)
        .for_each(|(codeword, factor)| match factor {
            Some(factor) => codeword.chunks_exact_mut(gi).for_each(|row| factor.solve(row)),
            None => codeword.fill(0.0),
        });
    result
}

/// Numbers of one task.
const LEN: usize = 1 << 13;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let parts: Vec<f64> = a
        .par_chunks(LEN)
        .zip(b.par_chunks(LEN))
        .map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum())
        .collect();
    parts.iter().sum()
}

fn add(to: &mut [f64], factor: f64, other: &[f64]) {
    to.par_chunks_mut(LEN)
        .zip(other.par_chunks(LEN))
        .for_each(|(to, other)| {
            for (to, other) in to.iter_mut().zip(other) {
                *to += factor * other;
            }
        });
}
