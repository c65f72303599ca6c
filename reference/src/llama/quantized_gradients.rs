use ndarray::{Array1, Array4, ArrayView2};

use crate::vocabulary::QuantizedMatrix;

/// Gradients with respect to the codebooks and the scales of a quantized matrix, given the one with respect to the
/// decoded weight, [out_features, in_features]; the codes are fixed (paper section 3.4).
///
/// The weight's group (o, j) is s_o sum_m C_m[code(o, j, m)], so with G its gradient: grad C_m[k] is the sum of
/// s_o G(o, j) over the groups whose code m is k, and grad s_o the sum over j of <G(o, j), sum_m C_m[code(o, j, m)]>.
/// Returns ([M, 2^B, out_group, in_group], [out_groups]).
///
/// # Panics
/// When the gradient's shape is not the matrix's.
pub fn quantized_gradients(
    matrix: &QuantizedMatrix,
    grad_weight: ArrayView2<f64>,
) -> (Array4<f64>, Array1<f64>) {
    assert_eq!(
        grad_weight.dim(),
        (matrix.out_features(), matrix.in_features()),
        "shape of a weight's gradient"
    );
    let (go, gi) = (matrix.scheme.out_group_size, matrix.scheme.in_group_size);
    let mut grad_codebooks = Array4::zeros(matrix.codebooks.dim());
    let mut grad_scales = Array1::zeros(matrix.scales.dim());
    for ((o, j, m), &code) in matrix.codes.indexed_iter() {
        let code = usize::from(code);
        let scale = matrix.scales[o];
        for a in 0..go {
            for b in 0..gi {
                let grad = grad_weight[[o * go + a, j * gi + b]];
                grad_codebooks[[m, code, a, b]] += scale * grad;
                grad_scales[o] += grad * matrix.codebooks[[m, code, a, b]];
            }
        }
    }
    (grad_codebooks, grad_scales)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3};
    use rand::RngExt;

    use super::*;
    use crate::llama::ResidentWeight;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{inner, normal, random};
    use crate::vocabulary::Scheme;

    #[test]
    fn gradients_match_finite_differences() {
        let mut rng = random(4);
        let scheme: Scheme = "2x2g3o2".parse().unwrap();
        let codes = Array3::from_shape_simple_fn((4, 5, 2), || rng.random_range(0..4));
        let codebooks = normal(&mut rng, (2, 4, 2, 3));
        let scales = normal(&mut rng, 4);
        let matrix = QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap();
        let direction: Array2<f64> = normal(&mut rng, (8, 15));
        let loss = |matrix: QuantizedMatrix| inner(ResidentWeight::quantized(matrix).decoded(), &direction);
        let (grad_codebooks, grad_scales) = quantized_gradients(&matrix, direction.view());
        assert_gradient(
            "codebooks",
            &grad_codebooks,
            &matrix.codebooks,
            120,
            |codebooks| {
                loss(QuantizedMatrix {
                    codebooks: codebooks.clone(),
                    ..matrix.clone()
                })
            },
        );
        assert_gradient("scales", &grad_scales, &matrix.scales, 120, |scales| {
            loss(QuantizedMatrix {
                scales: scales.clone(),
                ..matrix.clone()
            })
        });
    }
}
