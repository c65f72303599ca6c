use aqlm_vocabulary::{BlockSpec, Input, RoutedMlp};
use ndarray::{Array2, ArrayView2, Axis, Zip};

use super::Block;
use super::fused::apply;
use super::gated_mlp::Gated;
use super::linear_backward::{ParameterSums, add_back, back};
use super::routing::Routing;
use crate::cpu::zeroed::zeroed;

/// The values inside a mixture of experts.
#[derive(Debug, Clone)]
pub(super) struct Routed {
    routing: Routing,
    /// for each expert the rows routed to it, and the values inside
    experts: Vec<(Array2<f32>, Gated)>,
    /// of the shared expert: the factor of its output, [rows, 1], and the values inside
    shared: Option<(Array2<f32>, Gated)>,
}

impl Routed {
    /// From the MLP's input, with its output: sum of w_e expert_e(x) over the experts that the router
    /// chooses, in the order of experts, and sigmoid(gate x) shared(x) if there is a shared expert.
    pub(super) fn of(block: &Block, mlp: &RoutedMlp, x: ArrayView2<'_, f32>) -> (Self, Array2<f32>) {
        let routing = Routing::of(mlp, apply(block, mlp.router, x));
        let mut out = zeroed(x.dim());
        let mut experts = Vec::with_capacity(mlp.experts.len());
        for ((expert, rows), weights) in mlp.experts.iter().zip(&routing.rows).zip(&routing.weights) {
            let own = x.select(Axis(0), rows);
            let inside = Gated::of(block, expert, own.view());
            if !rows.is_empty() {
                let added = apply(block, expert.down, inside.activated.view());
                add_rows(&mut out, rows, weights, &added);
            }
            experts.push((own, inside));
        }
        let shared = mlp.shared.as_ref().map(|shared| {
            let inside = Gated::of(block, &shared.mlp, x);
            let factor = apply(block, shared.gate, x).mapv(sigmoid);
            let added = apply(block, shared.mlp.down, inside.activated.view());
            add_scaled(&mut out, &factor, &added);
            (factor, inside)
        });
        let inside = Self {
            routing,
            experts,
            shared,
        };
        (inside, out)
    }

    /// The input of the linear layers that read `read`.
    pub(super) fn input(&self, read: Input) -> Option<ArrayView2<'_, f32>> {
        let expert = |index: u16| self.experts.get(usize::from(index));
        match read {
            Input::Activated => self.shared.as_ref().map(|(_, inside)| inside.activated.view()),
            Input::Expert(index) => expert(index).map(|(rows, _)| rows.view()),
            Input::ExpertActivated(index) => expert(index).map(|(_, inside)| inside.activated.view()),
            Input::Attention | Input::Attended | Input::Mlp => None,
        }
    }

    /// Given the gradient of the output, adds those of the layers and returns that of the input x. Small
    /// changes of x choose the same experts: only the factors of these experts have gradients.
    ///
    /// The gradient of a factor w of w D a, with a the activated gate and D the last layer, is (grad D) a. So
    /// no output of an expert is kept.
    pub(super) fn backward(
        &self,
        block: &Block,
        mlp: &RoutedMlp,
        x: ArrayView2<'_, f32>,
        grad_out: &Array2<f32>,
        sums: &mut ParameterSums<'_>,
    ) -> Array2<f32> {
        let mut grad_x = zeroed(x.dim());
        let mut grad_weights = Vec::with_capacity(mlp.experts.len());
        for (index, (spec, (own, inside))) in mlp.experts.iter().zip(&self.experts).enumerate() {
            let (rows, weights) = (&self.routing.rows[index], &self.routing.weights[index]);
            if rows.is_empty() {
                grad_weights.push(Vec::new());
                continue;
            }
            let mut grad = grad_out.select(Axis(0), rows);
            let mut grad_activated = back(block, spec.down, &grad);
            grad_weights.push(row_products(&grad_activated, &inside.activated));
            for (row, &weight) in weights.iter().enumerate() {
                grad.row_mut(row).mapv_inplace(|grad| weight * grad);
                grad_activated.row_mut(row).mapv_inplace(|grad| weight * grad);
            }
            let grad_own = inside.backward(block, spec, own.view(), &grad, grad_activated, sums);
            add_rows(&mut grad_x, rows, &vec![1.0; rows.len()], &grad_own);
        }
        let grad_scores = self.routing.backward(mlp, &grad_weights);
        sums.add(mlp.router, x, &grad_scores);
        add_back(block, &mut grad_x, mlp.router, &grad_scores);
        if let (Some(shared), Some((factor, inside))) = (&mlp.shared, &self.shared) {
            let mut grad_activated = back(block, shared.mlp.down, grad_out);
            let of_factor = row_products(&grad_activated, &inside.activated);
            let mut grad_gate = factor.mapv(|factor| factor * (1.0 - factor));
            grad_gate
                .iter_mut()
                .zip(of_factor)
                .for_each(|(slope, grad)| *slope *= grad);
            sums.add(shared.gate, x, &grad_gate);
            add_back(block, &mut grad_x, shared.gate, &grad_gate);
            let mut grad = grad_out.clone();
            for ((mut grad, mut activated), &factor) in grad
                .outer_iter_mut()
                .zip(grad_activated.outer_iter_mut())
                .zip(factor)
            {
                grad.mapv_inplace(|grad| factor * grad);
                activated.mapv_inplace(|grad| factor * grad);
            }
            grad_x += &inside.backward(block, &shared.mlp, x, &grad, grad_activated, sums);
        }
        grad_x
    }

    /// The parts in the order of computation, each with the layer or module whose output it is.
    pub(super) fn parts<'a>(
        &self,
        spec: &'a BlockSpec,
        mlp: &RoutedMlp,
    ) -> Vec<(&'a str, ArrayView2<'_, f32>)> {
        let name = |layer| spec.linear(layer).name.as_str();
        let mut parts = vec![(name(mlp.router), self.routing.probabilities.view())];
        for (spec_of, (_, inside)) in mlp.experts.iter().zip(&self.experts) {
            parts.extend(inside.parts(spec, spec_of));
        }
        if let (Some(shared), Some((factor, inside))) = (&mlp.shared, &self.shared) {
            parts.push((name(shared.gate), factor.view()));
            parts.extend(inside.parts(spec, &shared.mlp));
        }
        parts
    }
}

/// 1 / (1 + e^-g).
pub(super) fn sigmoid(g: f32) -> f32 {
    (1.0 / (1.0 + f64::from(-g).exp())) as f32
}

/// Adds each row of `added`, times its weight, to one of the rows of `to`.
fn add_rows(to: &mut Array2<f32>, rows: &[usize], weights: &[f32], added: &Array2<f32>) {
    for ((&row, &weight), added) in rows.iter().zip(weights).zip(added.outer_iter()) {
        to.row_mut(row).scaled_add(weight, &added);
    }
}

/// Adds each row of `added` times its factor, [rows, 1].
fn add_scaled(to: &mut Array2<f32>, factors: &Array2<f32>, added: &Array2<f32>) {
    Zip::from(to.rows_mut())
        .and(factors.column(0))
        .and(added.rows())
        .par_for_each(|mut to, &factor, added| to.scaled_add(factor, &added));
}

/// The dot product of each row of a with that of b.
fn row_products(a: &Array2<f32>, b: &Array2<f32>) -> Vec<f32> {
    a.outer_iter()
        .zip(b.outer_iter())
        .map(|(a, b)| a.dot(&b))
        .collect()
}
