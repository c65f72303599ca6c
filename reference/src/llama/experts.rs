use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::Block;
use super::fused::apply;
use super::gated_mlp::{Gated, LayerGradients};
use super::linear::linear_backward;
use super::routing::{Routing, route};
use aqlm_vocabulary::{Input, RoutedMlp, SharedExpert};

/// The values inside a mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Routed {
    routing: Routing,
    /// for each expert the rows routed to it, and the values inside
    experts: Vec<(Array2<f64>, Gated)>,
    shared: Option<Shared>,
    /// the output, [tokens, hidden]
    pub(super) out: Array2<f64>,
}

/// The values inside the expert that every token passes.
#[derive(Debug, Clone, PartialEq)]
struct Shared {
    /// the factor of its output, [tokens, 1]
    factor: Array2<f64>,
    inside: Gated,
}

impl Routed {
    /// sum of w_e expert_e(x) over the experts that the router chooses, in the order of experts, and
    /// sigmoid(gate x) shared(x) if there is a shared expert.
    pub(super) fn of(block: &Block, mlp: &RoutedMlp, x: ArrayView2<f64>) -> Self {
        let scores = apply(block, mlp.router, x);
        let routing = route(scores.view(), mlp.used, mlp.normalized);
        let mut out = Array2::zeros(x.dim());
        let mut experts = Vec::with_capacity(mlp.experts.len());
        for (index, expert) in mlp.experts.iter().enumerate() {
            let tokens = &routing.tokens[index];
            let rows = x.select(Axis(0), tokens);
            let inside = Gated::of(block, expert, rows.view());
            for ((&token, row), &weight) in tokens
                .iter()
                .zip(inside.out.outer_iter())
                .zip(&routing.weights[index])
            {
                out.row_mut(token).scaled_add(weight, &row);
            }
            experts.push((rows, inside));
        }
        let shared = mlp.shared.as_ref().map(|SharedExpert { gate, mlp }| {
            let inside = Gated::of(block, mlp, x);
            let factor = apply(block, *gate, x).mapv(|gate| 1.0 / (1.0 + (-gate).exp()));
            out += &(&factor * &inside.out);
            Shared { factor, inside }
        });
        Self {
            routing,
            experts,
            shared,
            out,
        }
    }

    /// The input of the linear layers that read `read`.
    pub(super) fn input(&self, read: Input) -> Option<ArrayView2<'_, f64>> {
        let expert = |index: u16| self.experts.get(usize::from(index));
        match read {
            Input::Activated => self.shared.as_ref().map(|shared| shared.inside.activated.view()),
            Input::Expert(index) => expert(index).map(|(rows, _)| rows.view()),
            Input::ExpertActivated(index) => expert(index).map(|(_, inside)| inside.activated.view()),
            Input::Attention | Input::Attended | Input::Mlp => None,
        }
    }

    /// Given the gradient of the output, the gradient with respect to the input x and those of the layers.
    /// Small changes of x choose the same experts: only the factors of these experts have gradients.
    pub(super) fn backward(
        &self,
        block: &Block,
        mlp: &RoutedMlp,
        x: ArrayView2<f64>,
        grad_out: ArrayView2<f64>,
    ) -> (Array2<f64>, LayerGradients) {
        let mut grad_x = Array2::zeros(x.dim());
        let mut gradients = Vec::new();
        let mut grad_weights = Vec::with_capacity(mlp.experts.len());
        for (index, (spec, (rows, inside))) in mlp.experts.iter().zip(&self.experts).enumerate() {
            let (tokens, weights) = (&self.routing.tokens[index], &self.routing.weights[index]);
            let grad = grad_out.select(Axis(0), tokens);
            grad_weights.push((&grad * &inside.out).sum_axis(Axis(1)));
            let grad = grad * weights.view().insert_axis(Axis(1));
            let (grad_rows, layers) = inside.backward(block, spec, rows.view(), grad.view());
            for (&token, row) in tokens.iter().zip(grad_rows.outer_iter()) {
                let mut to = grad_x.row_mut(token);
                to += &row;
            }
            gradients.extend(layers);
        }
        let through = |layer, grad: &Array2<f64>| linear_backward(x, block.weight(layer).view(), grad.view());
        let router = through(mlp.router, &self.routing.backward(&grad_weights));
        grad_x += &router.x;
        gradients.push((mlp.router, router));
        if let (Some(spec), Some(Shared { factor, inside })) = (&mlp.shared, &self.shared) {
            let grad_factor: Array1<f64> = (&grad_out * &inside.out).sum_axis(Axis(1));
            let slope = factor.mapv(|factor| factor * (1.0 - factor));
            let gate = through(spec.gate, &(grad_factor.insert_axis(Axis(1)) * slope));
            let grad = &grad_out * factor;
            let (grad_shared, layers) = inside.backward(block, &spec.mlp, x, grad.view());
            grad_x += &gate.x;
            grad_x += &grad_shared;
            gradients.push((spec.gate, gate));
            gradients.extend(layers);
        }
        (grad_x, gradients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::test_data::{block, config, normal, random, routed};
    use crate::llama::{ResidentLinear, ResidentWeight};

    /// A block of experts with the same weights is a dense block if the experts' factors add up to 1.
    #[test]
    fn equal_experts_are_one() {
        let mut rng = random(5);
        let spec = routed(true, None);
        let random_block = block(&mut rng, &spec, false);
        let mlp = spec.mlp.routed().unwrap();
        let mut layers: Vec<ResidentLinear> = spec
            .layers()
            .map(|layer| random_block.layer(layer).clone())
            .collect();
        let first = &mlp.experts[0];
        for expert in &mlp.experts {
            for (from, to) in [
                (first.gate, expert.gate),
                (first.up, expert.up),
                (first.down, expert.down),
            ] {
                layers[to.index()] = layers[from.index()].clone();
            }
        }
        let weight = |layer| ResidentWeight::Dense(random_block.weight(layer).clone());
        let dense = config(2, None);
        let plain = dense.mlp.dense().unwrap();
        let mut of_dense: Vec<ResidentLinear> = layers[..4].to_vec();
        for layer in [first.gate, first.up, first.down] {
            of_dense.push(ResidentLinear {
                weight: weight(layer),
                bias: None,
            });
        }
        let norms = random_block.norms.clone();
        let experts = Block::new(&spec, norms.clone(), layers).unwrap();
        let dense_block = Block::new(&dense, norms, of_dense).unwrap();
        let x: Array2<f64> = normal(&mut rng, (6, 12));
        let ours = Routed::of(&experts, mlp, x.view());
        let expected = Gated::of(&dense_block, plain, x.view());
        assert!(
            ours.routing
                .tokens
                .iter()
                .filter(|tokens| !tokens.is_empty())
                .count()
                > 2
        );
        // sums of 12 and 10 products of numbers of order one, and of the weights
        let limit = 100.0 * f64::EPSILON;
        let largest = (&ours.out - &expected.out).fold(0.0, |most: f64, d| most.max(d.abs()));
        assert!(largest < limit, "{largest:e}");
        assert!(expected.out.iter().all(|value| value.abs() > 0.0));
    }
}
