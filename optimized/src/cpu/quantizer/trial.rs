use aqlm_vocabulary::QuantizedMatrix;
use ndarray::Array2;
use rayon::prelude::*;

use super::problem::{Problem, inner};
use crate::cpu::vectorize::dot_in_f64;

/// A quantized matrix beside what every step of the alternation asks of it. Steps that change the error in a
/// known way change its image in the same way, which saves the product with H; those that don't start anew.
#[derive(Debug, Clone)]
pub struct Trial {
    pub(crate) matrix: QuantizedMatrix,
    /// E = W - Q, [out_features, in_features], standard layout
    pub(crate) error: Array2<f32>,
    /// E H, likewise
    pub(crate) image: Array2<f32>,
    /// tr(E H E^T)
    pub(crate) loss: f64,
}

impl Trial {
    /// The quantized matrix.
    pub fn matrix(&self) -> &QuantizedMatrix {
        &self.matrix
    }

    /// Decodes and multiplies.
    pub(crate) fn new(problem: &Problem, matrix: QuantizedMatrix) -> Self {
        let error = problem.error(&matrix);
        let image = problem.image(&error);
        let loss = inner(&image, &error);
        Self {
            matrix,
            error,
            image,
            loss,
        }
    }

    /// E -= step D and E H -= step (D H), for a direction and its image.
    pub(crate) fn move_by(&mut self, step: f64, direction: &Array2<f32>, image: &Array2<f32>) {
        let step = -(step as f32);
        for (to, from) in [(&mut self.error, direction), (&mut self.image, image)] {
            ndarray::Zip::from(to)
                .and(from)
                .par_for_each(|to, from| *to += step * from);
        }
    }

    /// Moves every scale to the minimum of its output group's loss, a parabola: with Q the group's part, a
    /// factor of <Q, W>_H / <Q, Q>_H. Scales that do not matter (<Q, Q>_H = 0) and those whose loss would not
    /// fall stay.
    pub(crate) fn rescale(&mut self, problem: &Problem) {
        let go = self.matrix.scheme.out_group_size;
        let band = go * self.error.ncols();
        let losses: Vec<f64> = self
            .error
            .as_slice_mut()
            .unwrap_or_default()
            .par_chunks_mut(band)
            .zip(self.image.as_slice_mut().unwrap_or_default().par_chunks_mut(band))
            .zip(problem.weight.as_slice().unwrap_or_default().par_chunks(band))
            .zip(
                problem
                    .weight_image
                    .as_slice()
                    .unwrap_or_default()
                    .par_chunks(band),
            )
            .zip(
                self.matrix
                    .scales
                    .as_slice_mut()
                    .unwrap_or_default()
                    .par_iter_mut(),
            )
            .map_init(
                || (Vec::new(), Vec::new()),
                |(decoded, decoded_image), ((((error, image), weight), weight_image), scale)| {
                    difference(decoded, weight, error);
                    difference(decoded_image, weight_image, image);
                    let before = dot_in_f64(image, error);
                    let factor = dot_in_f64(decoded_image, weight) / dot_in_f64(decoded_image, decoded);
                    if !factor.is_finite() {
                        return before;
                    }
                    let narrow = factor as f32;
                    for values in [&mut *decoded, &mut *decoded_image] {
                        for value in values {
                            *value *= narrow;
                        }
                    }
                    // Q and its image become W - factor Q and (W - factor Q) H.
                    for (values, of_weight) in [(&mut *decoded, weight), (&mut *decoded_image, weight_image)]
                    {
                        for (value, weight) in values.iter_mut().zip(of_weight) {
                            *value = weight - *value;
                        }
                    }
                    let after = dot_in_f64(decoded_image, decoded);
                    let better = after < before;
                    if !better {
                        return before;
                    }
                    *scale *= factor;
                    error.copy_from_slice(decoded);
                    image.copy_from_slice(decoded_image);
                    after
                },
            )
            .collect();
        self.loss = losses.iter().sum();
    }
}

/// a - b.
fn difference(result: &mut Vec<f32>, a: &[f32], b: &[f32]) {
    result.clear();
    result.extend(a.iter().zip(b).map(|(a, b)| a - b));
}
