use aqlm_vocabulary::RoutedMlp;
use ndarray::{Array2, Axis};
use rayon::prelude::*;

use super::softmax::Softmax;
use crate::cpu::row_major::elements_mut;
use crate::cpu::zeroed::zeroed;

/// The experts that a router chooses for some rows.
#[derive(Debug, Clone)]
pub(super) struct Routing {
    /// softmax of the scores, [rows, experts]
    pub(super) probabilities: Array2<f32>,
    /// for each expert its rows, ascending
    pub(super) rows: Vec<Vec<usize>>,
    /// for each expert the factors of its outputs for these rows
    pub(super) weights: Vec<Vec<f32>>,
}

impl Routing {
    /// From scores, [rows, experts].
    pub(super) fn of(mlp: &RoutedMlp, mut scores: Array2<f32>) -> Self {
        let chosen: Vec<Vec<(usize, f32)>> = scores
            .axis_iter_mut(Axis(0))
            .into_par_iter()
            .map(|mut scores| choose(mlp, elements_mut(&mut scores)))
            .collect();
        let mut rows = vec![Vec::new(); mlp.experts.len()];
        let mut weights = vec![Vec::new(); mlp.experts.len()];
        for (row, chosen) in chosen.into_iter().enumerate() {
            for (expert, weight) in chosen {
                rows[expert].push(row);
                weights[expert].push(weight);
            }
        }
        Self {
            probabilities: scores,
            rows,
            weights,
        }
    }

    /// The gradient with respect to the scores, [rows, experts], given those with respect to each expert's
    /// factors. The choice of experts has none.
    pub(super) fn backward(&self, mlp: &RoutedMlp, grad_weights: &[Vec<f32>]) -> Array2<f32> {
        let mut grad = zeroed(self.probabilities.dim());
        // the sum of a row's chosen probabilities, and of its factors times their gradients
        let mut sums = vec![(0.0_f32, 0.0_f32); grad.nrows()];
        for (expert, rows) in self.rows.iter().enumerate() {
            for (at, &row) in rows.iter().enumerate() {
                grad[[row, expert]] = grad_weights[expert][at];
                sums[row].0 += self.probabilities[[row, expert]];
                sums[row].1 += self.weights[expert][at] * grad_weights[expert][at];
            }
        }
        if mlp.normalized {
            for (expert, rows) in self.rows.iter().enumerate() {
                for &row in rows {
                    let (sum, mean) = sums[row];
                    grad[[row, expert]] = (grad[[row, expert]] - mean) / sum;
                }
            }
        }
        for (mut grad, p) in grad.outer_iter_mut().zip(self.probabilities.outer_iter()) {
            let mean: f32 = grad.iter().zip(p).map(|(grad, p)| grad * p).sum();
            grad.zip_mut_with(&p, |grad, p| *grad = p * (*grad - mean));
        }
        grad
    }
}

/// The experts of one row, ascending, with the factors of their outputs. The softmax of the scores replaces
/// them.
pub(super) fn choose(mlp: &RoutedMlp, scores: &mut [f32]) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_unstable_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(mlp.used);
    order.sort_unstable();
    let softmax = Softmax::of(scores);
    softmax.exponentials(scores);
    let whole: f64 = order.iter().map(|&expert| f64::from(scores[expert])).sum();
    let whole = if mlp.normalized { whole } else { softmax.sum };
    let chosen = order
        .into_iter()
        .map(|expert| (expert, (f64::from(scores[expert]) / whole) as f32))
        .collect();
    for score in scores {
        *score = (f64::from(*score) / softmax.sum) as f32;
    }
    chosen
}
