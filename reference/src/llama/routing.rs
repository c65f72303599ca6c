use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::softmax::softmax;

/// The experts that a router chooses for some tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// softmax of the scores, [tokens, experts]
    pub probabilities: Array2<f64>,
    /// for each expert its tokens, ascending
    pub tokens: Vec<Vec<usize>>,
    /// for each expert the factors of its outputs for these tokens
    pub weights: Vec<Array1<f64>>,
    /// whether the factors of a token's experts add up to 1
    normalized: bool,
}

/// Sends each token to the `used` experts with the largest scores, [tokens, experts]. Of equal scores, the
/// expert with the lower index is chosen. An expert's factor is its probability in the softmax of all scores,
/// divided by the sum of the chosen ones if `normalized`.
///
/// # Panics
/// When there are fewer experts than a token uses.
pub fn route(scores: ArrayView2<f64>, used: usize, normalized: bool) -> Routing {
    let (_, experts) = scores.dim();
    let mut probabilities = Array2::zeros(scores.dim());
    let mut tokens = vec![Vec::new(); experts];
    let mut weights = vec![Vec::new(); experts];
    for (token, (scores, mut row)) in scores
        .outer_iter()
        .zip(probabilities.outer_iter_mut())
        .enumerate()
    {
        row.assign(&softmax(scores).0);
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let chosen = &order[..used];
        let sum: f64 = chosen.iter().map(|&expert| row[expert]).sum();
        for &expert in chosen {
            tokens[expert].push(token);
            weights[expert].push(row[expert] / if normalized { sum } else { 1.0 });
        }
    }
    Routing {
        probabilities,
        tokens,
        weights: weights.into_iter().map(Array1::from).collect(),
        normalized,
    }
}

impl Routing {
    /// The gradient with respect to the scores, [tokens, experts], given those with respect to each expert's
    /// factors. The choice of experts has none.
    pub fn backward(&self, grad_weights: &[Array1<f64>]) -> Array2<f64> {
        // with respect to the probabilities
        let mut grad = Array2::zeros(self.probabilities.dim());
        let each = |expert: usize| self.tokens[expert].iter().copied().enumerate();
        for (expert, grads) in grad_weights.iter().enumerate() {
            for (at, token) in each(expert) {
                grad[[token, expert]] = grads[at];
            }
        }
        if self.normalized {
            // w_e = p_e / s with s the sum of the chosen p: dw_e / dp_f = ((e = f) - w_e) / s
            let mut sums = Array1::<f64>::zeros(grad.nrows());
            let mut means = Array1::<f64>::zeros(grad.nrows());
            for (expert, weights) in self.weights.iter().enumerate() {
                for (at, token) in each(expert) {
                    sums[token] += self.probabilities[[token, expert]];
                    means[token] += weights[at] * grad[[token, expert]];
                }
            }
            for expert in 0..self.tokens.len() {
                for (_, token) in each(expert) {
                    let grad = &mut grad[[token, expert]];
                    *grad = (*grad - means[token]) / sums[token];
                }
            }
        }
        // p = softmax(s): dL / ds_i = p_i (dL / dp_i - sum_j p_j dL / dp_j)
        let means = (&grad * &self.probabilities)
            .sum_axis(Axis(1))
            .insert_axis(Axis(1));
        (grad - means) * &self.probabilities
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{arr1, arr2};

    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{normal, random};

    #[test]
    fn the_largest_are_chosen_and_of_equals_the_first() {
        let scores = arr2(&[[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 1.0, 2.0]]);
        let routing = route(scores.view(), 2, true);
        assert_eq!(routing.tokens, [vec![1, 2], vec![0, 1], vec![0], vec![2]]);
        assert_eq!(routing.weights[1], arr1(&[0.5, 0.5]));
        let first = 1.0 / (1.0 + (-1.0_f64).exp());
        assert!((routing.weights[0][1] - first).abs() < 4.0 * f64::EPSILON);
        let plain = route(scores.view(), 2, false);
        assert_eq!(plain.tokens, routing.tokens);
        assert_eq!(plain.weights[2][0], plain.probabilities[[0, 2]]);
        assert!(plain.weights[2][0] < 0.5);
    }

    #[test]
    fn gradients_match_finite_differences() {
        // the differences between a token's scores are far above the steps of the numerical gradient
        let scores = arr2(&[
            [0.9, -0.4, 0.3, 1.6],
            [-1.0, 0.5, 2.0, 0.1],
            [0.2, 0.7, -0.6, -1.3],
        ]);
        let direction: Array2<f64> = normal(&mut random(1), scores.dim());
        for normalized in [false, true] {
            for used in 1..=4 {
                let loss = |scores: &Array2<f64>| {
                    let routing = route(scores.view(), used, normalized);
                    let of = |expert: usize| {
                        let tokens = routing.tokens[expert].iter().zip(&routing.weights[expert]);
                        tokens
                            .map(|(&token, weight)| direction[[token, expert]] * weight)
                            .sum::<f64>()
                    };
                    (0..4).map(of).sum()
                };
                let routing = route(scores.view(), used, normalized);
                let of = |expert: usize| {
                    let tokens = routing.tokens[expert].iter();
                    tokens
                        .map(|&token| direction[[token, expert]])
                        .collect::<Array1<f64>>()
                };
                let grads: Vec<_> = (0..4).map(of).collect();
                let ours = routing.backward(&grads);
                if normalized && used == 1 {
                    // the factor of the only expert is 1
                    assert!(ours.iter().all(|grad| grad.abs() < 4.0 * f64::EPSILON));
                    continue;
                }
                assert_gradient(&format!("{used} of 4"), &ours, &scores, scores.len(), loss);
            }
        }
    }
}
