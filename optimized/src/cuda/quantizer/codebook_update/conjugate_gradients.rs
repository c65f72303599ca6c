use super::preconditioner::Preconditioner;
use crate::cpu::quantizer::Stop;
use crate::cuda::Result;
use crate::cuda::quantizer::codes::{Codebooks, Decoding, Places, Summed};
use crate::cuda::quantizer::machine::{Machine, Precision};
use crate::cuda::quantizer::outer::Outer;
use crate::cuda::quantizer::problem::{Problem, Trial};

/// Solves the least-squares problem of the codebooks for fixed codes and scales without forming its normal
/// matrix, as the CPU's conjugate gradients do: at most `steps` steps from the current codebooks. With an H_O
/// the objective is two-sided, and so is the trial's.
///
/// The images of directions under H may be rounded to TF32, a relative 2^-11: they only steer the descent.
/// The error's image is computed anew from the codebooks that it reaches, in f32, and a descent that ends
/// above its start is undone.
///
/// # Errors
/// `NotPositiveDefinite` when H is indefinite.
pub(in crate::cuda::quantizer) fn descend(
    machine: &Machine,
    problem: &Problem,
    outer: Option<&Outer>,
    mut trial: Trial,
    places: &Places,
    steps: usize,
    stop: Stop,
) -> Result<Trial> {
    let form = trial.form();
    let decoding = Decoding::of(&form);
    let summed = Summed {
        width: form.width(),
        inputs: form.in_groups,
        group: decoding.group,
        power: 1,
        of_input: false,
    };
    let scales = trial.matrix.scales.clone();
    let gi = form.scheme.in_group_size;
    let blocks = machine.diagonal_blocks(&problem.hessian, form.width(), gi)?;
    let weighted = outer.map(|outer| outer.weighted(machine, &scales)).transpose()?;
    let weights = weighted.as_ref().unwrap_or(&scales);
    let preconditioner = Preconditioner::of_places(machine, &blocks, weights, places, form.in_groups, gi)?;
    let before = trial.loss;
    let mut loss = trial.loss;
    let mut codebooks = trial.matrix.codebooks.try_clone()?;
    let mut residual = machine.scatter(&trial.image, Some(&scales), places, &summed)?;
    let mut direction = preconditioner.apply(machine, &residual)?;
    let mut slope = machine.inner(&residual, &direction)?;
    let mut dense = machine.fresh::<f32>(problem.rows * problem.width, "a decoded direction")?;
    let mut last_gain = f64::INFINITY;
    for _ in 0..steps {
        machine.decode(
            &decoding,
            None,
            &trial.matrix.codes,
            Codebooks::Wide(&direction),
            Some(&scales),
            &mut dense,
        )?;
        let image = problem.image(machine, outer, &dense, Precision::Fast)?;
        let curvature = machine.inner(&image, &dense)?;
        // The step length slope / curvature lowers the loss by slope^2 / curvature. The comparison is also
        // false for NaN.
        let gain = slope * slope / curvature;
        let downhill = curvature > 0.0 && gain > 0.0;
        if !downhill {
            break;
        }
        let step = slope / curvature;
        machine.combine(step, &direction, 1.0, &mut codebooks)?;
        machine.combine(-step, &image, 1.0, &mut trial.image)?;
        loss -= gain;
        if gain + last_gain < stop.of_loss * loss.max(0.0) + stop.of_gain * (before - loss) {
            break;
        }
        last_gain = gain;
        residual = machine.scatter(&trial.image, Some(&scales), places, &summed)?;
        let preconditioned = preconditioner.apply(machine, &residual)?;
        let next_slope = machine.inner(&residual, &preconditioned)?;
        machine.combine(1.0, &preconditioned, next_slope / slope, &mut direction)?;
        slope = next_slope;
    }
    let mut reached = trial.matrix.clone();
    reached.codebooks = codebooks.into();
    let reached = Trial::under(machine, problem, outer, reached)?;
    if reached.loss < before {
        return Ok(reached);
    }
    Trial::under(machine, problem, outer, trial.matrix)
}
