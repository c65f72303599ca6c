use ndarray::{Array1, Array2, Array4, Axis};

use crate::decode::decode_unscaled;
use crate::occurrences::{Occurrences, scatter};
use aqlm_vocabulary::QuantizedMatrix;

/// Gradients with respect to the codebooks and the scales of a quantized matrix with fixed codes, given the
/// gradient with respect to the decoded weight, [out_features, in_features] (paper section 3.4).
///
/// The weight's group (o, j) is s_o sum_m C_m(code(o, j, m)). Let G be the weight's gradient. The gradient of
/// codeword k of C_m is the sum of s_o G(o, j) over the groups whose code m is k. The gradient of s_o is the
/// sum over j of <G(o, j), sum_m C_m(code(o, j, m))>. Returns ([M, 2^B, out_group, in_group],
/// `[out_groups]`).
///
/// # Panics
/// When the gradient's shape differs from the matrix's.
pub fn quantized_gradients(
    matrix: &QuantizedMatrix,
    grad_weight: &Array2<f64>,
) -> (Array4<f64>, Array1<f64>) {
    assert_eq!(
        grad_weight.dim(),
        (matrix.out_features(), matrix.in_features()),
        "shape of a weight's gradient"
    );
    let grad_codebooks = scatter(grad_weight, matrix, &Occurrences::of_matrix(matrix));
    let unscaled = decode_unscaled(matrix, matrix.codebooks().view());
    let grad_scales = (unscaled * grad_weight)
        .axis_chunks_iter(Axis(0), matrix.scheme().out_group_size)
        .map(|group| group.sum())
        .collect();
    (grad_codebooks, grad_scales)
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;
    use rand::RngExt;

    use super::*;
    use crate::llama::ResidentWeight;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{inner, normal, random};
    use aqlm_vocabulary::Scheme;

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
        let (grad_codebooks, grad_scales) = quantized_gradients(&matrix, &direction);
        assert_gradient(
            "codebooks",
            &grad_codebooks,
            matrix.codebooks(),
            120,
            |codebooks| loss(matrix.clone().with_codebooks(codebooks.clone()).unwrap()),
        );
        assert_gradient("scales", &grad_scales, matrix.scales(), 120, |scales| {
            loss(matrix.clone().with_scales(scales.clone()).unwrap())
        });
    }
}
