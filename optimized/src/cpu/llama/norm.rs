use std::borrow::Cow;

use aqlm_vocabulary::{NormPlace, NormSpec};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use super::Block;
use super::rms_norm::{rms_norm, rms_norm_backward, rms_norm_row};
use crate::cpu::row_major::elements;
use crate::cpu::zeroed::zeroed;

/// Why a matrix can be seen as rows of another length.
const WHOLE: &str = "rows of whole pieces, one after another";

/// An RMSNorm of each row, or of each piece of a row that is as long as the weights, with or without 1 added
/// to these. x is in standard layout.
pub(super) fn norm(spec: NormSpec, x: ArrayView2<'_, f32>, weight: &Array1<f32>) -> Array2<f32> {
    let y = rms_norm(pieces(x, weight.len()), &factor(spec, weight), spec.epsilon);
    y.into_shape_with_order(x.dim()).expect(WHOLE)
}

/// [`norm`] of one row.
pub(super) fn norm_row(spec: NormSpec, y: &mut [f32], x: &[f32], weight: &Array1<f32>) {
    let factor = factor(spec, weight);
    let width = weight.len();
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        rms_norm_row(y, x, elements(&*factor), spec.epsilon);
    }
}

/// Gradients of [`norm`] given the gradient of its result. Adds the one with respect to x to `grad_x`, and
/// returns the one with respect to the weights. All in standard layout.
pub(super) fn norm_backward(
    spec: NormSpec,
    x: ArrayView2<'_, f32>,
    weight: &Array1<f32>,
    grad_y: ArrayView2<'_, f32>,
    grad_x: Option<ArrayViewMut2<'_, f32>>,
) -> Array1<f64> {
    let width = weight.len();
    let grad_x = grad_x.map(|grad| {
        let rows = grad.len() / width;
        grad.into_shape_with_order((rows, width)).expect(WHOLE)
    });
    let (x, grad_y) = (pieces(x, width), pieces(grad_y, width));
    rms_norm_backward(x, &factor(spec, weight), spec.epsilon, grad_y, grad_x)
}

impl Block {
    /// The block's norm at this place, applied to x; `None` if there is none.
    pub(super) fn normed(&self, place: NormPlace, x: ArrayView2<'_, f32>) -> Option<Array2<f32>> {
        let (index, spec) = self.spec().norm(place)?;
        Some(norm(spec.norm, x, &self.norms[index]))
    }

    /// [`Block::normed`] of one row, in place.
    pub(super) fn norm_in_place(&self, place: NormPlace, row: &mut Vec<f32>) {
        if let Some((index, spec)) = self.spec().norm(place) {
            let mut y = vec![0.0; row.len()];
            norm_row(spec.norm, &mut y, row, &self.norms[index]);
            *row = y;
        }
    }

    /// The gradient of [`Block::normed`] with respect to x, given the one of its result; the one with respect
    /// to the weights is added to `norms` if wanted. Without a norm, the gradient as it is.
    pub(super) fn norm_backward(
        &self,
        place: NormPlace,
        x: Option<&Array2<f32>>,
        grad_y: Array2<f32>,
        wanted: bool,
        norms: &mut [Array1<f64>],
    ) -> Array2<f32> {
        let (Some((index, spec)), Some(x)) = (self.spec().norm(place), x) else {
            return grad_y;
        };
        let mut grad_x = zeroed(x.dim());
        let to = Some(grad_x.view_mut());
        let of_weights = norm_backward(spec.norm, x.view(), &self.norms[index], grad_y.view(), to);
        if wanted {
            norms[index] += &of_weights;
        }
        grad_x
    }
}

/// [rows, pieces x width] as [rows x pieces, width].
fn pieces(x: ArrayView2<'_, f32>, width: usize) -> ArrayView2<'_, f32> {
    let rows = x.len() / width;
    x.into_shape_with_order((rows, width)).expect(WHOLE)
}

/// What each normed number is multiplied by.
fn factor(spec: NormSpec, weight: &Array1<f32>) -> Cow<'_, Array1<f32>> {
    if spec.one_plus {
        Cow::Owned(weight.mapv(|w| 1.0 + w))
    } else {
        Cow::Borrowed(weight)
    }
}
