use ndarray::{Array1, ArrayView1};

/// The softmax of a row of logits, and its logarithms: e^l_i / sum_j e^l_j and l_i - ln(sum_j e^l_j). The
/// largest logit is subtracted first.
pub(super) fn softmax(logits: ArrayView1<f64>) -> (Array1<f64>, Array1<f64>) {
    let largest = logits.fold(f64::NEG_INFINITY, |most, &logit| most.max(logit));
    let exponentials = logits.mapv(|logit| (logit - largest).exp());
    let sum = exponentials.sum();
    (
        exponentials / sum,
        logits.mapv(|logit| (logit - largest) - sum.ln()),
    )
}
