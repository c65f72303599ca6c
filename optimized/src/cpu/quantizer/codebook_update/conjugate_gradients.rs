use aqlm_vocabulary::Result;
use ndarray::Array2;
use rayon::prelude::*;

use super::preconditioner::Preconditioner;
use crate::cpu::quantizer::decode::decode_rows;
use crate::cpu::quantizer::places::Places;
use crate::cpu::quantizer::problem::{Problem, inner};
use crate::cpu::quantizer::trial::Trial;
use crate::cpu::row_major::{elements, elements_mut};

/// Stopping rule of conjugate gradients: stop once two consecutive steps together gain less than a share of
/// the loss plus a share of the gain since the start. Two steps, because gains are uneven if H is badly
/// conditioned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    /// share of the loss
    pub(crate) of_loss: f64,
    /// share of the gain since the start
    pub(crate) of_gain: f64,
}

impl Stop {
    /// At the minimum: the remaining gain is too small to matter to later steps.
    pub(crate) const MINIMUM: Self = Self {
        of_loss: 1e-5,
        of_gain: 0.0,
    };
    /// Before the minimum: an alternation gains more by searching codes again, and the next round starts from
    /// better codes.
    pub(crate) const ALTERNATION: Self = Self {
        of_loss: 1e-5,
        of_gain: 0.01,
    };
}

/// Solves the least-squares problem of the codebooks for fixed codes and scales (paper section 3.3) without
/// forming its normal matrix: at most `steps` steps of conjugate gradients from the current codebooks.
///
/// A step decodes a direction, multiplies it by H in f32 and scatters the result back to the codewords in
/// f64. That is 2 out_features in_features^2 operations for any size of the codebooks, less than forming the
/// normal matrix takes, let alone factoring it. The preconditioner is each codeword's own block of the normal
/// matrix. Vectors and inner products are f64. Unused codewords keep their values. If rounding makes a
/// descent end above its start, the descent is undone.
///
/// # Errors
/// `NotPositiveDefinite` when H is indefinite.
pub(super) fn descend(
    problem: &Problem,
    mut trial: Trial,
    places: &Places,
    steps: usize,
    stop: Stop,
) -> Result<Trial> {
    let scheme = trial.matrix.scheme();
    let (go, gi) = (scheme.out_group_size, scheme.in_group_size);
    let sizes = [scheme.num_codebooks, scheme.codebook_size(), go, gi];
    let scales = trial.matrix.scales().to_vec();
    let narrow_scales: Vec<f32> = scales.iter().map(|&s| s as f32).collect();
    let preconditioner = Preconditioner::own_blocks(&problem.hessian, &trial.matrix, places)?;

    let before = trial.loss;
    let mut loss = trial.loss;
    let mut residual = places.scatter(&trial.image, &scales, go, gi);
    let start: Vec<f64> = trial.matrix.codebooks().iter().copied().collect();
    let mut codebooks = start.clone();
    let mut preconditioned = preconditioner.apply(&residual);
    let mut direction = preconditioned.clone();
    let mut slope = dot(&residual, &preconditioned);
    let mut dense = Array2::<f32>::zeros(problem.weight.dim());
    let mut last_gain = f64::INFINITY;
    for _ in 0..steps {
        let narrow: Vec<f32> = direction.iter().map(|&d| d as f32).collect();
        decode_rows(
            elements_mut(&mut dense),
            sizes,
            &narrow,
            elements(trial.matrix.codes()),
            &narrow_scales,
        );
        let image = problem.image(&dense);
        let curvature = inner(&image, &dense);
        // The step length slope / curvature lowers the loss by slope^2 / curvature. The comparison is also
        // false for NaN.
        let gain = slope * slope / curvature;
        let downhill = curvature > 0.0 && gain > 0.0;
        if !downhill {
            break;
        }
        let step = slope / curvature;
        add(&mut codebooks, step, &direction);
        trial.move_by(step, &dense, &image);
        loss -= gain;
        if gain + last_gain < stop.of_loss * loss.max(0.0) + stop.of_gain * (before - loss) {
            break;
        }
        last_gain = gain;
        // Recomputed from the error's image, so that rounding errors do not accumulate.
        residual = places.scatter(&trial.image, &scales, go, gi);
        preconditioned = preconditioner.apply(&residual);
        let next_slope = dot(&residual, &preconditioned);
        let keep = next_slope / slope;
        for (direction, preconditioned) in direction.iter_mut().zip(&preconditioned) {
            *direction = keep * *direction + preconditioned;
        }
        slope = next_slope;
    }
    trial.loss = inner(&trial.image, &trial.error);
    let lower = trial.loss < before;
    let reached = if lower { codebooks } else { start };
    trial.matrix.tune(|mut codebooks, _| {
        for (to, from) in codebooks.iter_mut().zip(reached) {
            *to = from;
        }
    });
    Ok(if lower {
        trial
    } else {
        Trial::new(problem, trial.matrix)
    })
}

/// Numbers of one task.
const LEN: usize = 1 << 13;

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
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
