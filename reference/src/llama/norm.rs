use ndarray::{Array1, Array2, ArrayView1, ArrayView2, CowArray, Ix1};

use super::Block;
use super::rms_norm::{rms_norm, rms_norm_backward};
use aqlm_vocabulary::{NormPlace, NormSpec};

/// An RMSNorm of each row, or of each piece of a row that is as long as the weights.
///
/// x and the result are [tokens, pieces x width], the weights w `[width]`. A norm of 1 + w multiplies by that
/// instead of by w.
///
/// # Panics
/// When a row is not made of whole pieces.
pub fn norm(spec: NormSpec, x: ArrayView2<f64>, weight: ArrayView1<f64>) -> Array2<f64> {
    let y = rms_norm(
        pieces(x, weight.len()).view(),
        factor(spec, weight).view(),
        spec.epsilon,
    );
    y.into_shape_with_order(x.dim())
        .expect("as many numbers as x has")
}

/// Gradients of [`norm`] with respect to x and the weights, given the gradient with respect to its result.
///
/// # Panics
/// As [`norm`].
pub fn norm_backward(
    spec: NormSpec,
    x: ArrayView2<f64>,
    weight: ArrayView1<f64>,
    grad_y: ArrayView2<f64>,
) -> (Array2<f64>, Array1<f64>) {
    let width = weight.len();
    let (grad_x, grad_weight) = rms_norm_backward(
        pieces(x, width).view(),
        factor(spec, weight).view(),
        spec.epsilon,
        pieces(grad_y, width).view(),
    );
    let grad_x = grad_x.into_shape_with_order(x.dim());
    (grad_x.expect("as many numbers as x has"), grad_weight)
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
    use ndarray::s;

    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{inner, normal, random};

    #[test]
    fn pieces_are_normed_alone_and_one_is_added_to_the_weights() {
        let mut rng = random(1);
        let (x, weight) = (normal(&mut rng, (3, 8)), normal(&mut rng, 4));
        for one_plus in [false, true] {
            let spec = NormSpec {
                epsilon: 1e-3,
                one_plus,
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
            epsilon: 0.3,
            one_plus: true,
        };
        let loss = |x: &Array2<f64>, w: &Array1<f64>| inner(&norm(spec, x.view(), w.view()), &direction);
        let (grad_x, grad_w) = norm_backward(spec, x.view(), weight.view(), direction.view());
        assert_gradient("x", &grad_x, &x, 18, |x| loss(x, &weight));
        assert_gradient("weight", &grad_w, &weight, 18, |w| loss(&x, w));
    }
}
