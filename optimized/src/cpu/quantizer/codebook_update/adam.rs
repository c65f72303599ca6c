use aqlm_vocabulary::{AdamSettings, QuantizedMatrix, Result};
use ndarray::Array2;

use crate::cpu::adam::Moments;
use crate::cpu::quantizer::decode::decode;
use crate::cpu::quantizer::places::{Places, quantized_gradients};
use crate::cpu::quantizer::problem::{Problem, inner};

/// `steps` steps of full-batch Adam on codebooks and scales for fixed codes, from a fresh state (paper
/// section 3.3).
///
/// The loss is the layer error over out_features, as in the official engine. Returns the matrix after the
/// last step, and the loss before each step, `[steps]`.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not match,
/// `NotFinite` when the parameters overflow.
pub fn adam(
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    settings: &AdamSettings,
    steps: usize,
) -> Result<(QuantizedMatrix, Vec<f64>)> {
    let problem = Problem::new(weight, hessian)?;
    problem.check(matrix)?;
    descend(&problem, matrix, &Places::of(matrix), settings, steps)
}

/// [`adam`] on a problem whose shapes are already checked.
pub(super) fn descend(
    problem: &Problem,
    matrix: &QuantizedMatrix,
    places: &Places,
    adam: &AdamSettings,
    steps: usize,
) -> Result<(QuantizedMatrix, Vec<f64>)> {
    let out_features = problem.weight.nrows() as f64;
    let mut current = matrix.clone();
    let mut codebook_moments = Moments::new(current.codebooks().len());
    let mut scale_moments = Moments::new(current.scales().len());
    let mut losses = Vec::with_capacity(steps);
    for _ in 0..steps {
        let decoded = decode(&current);
        let difference = &decoded - &problem.weight;
        let mut gradient = problem.image(&difference);
        losses.push(inner(&gradient, &difference) / out_features);
        // dL/dQ
        gradient *= (2.0 / out_features) as f32;
        let (for_codebooks, for_scales) = quantized_gradients(&current, places, &decoded, &gradient);
        current.tune(|mut codebooks, mut scales| {
            codebook_moments.step(adam, codebooks.iter_mut(), for_codebooks.iter());
            scale_moments.step(adam, scales.iter_mut(), for_scales.iter());
        });
        current.check_finite()?;
    }
    Ok((current, losses))
}
