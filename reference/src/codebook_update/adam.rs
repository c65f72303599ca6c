use ndarray::{Array2, Axis};

use crate::adam::Moments;
use crate::decode::decode_unscaled;
use crate::layer_error::check_shapes;
use crate::linalg::product;
use crate::occurrences::{Occurrences, scatter};
use aqlm_vocabulary::{AdamSettings, QuantizedMatrix, Result};

/// `steps` steps of full-batch Adam on codebooks and scales for fixed codes, from a fresh state (paper
/// section 3.3).
///
/// The loss is the layer error divided by out_features, as in the official engine. Returns the matrix after
/// the last step, and the loss before each step, `[steps]`.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not fit,
/// `NotFinite` when the parameters overflow.
pub fn adam(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
    settings: &AdamSettings,
    steps: usize,
) -> Result<(QuantizedMatrix, Vec<f64>)> {
    check_shapes(weight, hessian, matrix)?;
    let occurrences = Occurrences::of_matrix(matrix);
    let rows = matrix.scheme().out_group_size;
    let out_features = weight.nrows() as f64;
    let mut current = matrix.clone();
    let mut codebook_moments = Moments::new(current.codebooks().len());
    let mut scale_moments = Moments::new(current.scales().len());
    let mut losses = Vec::with_capacity(steps);
    for _ in 0..steps {
        let plain = decode_unscaled(&current, current.codebooks().view());
        let mut difference = plain.clone();
        for (mut group, &scale) in difference
            .axis_chunks_iter_mut(Axis(0), rows)
            .zip(current.scales())
        {
            group *= scale;
        }
        difference -= weight;
        let image = product(difference.view(), hessian.view());
        losses.push((&image * &difference).sum() / out_features);
        // dL/dQ
        let gradient = image * (2.0 / out_features);
        let for_codebooks = scatter(&gradient, &current, &occurrences);
        let for_scales = (&gradient * &plain)
            .axis_chunks_iter(Axis(0), rows)
            .map(|group| group.sum())
            .collect();
        current.tune(|codebooks, scales| {
            codebook_moments.step(settings, codebooks, &for_codebooks);
            scale_moments.step(settings, scales, &for_scales);
        });
    }
    current.check_finite()?;
    Ok((current, losses))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{problem, rounding};
    use crate::{decode, layer_error};

    const SETTINGS: AdamSettings = AdamSettings {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        amsgrad: false,
    };

    #[test]
    fn the_first_step_moves_each_parameter_against_its_gradient_by_the_learning_rate() {
        let p = problem(1, "2x2g4o2", 6, 4);
        let (after, losses) = adam(&p.weight, &p.hessian, &p.matrix, &SETTINGS, 1).unwrap();
        let loss = |matrix: &QuantizedMatrix| layer_error(&p.weight, &decode(matrix), &p.hessian);
        assert!((losses[0] - loss(&p.matrix) / 12.0).abs() <= rounding(&p));
        for (index, &value) in p.matrix.codebooks().indexed_iter() {
            let mut moved = [p.matrix.clone(), p.matrix.clone()];
            moved[0].tune(|mut codebooks, _| codebooks[index] += 0.5);
            moved[1].tune(|mut codebooks, _| codebooks[index] -= 0.5);
            // exact for a parabola
            let slope = loss(&moved[0]) - loss(&moved[1]);
            let change = after.codebooks()[index] - value;
            if slope != 0.0 {
                // lr g / (|g| + eps), with gradients far above eps
                assert!(
                    (change + 1e-3 * slope.signum()).abs() <= 1e-3 * 1e-4,
                    "{change} for {slope}"
                );
            }
        }
        for (o, &value) in p.matrix.scales().indexed_iter() {
            let mut moved = [p.matrix.clone(), p.matrix.clone()];
            moved[0].tune(|_, mut scales| scales[o] += 0.5);
            moved[1].tune(|_, mut scales| scales[o] -= 0.5);
            let slope = loss(&moved[0]) - loss(&moved[1]);
            assert!((after.scales()[o] - value + 1e-3 * slope.signum()).abs() <= 1e-3 * 1e-4);
        }
    }

    #[test]
    fn it_descends() {
        let p = problem(2, "2x3g4", 8, 4);
        let (after, losses) = adam(&p.weight, &p.hessian, &p.matrix, &SETTINGS, 100).unwrap();
        assert!(losses.is_sorted_by(|a, b| a >= b));
        let last = layer_error(&p.weight, &decode(&after), &p.hessian) / 8.0;
        assert!(last < losses[99]);
    }

    #[test]
    fn no_steps_change_nothing_and_divergence_is_an_error_or_finite() {
        let p = problem(2, "2x3g4", 8, 4);
        assert_eq!(
            adam(&p.weight, &p.hessian, &p.matrix, &SETTINGS, 0).unwrap(),
            (p.matrix.clone(), vec![])
        );
        let wild = AdamSettings {
            lr: 1e300,
            ..SETTINGS
        };
        assert!(adam(&p.weight, &p.hessian, &p.matrix, &wild, 5).is_err());
    }
}
