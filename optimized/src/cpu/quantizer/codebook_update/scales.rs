use aqlm_reference::vocabulary::QuantizedMatrix;
use ndarray::Array1;

use crate::cpu::quantizer::decode::decode;
use crate::cpu::quantizer::problem::{Problem, row_products};

/// The scales of least layer error for the codes and codebooks of `matrix`, `[out_groups]`.
///
/// With P the sum of an output group's codewords before scaling, its loss is a parabola in s, least at
/// s = <P, W>_H / <P, P>_H. A scale that does not matter (<P, P>_H = 0) stays.
pub(super) fn optimal_scales(problem: &Problem, matrix: &QuantizedMatrix) -> Array1<f64> {
    let mut plain = matrix.clone();
    plain.scales.fill(1.0);
    let plain = decode(&plain);
    let image = problem.image(&plain);
    let go = matrix.scheme.out_group_size;
    let of_groups =
        |rows: Vec<f64>| -> Vec<f64> { rows.chunks_exact(go).map(|rows| rows.iter().sum()).collect() };
    let with_weight = of_groups(row_products(&image, &problem.weight));
    let with_itself = of_groups(row_products(&image, &plain));
    Array1::from_shape_fn(matrix.scales.len(), |o| {
        let optimum = with_weight[o] / with_itself[o];
        if with_itself[o] > 0.0 && optimum.is_finite() {
            optimum
        } else {
            matrix.scales[o]
        }
    })
}
