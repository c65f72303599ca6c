//! Updates codebooks and scales for fixed codes (paper section 3.3), by least squares or by Adam.

mod adam;
mod conjugate_gradients;
mod in_f64;
mod preconditioner;

use std::sync::Arc;

use aqlm_vocabulary::{AdamSettings, QuantizedMatrix, Update};
use ndarray::Array2;

use super::machine::Machine;
use super::problem::{Problem, Trial};
use crate::cuda::{Device, Result};

pub(super) use crate::cpu::quantizer::Stop;
pub(super) use conjugate_gradients::descend;
pub(super) use preconditioner::Preconditioner;

/// Codebooks and scales updated by `settings` on the device; as
/// [`cpu::quantizer::update`](crate::cpu::quantizer::update).
///
/// # Errors
/// `Shape`, `NotPositiveDefinite`, `NotFinite` as there.
pub fn update(
    device: &Arc<Device>,
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    settings: &Update,
) -> Result<QuantizedMatrix> {
    let machine = Machine::new(Arc::clone(device))?;
    let problem = Problem::new(&machine, weight, hessian)?;
    problem.check(matrix)?;
    let trial = Trial::new(&machine, &problem, machine.upload_matrix(matrix)?)?;
    let trial = update_trial(&machine, &problem, trial, settings, Stop::MINIMUM)?;
    machine.download_matrix(&trial.matrix)
}

/// [`update`] on a trial.
pub(super) fn update_trial(
    machine: &Machine,
    problem: &Problem,
    mut trial: Trial,
    settings: &Update,
    stop: Stop,
) -> Result<Trial> {
    let form = trial.form();
    let places = machine.places(&trial.matrix.codes, form.groups(), form.states())?;
    match *settings {
        Update::ClosedForm {
            max_unknowns,
            cg_steps,
            scale_rounds,
        } => {
            // As on the CPU, steps go on to the minimum of problems that the reference solves exactly.
            let steps = form.scheme.descent_steps(max_unknowns, cg_steps);
            if let Some(wide) = &problem.wide {
                return in_f64::descend(machine, problem, wide, trial, &places, steps, scale_rounds);
            }
            for round in 0..scale_rounds.max(1) {
                trial = descend(machine, problem, None, trial, &places, steps, stop)?;
                if round < scale_rounds {
                    trial.rescale(machine, problem)?;
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
            let candidate = adam::descend(machine, problem, &trial, &places, &settings, steps)?;
            Ok(if candidate.loss < trial.loss {
                candidate
            } else {
                trial
            })
        }
    }
}
