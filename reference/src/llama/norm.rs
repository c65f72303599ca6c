use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, CowArray, Ix1, s};

use super::Block;
use super::rms_norm::{rms_norm, rms_norm_backward};
use aqlm_vocabulary::{NormPlace, NormSpec};

/// An RMSNorm or LayerNorm of each row, or of each piece of a row that is as long as the weights.
///
/// x and the result are [tokens, pieces x width]; the parameters are the weights w `[width]`, then the biases
/// b `[width]` if the norm has some. With x' = x, or x minus its mean for a LayerNorm (Ba et al. 2016): y = w
/// x' / sqrt(mean(x'^2) + eps) + b. A norm of 1 + w multiplies by that instead of by w.
///
/// # Panics
/// When a row is not made of whole pieces.
pub fn norm(spec: NormSpec, x: ArrayView2<f64>, parameters: ArrayView1<f64>) -> Array2<f64> {
    let (weight, biases) = parameters.split_at(Axis(0), spec.width(parameters.len()));
    let mut y = rms_norm(
        centered(spec, pieces(x, weight.len())).view(),
        factor(spec, weight).view(),
        spec.epsilon,
    );
    if spec.biased {
        y += &biases;
    }
    y.into_shape_with_order(x.dim())
        .expect("as many numbers as x has")
}

/// Gradients of [`norm`] with respect to x and the parameters, given the gradient with respect to its result.
///
/// With respect to x, a LayerNorm's is that of the RMSNorm behind it minus its mean over the piece; with
/// respect to the biases, the sum over tokens and pieces of grad_y.
///
/// # Panics
/// As [`norm`].
pub fn norm_backward(
    spec: NormSpec,
    x: ArrayView2<f64>,
    parameters: ArrayView1<f64>,
    grad_y: ArrayView2<f64>,
) -> (Array2<f64>, Array1<f64>) {
    let width = spec.width(parameters.len());
    let weight = parameters.slice(s![..width]);
    let grad_y = pieces(grad_y, width);
    let (grad_x, grad_weight) = rms_norm_backward(
        centered(spec, pieces(x, width)).view(),
        factor(spec, weight).view(),
        spec.epsilon,
        grad_y.view(),
    );
    let mut grad_parameters = grad_weight.into_iter().collect::<Vec<_>>();
    if spec.biased {
        grad_parameters.extend(grad_y.sum_axis(Axis(0)));
    }
    let grad_x = centered(spec, grad_x).into_shape_with_order(x.dim());
    (grad_x.expect("as many numbers as x has"), grad_parameters.into())
}

/// The block's norm at this place, applied to x; x itself if there is none.
pub(super) fn normed(block: &Block, place: NormPlace, x: ArrayView2<f64>) -> Array2<f64> {
    match block.spec().norm(place) {
        Some((index, spec)) => norm(spec.norm, x, block.norms[index].view()),
        None => x.to_owned(),
    }
}

/// The gradient of [`normed`] with respect to x; the one with respect to the weights becomes an element of
/// `weights`, which are in the order of the block's norms.
pub(super) fn normed_backward(
    block: &Block,
    place: NormPlace,
    x: ArrayView2<f64>,
    grad_y: Array2<f64>,
    weights: &mut [Array1<f64>],
) -> Array2<f64> {
    let Some((index, spec)) = block.spec().norm(place) else {
        return grad_y;
    };
    let (grad_x, grad_weight) = norm_backward(spec.norm, x, block.norms[index].view(), grad_y.view());
    weights[index] = grad_weight;
    grad_x
}

/// [tokens, pieces x width] as [tokens x pieces, width].
fn pieces(x: ArrayView2<f64>, width: usize) -> Array2<f64> {
    let rows = x.len() / width;
    let copy = x.as_standard_layout().into_owned();
    copy.into_shape_with_order((rows, width))
        .expect("rows of whole pieces")
}

/// Each row minus its mean, if the norm subtracts means.
fn centered(spec: NormSpec, mut rows: Array2<f64>) -> Array2<f64> {
    if spec.centered {
        for mut row in rows.rows_mut() {
            row -= row.sum() / row.len() as f64;
        }
    }
    rows
}

/// What each normed number is multiplied by.
fn factor(spec: NormSpec, weight: ArrayView1<f64>) -> CowArray<f64, Ix1> {
    if spec.one_plus {
        (1.0 + &weight).into()
    } else {
        weight.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{inner, normal, random};

    #[test]
    fn pieces_are_normed_alone_and_one_is_added_to_the_weights() {
        let mut rng = random(1);
        let (x, weight) = (normal(&mut rng, (3, 8)), normal(&mut rng, 4));
        for one_plus in [false, true] {
            let spec = NormSpec {
                one_plus,
                ..NormSpec::rms(1e-3)
            };
            let y = norm(spec, x.view(), weight.view());
            for half in [s![.., ..4], s![.., 4..]] {
                let alone = norm(spec, x.slice(half), weight.view());
                assert_eq!(y.slice(half), alone);
            }
            let scaled = weight.mapv(|w| if one_plus { 1.0 + w } else { w });
            assert_eq!(
                y.slice(s![.., ..4]),
                rms_norm(x.slice(s![.., ..4]), scaled.view(), 1e-3)
            );
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let mut rng = random(2);
        let (x, weight, direction) = (
            normal(&mut rng, (3, 6)),
            normal(&mut rng, 3),
            normal(&mut rng, (3, 6)),
        );
        let spec = NormSpec {
            one_plus: true,
            ..NormSpec::rms(0.3)
        };
        let loss = |x: &Array2<f64>, w: &Array1<f64>| inner(&norm(spec, x.view(), w.view()), &direction);
        let (grad_x, grad_w) = norm_backward(spec, x.view(), weight.view(), direction.view());
        assert_gradient("x", &grad_x, &x, 18, |x| loss(x, &weight));
        assert_gradient("weight", &grad_w, &weight, 18, |w| loss(&x, w));
    }

    #[test]
    fn a_layer_norm_has_the_mean_of_its_biases_and_unit_variance_before_its_weights() {
        let mut rng = random(3);
        let x = 5.0 * normal(&mut rng, (4, 8)) + 2.0;
        let (ones, biases) = (Array1::ones(8), normal(&mut rng, 8));
        let parameters = ndarray::concatenate![Axis(0), ones, biases];
        let y = norm(NormSpec::layer(0.0), x.view(), parameters.view());
        for (x, y) in x.rows().into_iter().zip(y.rows()) {
            let normed = &y - &biases;
            // sums of 8 numbers of unit size; each rounding contributes at most half an epsilon
            assert!(normed.sum().abs() < 64.0 * f64::EPSILON);
            assert!((normed.dot(&normed) / 8.0 - 1.0).abs() < 32.0 * f64::EPSILON);
            assert!((normed[0] > normed[1]) == (x[0] > x[1]));
        }
    }

    #[test]
    fn gradients_of_layer_norms_match_finite_differences() {
        for biased in [false, true] {
            let mut rng = random(4);
            let spec = NormSpec {
                biased,
                ..NormSpec::layer(0.3)
            };
            let (x, direction) = (normal(&mut rng, (3, 8)), normal(&mut rng, (3, 8)));
            let parameters = normal(&mut rng, spec.parameters(4));
            let loss = |x: &Array2<f64>, p: &Array1<f64>| inner(&norm(spec, x.view(), p.view()), &direction);
            let (grad_x, grad_p) = norm_backward(spec, x.view(), parameters.view(), direction.view());
            assert_gradient("x", &grad_x, &x, 24, |x| loss(x, &parameters));
            assert_gradient("parameters", &grad_p, &parameters, 24, |p| loss(&x, p));
        }
    }
}
