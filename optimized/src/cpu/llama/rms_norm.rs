use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::vectorize::{LANES, close, dot, multiply_add, vectorized};
use crate::cpu::zeroed::zeroed;

/// Rows of one task; also the rows whose weight gradients are summed before they are added to the total.
const ROWS: usize = 64;

/// RMSNorm of each row: y = w x / sqrt(mean(x^2) + eps), x and y [rows, hidden] (Zhang and Sennrich 2019).
pub(super) fn rms_norm(x: ArrayView2<'_, f32>, weight: &Array1<f32>, eps: f64) -> Array2<f32> {
    let mut y = zeroed(x.dim());
    let x = x.as_standard_layout();
    y.axis_chunks_iter_mut(Axis(0), ROWS)
        .into_par_iter()
        .zip(x.axis_chunks_iter(Axis(0), ROWS))
        .for_each(|(mut y, x)| {
            for (mut y, x) in y.outer_iter_mut().zip(x.outer_iter()) {
                rms_norm_row(elements_mut(&mut y), elements(&x), elements(weight), eps);
            }
        });
    y
}

/// RMSNorm of one row.
pub(super) fn rms_norm_row(y: &mut [f32], x: &[f32], weight: &[f32], eps: f64) {
    let factor = reciprocal_root(x, eps);
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = factor * x * w;
    }
}

/// Gradients given the gradient of the result. Adds the one with respect to x, [rows, hidden], to `grad_x`,
/// and returns the one with respect to the weight, `[hidden]`.
///
/// With r the reciprocal root and u = w grad_y: grad_x = r u - x r^3 <u, x> / hidden, and grad_w is the sum
/// over rows of grad_y r x, here in f64.
pub(super) fn rms_norm_backward(
    x: ArrayView2<'_, f32>,
    weight: &Array1<f32>,
    eps: f64,
    grad_y: ArrayView2<'_, f32>,
    mut grad_x: Option<ArrayViewMut2<'_, f32>>,
) -> Array1<f64> {
    let hidden = x.ncols();
    let weight = elements(weight);
    let one_task = |x: ArrayView2<'_, f32>,
                    grad_y: ArrayView2<'_, f32>,
                    grad_x: Option<ArrayViewMut2<'_, f32>>| {
        let mut grad_weight = vec![0.0f32; hidden];
        let mut grad_rows = grad_x;
        for (r, (x, grad_y)) in x.outer_iter().zip(grad_y.outer_iter()).enumerate() {
            let (x, grad_y) = (elements(&x), elements(&grad_y));
            let factor = reciprocal_root(x, eps);
            for ((sum, x), g) in grad_weight.iter_mut().zip(x).zip(grad_y) {
                *sum += g * (factor * x);
            }
            if let Some(rows) = &mut grad_rows {
                let along = triple_product(x, weight, grad_y) * factor * factor * factor / hidden as f32;
                let mut row = rows.row_mut(r);
                for (((to, x), w), g) in elements_mut(&mut row).iter_mut().zip(x).zip(weight).zip(grad_y) {
                    *to += factor * w * g - along * x;
                }
            }
        }
        grad_weight
    };
    let inputs = x
        .axis_chunks_iter(Axis(0), ROWS)
        .into_par_iter()
        .zip(grad_y.axis_chunks_iter(Axis(0), ROWS));
    let parts: Vec<Vec<f32>> = match grad_x.as_mut() {
        Some(grad_x) => inputs
            .zip(grad_x.axis_chunks_iter_mut(Axis(0), ROWS))
            .map(|((x, grad_y), grad_x)| one_task(x, grad_y, Some(grad_x)))
            .collect(),
        None => inputs.map(|(x, grad_y)| one_task(x, grad_y, None)).collect(),
    };
    let mut grad_weight = Array1::zeros(hidden);
    for part in parts {
        for (sum, part) in grad_weight.iter_mut().zip(part) {
            *sum += f64::from(part);
        }
    }
    grad_weight
}

/// 1 / sqrt(mean(x^2) + eps).
fn reciprocal_root(x: &[f32], eps: f64) -> f32 {
    (1.0 / (f64::from(dot(x, x)) / x.len() as f64 + eps).sqrt()) as f32
}

#[inline(always)]
fn triple_product_body<const FUSED: bool>(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = a.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        for l in 0..LANES {
            lanes[l] = multiply_add::<FUSED>(a[i + l] * b[i + l], c[i + l], lanes[l]);
        }
    }
    for i in whole..a.len() {
        lanes[i - whole] = multiply_add::<FUSED>(a[i] * b[i], c[i], lanes[i - whole]);
    }
    close(lanes)
}

vectorized! {
    /// The sum of a b c over vectors of equal length.
    fn triple_product(a: &[f32], b: &[f32], c: &[f32]) -> f32 = triple_product_body
}
