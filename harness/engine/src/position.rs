//! Next-token distributions of two models, compared at one position.

use aqlm_vocabulary::ComparedPosition;
use ndarray::{Array2, ArrayView1, ArrayViewMut1, Axis};
use rayon::prelude::*;

/// Whether all numbers of a position are finite.
pub fn is_finite(position: &ComparedPosition) -> bool {
    let &ComparedPosition {
        kl,
        dense_loss,
        loss,
        dense_top,
        ..
    } = position;
    [kl, dense_loss, loss, dense_top]
        .iter()
        .all(|number| number.is_finite())
}

/// Probability of the text's token in the model minus that in the dense model.
pub fn delta_p(position: &ComparedPosition) -> f64 {
    (-position.loss).exp() - (-position.dense_loss).exp()
}

/// [`compare`] at each row of log-probabilities, [positions, vocab].
pub fn compare_all(
    dense: &Array2<f64>,
    model: &Array2<f64>,
    tokens: &[u32],
    floor: Option<f64>,
) -> Vec<ComparedPosition> {
    let rows = dense.axis_iter(Axis(0)).into_par_iter();
    rows.zip(model.axis_iter(Axis(0)))
        .zip(tokens)
        .map(|((dense, model), &token)| compare(&dense, &model, token, floor))
        .collect()
}

/// Compares log-probabilities `[vocab]` at a position before `token`.
///
/// KL is the sum over tokens of p (ln p - ln q), p of the dense model. With a `floor`, only tokens with ln p
/// above it count. Tokens without probability in the dense model contribute nothing.
pub fn compare(
    dense: &ArrayView1<'_, f64>,
    model: &ArrayView1<'_, f64>,
    token: u32,
    floor: Option<f64>,
) -> ComparedPosition {
    let floor = floor.unwrap_or(f64::NEG_INFINITY);
    let mut kl = 0.0;
    for (&p, &q) in dense.iter().zip(model) {
        // NaN must not be skipped as if it were below the floor.
        if p > floor || p.is_nan() {
            kl += p.exp() * (p - q);
        }
    }
    let (dense_top, model_top) = (largest(dense), largest(model));
    ComparedPosition {
        kl,
        dense_loss: -dense[token as usize],
        loss: -model[token as usize],
        dense_top: dense[dense_top].exp(),
        same_top: dense_top == model_top,
    }
}

/// Index of the first of the largest values.
fn largest(values: &ArrayView1<'_, f64>) -> usize {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}

/// Turns logits into log-probabilities, each row by itself.
pub fn log_softmax(logits: &mut Array2<f64>) {
    let row = |mut row: ArrayViewMut1<'_, f64>| {
        let most = row.fold(f64::NEG_INFINITY, |most, &logit| most.max(logit));
        let sum: f64 = row.iter().map(|logit| (logit - most).exp()).sum();
        let log_sum = sum.ln();
        row.mapv_inplace(|logit| (logit - most) - log_sum);
    };
    logits.axis_iter_mut(Axis(0)).into_par_iter().for_each(row);
}
