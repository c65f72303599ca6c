use aqlm_vocabulary::QuantizedMatrix;
use ndarray::Array2;
use rayon::prelude::*;

use super::problem::{Problem, inner};
use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::vectorize::dot_in_f64;

/// A quantized matrix, its error, the error's image under H, and the loss.
///
/// A step along a direction moves the error by the direction and the image by the direction's image, which
/// saves a product with H. All other steps recompute error, image and loss.
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

    /// Computes error, image and loss from the matrix.
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
    /// factor of <Q, W>_H / <Q, Q>_H. A scale stays if it does not affect the loss (<Q, Q>_H = 0) or its loss
    /// would not fall.
    pub(crate) fn rescale(&mut self, problem: &Problem) {
        let go = self.matrix.scheme().out_group_size;
        let band = go * self.error.ncols();
        let (error, image) = (&mut self.error, &mut self.image);
        self.loss = self.matrix.tune(|_, mut scales| {
            let losses: Vec<f64> = elements_mut(error)
                .par_chunks_mut(band)
                .zip(elements_mut(image).par_chunks_mut(band))
                .zip(elements(&problem.weight).par_chunks(band))
                .zip(elements(&problem.weight_image).par_chunks(band))
                .zip(elements_mut(&mut scales).par_iter_mut())
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
                        // Replaces Q and its image by W - factor Q and (W - factor Q) H.
                        for (values, of_weight) in
                            [(&mut *decoded, weight), (&mut *decoded_image, weight_image)]
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
            losses.iter().sum()
        });
    }
}

/// a - b.
fn difference(result: &mut Vec<f32>, a: &[f32], b: &[f32]) {
    result.clear();
    result.extend(a.iter().zip(b).map(|(a, b)| a - b));
}
