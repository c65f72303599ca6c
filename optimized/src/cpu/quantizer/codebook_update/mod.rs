//! Updates codebooks and scales for fixed codes (paper section 3.3), by least squares or by Adam.

mod adam;
mod conjugate_gradients;
mod in_f64;
mod preconditioner;

pub use adam::adam;
pub(crate) use conjugate_gradients::Stop;
pub(crate) use preconditioner::Preconditioner;

use aqlm_vocabulary::{AdamSettings, QuantizedMatrix, Result, Update};
use ndarray::Array2;

use super::places::Places;
use super::problem::Problem;
use super::trial::Trial;

/// Updates codebooks and scales by `settings`, starting from those of `matrix`; the codes stay.
///
/// The layer error of the result is never above that of `matrix`: a step that would raise it is rejected.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not match,
/// `NotPositiveDefinite` when H is indefinite, `NotFinite` when Adam's parameters overflow.
pub fn update(
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    settings: &Update,
) -> Result<QuantizedMatrix> {
    let problem = Problem::new(weight, hessian)?;
    problem.check(matrix)?;
    let trial = Trial::new(&problem, matrix.clone());
    Ok(update_trial(&problem, trial, settings, Stop::MINIMUM)?.matrix)
}

/// [`update`] on a trial.
pub(super) fn update_trial(
    problem: &Problem,
    mut trial: Trial,
    settings: &Update,
    stop: Stop,
) -> Result<Trial> {
    let places = Places::of(&trial.matrix);
    match *settings {
        Update::ClosedForm {
            max_unknowns,
            cg_steps,
            scale_rounds,
        } => {
            // The reference factors the normal matrix of small problems, so steps here go on to the minimum.
            let steps = trial.matrix.scheme().descent_steps(max_unknowns, cg_steps);
            if let Some(hessian) = &problem.wide {
                return in_f64::descend(problem, hessian, trial, &places, steps, scale_rounds);
            }
            for round in 0..scale_rounds.max(1) {
                trial = conjugate_gradients::descend(problem, trial, &places, steps, stop)?;
                if round < scale_rounds {
                    trial.rescale(problem);
                }
            }
            Ok(trial)
        }
        Update::Adam {
            lr,
            beta1,
            beta2,
            amsgrad,
            steps,
        } => {
            let settings = AdamSettings {
                lr,
                beta1,
                beta2,
                eps: AdamSettings::USUAL_EPS,
                amsgrad,
            };
            let (candidate, _) = adam::descend(problem, &trial.matrix, &places, &settings, steps)?;
            let candidate = Trial::new(problem, candidate);
            Ok(if candidate.loss < trial.loss {
                candidate
            } else {
                trial
            })
        }
    }
}
