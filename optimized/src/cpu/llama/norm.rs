use std::borrow::Cow;

use aqlm_vocabulary::{NormPlace, NormSpec};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2};

use super::Block;
use super::rms_norm::{rms_norm, rms_norm_backward, rms_norm_row};
use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::zeroed::zeroed;

/// Why a matrix can be seen as rows of another length.
const WHOLE: &str = "rows of whole pieces, one after another";

/// An RMSNorm or LayerNorm of each row, or of each piece of a row that is as long as the weights, with or
/// without 1 added to these. The parameters are the weights, then the biases if there are some. x is in
/// standard layout.
pub(super) fn norm(spec: NormSpec, x: ArrayView2<'_, f32>, parameters: &Array1<f32>) -> Array2<f32> {
    let (weight, biases) = split(spec, parameters);
    let mut y = rms_norm(
        centered(spec, pieces(x, weight.len())).view(),
        &weight,
        spec.epsilon,
    );
    if let Some(biases) = biases {
        y += &biases;
    }
    y.into_shape_with_order(x.dim()).expect(WHOLE)
}

/// [`norm`] of one row.
pub(super) fn norm_row(spec: NormSpec, y: &mut [f32], x: &[f32], parameters: &Array1<f32>) {
    let (weight, biases) = split(spec, parameters);
    let width = weight.len();
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        if spec.centered {
            let mut x = x.to_vec();
            center(&mut x);
            rms_norm_row(y, &x, elements(&*weight), spec.epsilon);
        } else {
            rms_norm_row(y, x, elements(&*weight), spec.epsilon);
        }
        for (y, bias) in y.iter_mut().zip(biases.iter().flatten()) {
            *y += bias;
        }
    }
}

/// Gradients of [`norm`] given the gradient of its result. Adds the one with respect to x to `grad_x`, and
/// returns the one with respect to the parameters. All in standard layout.
///
/// A LayerNorm is an RMSNorm behind a projection, whose transpose subtracts the mean of the gradient.
pub(super) fn norm_backward(
    spec: NormSpec,
    x: ArrayView2<'_, f32>,
    parameters: &Array1<f32>,
    grad_y: ArrayView2<'_, f32>,
    grad_x: Option<ArrayViewMut2<'_, f32>>,
) -> Array1<f64> {
    let (weight, biases) = split(spec, parameters);
    let width = weight.len();
    let mut grad_x = grad_x.map(|grad| {
        let rows = grad.len() / width;
        grad.into_shape_with_order((rows, width)).expect(WHOLE)
    });
    let (x, grad_y) = (pieces(x, width), pieces(grad_y, width));
    let mut own = (spec.centered && grad_x.is_some()).then(|| zeroed(x.dim()));
    let to = match (&mut own, &mut grad_x) {
        (Some(own), _) => Some(own.view_mut()),
        (None, grad_x) => grad_x.as_mut().map(|grad| grad.view_mut()),
    };
    let x = centered(spec, x);
    let of_weights = rms_norm_backward(x.view(), &weight, spec.epsilon, grad_y, to);
    if let (Some(own), Some(grad_x)) = (own, &mut grad_x) {
        *grad_x += &centered(spec, own.view());
    }
    if biases.is_none() {
        return of_weights;
    }
    let mut of_parameters = Array1::zeros(2 * width);
    let (mut first, mut second) = of_parameters.view_mut().split_at(Axis(0), width);
    first.assign(&of_weights);
    for row in grad_y.outer_iter() {
        second.zip_mut_with(&row, |sum: &mut f64, &grad| *sum += f64::from(grad));
    }
    of_parameters
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

/// What each normed number is multiplied by, and what is added then.
fn split(spec: NormSpec, parameters: &Array1<f32>) -> (Cow<'_, Array1<f32>>, Option<ArrayView1<'_, f32>>) {
    let (weight, biases) = parameters.view().split_at(Axis(0), spec.width(parameters.len()));
    let factor = match (spec.one_plus, spec.biased) {
        (true, _) => Cow::Owned(weight.mapv(|w| 1.0 + w)),
        (false, true) => Cow::Owned(weight.to_owned()),
        (false, false) => Cow::Borrowed(parameters),
    };
    (factor, spec.biased.then_some(biases))
}

/// Each row minus its mean, if the norm subtracts means.
fn centered(spec: NormSpec, x: ArrayView2<'_, f32>) -> CowArray<'_, f32, Ix2> {
    if !spec.centered {
        return x.into();
    }
    let mut x = x.as_standard_layout().into_owned();
    for mut row in x.outer_iter_mut() {
        center(elements_mut(&mut row));
    }
    x.into()
}

/// Subtracts the mean, which is summed in f64.
fn center(row: &mut [f32]) {
    let sum: f64 = row.iter().map(|&value| f64::from(value)).sum();
    let mean = (sum / row.len() as f64) as f32;
    for value in row {
        *value -= mean;
    }
}
