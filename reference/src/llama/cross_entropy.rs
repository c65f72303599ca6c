use ndarray::{Array1, Array2, ArrayView2};

use super::model::check_tokens;
use super::softmax::softmax;
use aqlm_vocabulary::{AqlmError, Result};

/// Negative log-likelihood in nats of each target under its row of logits, `[rows]`, and the gradient of
/// their sum with respect to the logits, [rows, vocab]: softmax minus the target's indicator.
///
/// # Errors
/// `Shape` unless there is one target per row, `TokenOutOfRange` when a target has no logit.
pub fn cross_entropy(logits: ArrayView2<f64>, targets: &[u32]) -> Result<(Array1<f64>, Array2<f64>)> {
    if targets.len() != logits.nrows() {
        return Err(AqlmError::Shape {
            what: "targets".into(),
            expected: vec![logits.nrows()],
            found: vec![targets.len()],
        });
    }
    check_tokens(targets, logits.ncols())?;
    let mut losses = Array1::zeros(targets.len());
    let mut gradient = Array2::zeros(logits.dim());
    for (t, &target) in targets.iter().enumerate() {
        let (q, log_q) = softmax(logits.row(t));
        losses[t] = -log_q[target as usize];
        gradient.row_mut(t).assign(&q);
        gradient[[t, target as usize]] -= 1.0;
    }
    Ok((losses, gradient))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{normal, random};
    use crate::llama::token_losses;

    #[test]
    fn losses_are_token_losses_and_their_gradient_matches_finite_differences() {
        let logits: Array2<f64> = 3.0 * normal(&mut random(41), (4, 7));
        let targets = [6, 0, 3, 3];
        let (losses, gradient) = cross_entropy(logits.view(), &targets).unwrap();
        let expected = token_losses(logits.view(), &targets).unwrap();
        for (ours, expected) in losses.iter().zip(&expected) {
            // two roundings of numbers below 32
            assert!((ours - expected).abs() <= 64.0 * f64::EPSILON);
        }
        let sum = |logits: &Array2<f64>| cross_entropy(logits.view(), &targets).unwrap().0.sum();
        assert_gradient("logits", &gradient, &logits, 28, sum);
    }

    #[test]
    fn targets_that_do_not_fit_are_refused() {
        let logits = Array2::zeros((2, 3));
        assert!(matches!(
            cross_entropy(logits.view(), &[1]),
            Err(AqlmError::Shape { .. })
        ));
        assert!(matches!(
            cross_entropy(logits.view(), &[1, 3]),
            Err(AqlmError::TokenOutOfRange {
                token: 3,
                position: 1,
                ..
            })
        ));
    }
}
