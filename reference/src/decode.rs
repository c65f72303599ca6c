use ndarray::{Array2, ArrayView4, Axis};
use rayon::prelude::*;

use aqlm_vocabulary::QuantizedMatrix;

/// The dense weight [out_features, in_features] encoded by codes, codebooks and scales (paper section 3.1):
/// element (o go + a, j gi + b) is `scales[o] * sum_m codebooks[m, codes[o, j, m], a, b]`.
pub fn decode(matrix: &QuantizedMatrix) -> Array2<f64> {
    decode_scaled(matrix, matrix.codebooks().view())
}

/// [`decode()`] with `codebooks` instead of the matrix's own.
pub(crate) fn decode_scaled(matrix: &QuantizedMatrix, codebooks: ArrayView4<'_, f64>) -> Array2<f64> {
    let mut weight = decode_unscaled(matrix, codebooks);
    let rows = matrix.scheme().out_group_size;
    for (mut group, &scale) in weight.axis_chunks_iter_mut(Axis(0), rows).zip(matrix.scales()) {
        group *= scale;
    }
    weight
}

/// The sums of codewords of `codebooks` before scaling.
pub(crate) fn decode_unscaled(matrix: &QuantizedMatrix, codebooks: ArrayView4<'_, f64>) -> Array2<f64> {
    let (go, gi) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
    let mut weight = Array2::zeros((matrix.out_features(), matrix.in_features()));
    weight
        .axis_chunks_iter_mut(Axis(0), go)
        .into_par_iter()
        .zip(matrix.codes().axis_iter(Axis(0)).into_par_iter())
        .for_each(|(mut rows, codes)| {
            for (j, codes) in codes.outer_iter().enumerate() {
                let mut group = rows.slice_mut(ndarray::s![.., j * gi..(j + 1) * gi]);
                for (m, &code) in codes.iter().enumerate() {
                    group += &codebooks.slice(ndarray::s![m, usize::from(code), .., ..]);
                }
            }
        });
    weight
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array3, Array4, array};
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{config, problem};
    use aqlm_vocabulary::Scheme;

    fn with_codebooks(matrix: &QuantizedMatrix, codebooks: Array4<f64>) -> QuantizedMatrix {
        matrix.clone().with_codebooks(codebooks).unwrap()
    }

    #[test]
    fn a_matrix_small_enough_to_do_by_hand() {
        let scheme = Scheme::with_out_group(2, 1, 2, 2).unwrap();
        let codes = Array3::from_shape_vec((1, 2, 2), vec![0, 1, 1, 0]).unwrap();
        let first = [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0];
        let second = [0.5, 0.5, 0.5, 0.5, -1.0, 0.0, 0.0, 1.0];
        let codebooks = Array4::from_shape_vec((2, 2, 2, 2), [first, second].concat()).unwrap();
        let matrix = QuantizedMatrix::new(scheme, codes, codebooks, array![2.0]).unwrap();
        assert_eq!(
            decode(&matrix),
            array![[0.0, 4.0, 21.0, 41.0], [6.0, 10.0, 61.0, 81.0]]
        );
    }

    proptest! {
        #![proptest_config(config(32))]
        #[test]
        fn decoding_is_linear_in_the_codebooks(seed: u64, x in -3.0..3.0f64) {
            let p = problem(seed, "3x3g4o2", 3, 2);
            let q = problem(seed ^ 5, "3x3g4o2", 3, 2);
            let mixed = with_codebooks(&p.matrix, p.matrix.codebooks() + &(q.matrix.codebooks() * x));
            let other = with_codebooks(&p.matrix, q.matrix.codebooks().clone());
            let expected = decode(&p.matrix) + decode(&other) * x;
            // three codewords of size about 1, times x, times the scale
            prop_assert!(approx::abs_diff_eq!(decode(&mixed), expected, epsilon = 256.0 * f64::EPSILON));
        }

        #[test]
        fn scales_multiply_their_rows(seed: u64) {
            let p = problem(seed, "2x3g4o2", 3, 2);
            let plain = p.matrix.clone().with_scales(Array1::ones(3)).unwrap();
            let (scaled, plain) = (decode(&p.matrix), decode(&plain));
            for ((r, c), &value) in scaled.indexed_iter() {
                prop_assert_eq!(value, plain[[r, c]] * p.matrix.scales()[r / 2]);
            }
        }
    }
}
