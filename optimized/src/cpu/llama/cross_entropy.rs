use aqlm_vocabulary::{AqlmError, Result};
use ndarray::Array2;
use rayon::prelude::*;

use super::head::check_tokens;
use super::softmax::Softmax;
use crate::cpu::row_major::relaid;

/// Rows of one task.
const ROWS: usize = 16;

/// Sum over rows of the negative log-likelihood in nats of each row's target, in f64. Replaces the logits,
/// [rows, vocab], by `scale` times the gradient of that sum: softmax minus the target's indicator.
///
/// # Errors
/// `Shape` unless there is one target for each row, `TokenOutOfRange` when a target exceeds the vocabulary.
pub fn cross_entropy(logits: &mut Array2<f32>, targets: &[u32], scale: f64) -> Result<f64> {
    let (rows, vocab) = logits.dim();
    if targets.len() != rows {
        return Err(AqlmError::Shape {
            what: "targets".into(),
            expected: vec![rows],
            found: vec![targets.len()],
        });
    }
    check_tokens(targets, vocab)?;
    let one_task = |(values, targets): (&mut [f32], &[u32])| -> f64 {
        let mut sum = 0.0;
        for (row, &target) in values.chunks_exact_mut(vocab).zip(targets) {
            let softmax = Softmax::of(row);
            sum += -softmax.log_probability(row[target as usize]);
            let factor = (scale / softmax.sum) as f32;
            softmax.exponentials(row);
            for value in row.iter_mut() {
                *value *= factor;
            }
            row[target as usize] -= scale as f32;
        }
        sum
    };
    let sums: Vec<f64> = relaid(logits)
        .par_chunks_mut(ROWS * vocab.max(1))
        .zip(targets.par_chunks(ROWS))
        .map(one_task)
        .collect();
    Ok(sums.iter().sum())
}
