//! Codebooks and scales for fixed codes (paper section 3.3), exactly or by Adam.

mod adam;
mod conjugate_gradients;
mod normal_equations;
mod scales;

pub use adam::adam;

use aqlm_reference::vocabulary::{QuantizedMatrix, Result, Update};
use ndarray::{Array2, Array4};

use super::places::Places;
use super::problem::Problem;
use conjugate_gradients::Stop;

/// The codebooks and scales that `settings` lead to, starting from those of `matrix`; its codes stay.
///
/// The layer error of the result is never above that of `matrix`: a step that would raise it is not taken.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not fit,
/// `NotPositiveDefinite` when H is indefinite, `NotFinite` when Adam's parameters overflow.
pub fn update(
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    settings: &Update,
) -> Result<QuantizedMatrix> {
    let problem = Problem::new(weight, hessian)?;
    problem.check(matrix)?;
    Ok(update_problem(&problem, matrix, settings)?.0)
}

/// [`update`] of a problem whose shapes are known to fit, with the layer error of the result.
pub(super) fn update_problem(
    problem: &Problem,
    matrix: &QuantizedMatrix,
    settings: &Update,
) -> Result<(QuantizedMatrix, f64)> {
    let places = Places::of(matrix);
    let mut best = (matrix.clone(), problem.layer_error(matrix));
    let consider = |candidate: QuantizedMatrix, best: &mut (QuantizedMatrix, f64)| {
        let loss = problem.layer_error(&candidate);
        if loss < best.1 {
            *best = (candidate, loss);
        }
    };
    match *settings {
        Update::ClosedForm {
            max_unknowns,
            cg_steps,
            scale_rounds,
        } => {
            let scheme = matrix.scheme;
            let unknowns = scheme.num_codebooks * scheme.codebook_size() * scheme.in_group_size;
            for round in 0..scale_rounds.max(1) {
                let codebooks = if unknowns > max_unknowns {
                    conjugate_gradients::solve(problem, &best.0, &places, cg_steps, Stop::Resolution)?
                } else if normal_equations::pay_off(&best.0) {
                    normal_equations::solve(problem, &best.0, &places)?
                } else {
                    conjugate_gradients::solve(problem, &best.0, &places, unknowns, Stop::Minimum)?
                };
                consider(with_codebooks(&best.0, codebooks), &mut best);
                if round < scale_rounds {
                    let mut candidate = best.0.clone();
                    candidate.scales = scales::optimal_scales(problem, &best.0);
                    consider(candidate, &mut best);
                }
            }
        }
        Update::Adam {
            lr,
            beta1,
            beta2,
            amsgrad,
            steps,
        } => {
            let settings = crate::cpu::adam::Adam {
                lr,
                beta1,
                beta2,
                eps: 1e-8,
                amsgrad,
            };
            let (candidate, _) = adam::descend(problem, matrix, &places, settings, steps)?;
            consider(candidate, &mut best);
        }
    }
    Ok(best)
}

/// `matrix` with other codebooks, given in the order [M, 2^B, go, gi].
fn with_codebooks(matrix: &QuantizedMatrix, codebooks: Vec<f64>) -> QuantizedMatrix {
    let shape = matrix.codebooks.raw_dim();
    QuantizedMatrix {
        // The lengths agree: every solver starts from the matrix's own codebooks.
        codebooks: Array4::from_shape_vec(shape, codebooks).unwrap_or_else(|_| matrix.codebooks.clone()),
        ..matrix.clone()
    }
}

/// The codebooks in the order [M, 2^B, go, gi].
fn flat(matrix: &QuantizedMatrix) -> Vec<f64> {
    matrix.codebooks.iter().copied().collect()
}
