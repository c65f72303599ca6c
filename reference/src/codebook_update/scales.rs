use ndarray::{Array1, Array2, Axis};

use crate::decode::decode_unscaled;
use crate::layer_error::check_shapes;
use crate::linalg::product;
use aqlm_vocabulary::{QuantizedMatrix, Result};

/// The scales of minimum layer error for the codes and codebooks of `matrix`, `[out_groups]`.
///
/// With P the sum of an output group's codewords before scaling, the group's loss is the parabola <W, W>_H -
/// 2 s <P, W>_H + s^2 <P, P>_H. Its minimum is at s = <P, W>_H / <P, P>_H. If <P, P>_H = 0, the scale has no
/// effect and stays.
///
/// # Errors
/// `Shape` when weight [out_features, in_features], H [in_features, in_features] and matrix do not fit.
pub fn optimal_scales(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
) -> Result<Array1<f64>> {
    check_shapes(weight, hessian, matrix)?;
    let plain = decode_unscaled(matrix, matrix.codebooks().view());
    let image = product(plain.view(), hessian.view());
    let rows = matrix.scheme().out_group_size;
    let sums = |dense: &Array2<f64>| -> Array1<f64> {
        (&image * dense)
            .axis_chunks_iter(Axis(0), rows)
            .map(|group| group.sum())
            .collect()
    };
    let (with_weight, with_itself) = (sums(weight), sums(&plain));
    Ok(Array1::from_shape_fn(matrix.scales().len(), |o| {
        let optimum = with_weight[o] / with_itself[o];
        if with_itself[o] > 0.0 && optimum.is_finite() {
            optimum
        } else {
            matrix.scales()[o]
        }
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{config, problem, rounding};
    use crate::{decode, layer_error};

    proptest! {
        #![proptest_config(config(32))]
        #[test]
        fn no_other_scale_is_better(seed: u64, factor in 0.5..1.5f64, scheme in prop::sample::select(vec!["2x3g4", "1x3g4o2"])) {
            let mut p = problem(seed, scheme, 6, 3);
            let scales = optimal_scales(&p.weight, &p.hessian, &p.matrix).unwrap();
            p.matrix = p.matrix.with_scales(scales).unwrap();
            let best = layer_error(&p.weight, &decode(&p.matrix), &p.hessian);
            for o in 0..6 {
                let mut other = p.matrix.clone();
                other.tune(|_, mut scales| scales[o] *= factor);
                let loss = layer_error(&p.weight, &decode(&other), &p.hessian);
                prop_assert!(best <= loss + rounding(&p));
            }
        }
    }

    #[test]
    fn a_scale_that_does_not_matter_stays() {
        let mut p = problem(3, "1x2g4", 4, 2);
        p.matrix.tune(|mut codebooks, _| codebooks.fill(0.0));
        assert_eq!(
            optimal_scales(&p.weight, &p.hessian, &p.matrix).unwrap(),
            p.matrix.scales()
        );
    }
}
