//! Codebooks and scales of a layer under the two-sided objective tr(H_O E H E^T), E = W - Q.

use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Update};

use super::codebook_update::{Stop, descend};
use super::codes::{Codebooks, Decoding};
use super::machine::{Machine, Precision};
use super::outer::Outer;
use super::problem::{Problem, Trial};
use crate::cuda::error::check_lengths;
use crate::cuda::{Buffer, Result};

/// Most steps to the scales' minimum.
const SCALE_STEPS: usize = 100;

/// Slopes below this share of the first are rounding: images in f32 are exact to some 1e-6, and a slope is a
/// square.
const SCALE_RESOLUTION: f64 = 1e-10;

/// Codebooks and scales updated in turn for the matrix's codes, only as far as the alternation benefits; as
/// the engine's policy does on the host.
///
/// # Errors
/// `Argument` for an update by Adam; `NotPositiveDefinite` when H is indefinite; `Length` for an H_O of
/// another number of rows.
pub(super) fn update(
    machine: &Machine,
    problem: &Problem,
    outer: &Outer,
    matrix: &QuantizedMatrix,
    settings: &Update,
) -> Result<QuantizedMatrix> {
    let Update::ClosedForm {
        max_unknowns,
        cg_steps,
        scale_rounds,
    } = *settings
    else {
        return Err(
            AqlmError::argument("update", "the closed form beside a two-sided objective", "adam").into(),
        );
    };
    check_lengths(&[("rows under H_O", problem.rows, outer.rows())])?;
    let mut trial = Trial::under(machine, problem, Some(outer), machine.upload_matrix(matrix)?)?;
    let form = trial.form();
    let places = machine.places(&trial.matrix.codes, form.groups(), form.states())?;
    let steps = form.scheme.descent_steps(max_unknowns, cg_steps);
    for round in 0..scale_rounds.max(1) {
        trial = descend(
            machine,
            problem,
            Some(outer),
            trial,
            &places,
            steps,
            Stop::ALTERNATION,
        )?;
        if round < scale_rounds {
            trial = rescaled(machine, problem, outer, trial)?;
        }
    }
    machine.download_matrix(&trial.matrix)
}

/// The trial with the scales of minimum loss, if that lowers the loss.
///
/// With p_i the sum of row i's codewords before scaling, the loss is a quadratic function of all scales with
/// matrix A_ij = H_O\[i,j\] p_i H p_j^T. A times a vector of scales is a row's product of p_i with the image
/// of the rows so scaled, so A is never formed.
fn rescaled(machine: &Machine, problem: &Problem, outer: &Outer, trial: Trial) -> Result<Trial> {
    let (form, width) = (trial.form(), problem.width);
    let decoded = |scales: Option<&Buffer<f64>>| -> Result<Buffer<f32>> {
        let mut rows = machine.fresh::<f32>(problem.rows * width, "decoded rows")?;
        let Trial { matrix, .. } = &trial;
        let codebooks = Codebooks::Wide(&matrix.codebooks);
        machine.decode(
            &Decoding::of(&form),
            None,
            &matrix.codes,
            codebooks,
            scales,
            &mut rows,
        )?;
        Ok(rows)
    };
    let plain = decoded(None)?;
    let with_plain = |image: &Buffer<f32>| machine.part_products(image, &plain, width);
    let image = machine.image(&plain, &problem.hessian, width, Precision::Full)?;
    let own: Vec<f64> = with_plain(&image)?
        .iter()
        .zip(&outer.diagonal)
        .map(|(own, weight)| own * weight)
        .collect();
    let preconditioned = |residual: &[f64]| -> Vec<f64> {
        let divided = residual.iter().zip(&own);
        divided
            .map(|(&x, &own)| if own > 0.0 { x / own } else { 0.0 })
            .collect()
    };
    let mut scales = machine.download(&trial.matrix.scales)?;
    let mut residual = with_plain(&trial.image)?;
    let mut direction = preconditioned(&residual);
    let mut slope = dot(&residual, &direction);
    let first = slope;
    for _ in 0..SCALE_STEPS {
        let rows = decoded(Some(&machine.upload(&direction, "a direction of scales")?))?;
        let image = with_plain(&problem.image(machine, Some(outer), &rows, Precision::Full)?)?;
        let curvature = dot(&direction, &image);
        let worthwhile = curvature > 0.0 && slope > SCALE_RESOLUTION * first;
        if !worthwhile {
            break;
        }
        let step = slope / curvature;
        add(&mut scales, step, &direction);
        add(&mut residual, -step, &image);
        let next = preconditioned(&residual);
        let next_slope = dot(&residual, &next);
        for (to, from) in direction.iter_mut().zip(&next) {
            *to = *to * (next_slope / slope) + from;
        }
        slope = next_slope;
    }
    let mut matrix = trial.matrix.clone();
    matrix.scales = machine.upload(&scales, "scales")?.into();
    let moved = Trial::under(machine, problem, Some(outer), matrix)?;
    Ok(if moved.loss < trial.loss { moved } else { trial })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}
