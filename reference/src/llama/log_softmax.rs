use ndarray::{Array1, ArrayView1};

/// Logarithms of the softmax of a row of logits: l_i - ln(sum_j e^l_j), the largest logit taken out of the sum first.
pub(super) fn log_softmax(logits: ArrayView1<f64>) -> Array1<f64> {
    let largest = logits.fold(f64::NEG_INFINITY, |most, &logit| most.max(logit));
    let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    logits.mapv(|logit| (logit - largest) - sum.ln())
}
