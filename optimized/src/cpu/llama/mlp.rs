use aqlm_vocabulary::{BlockSpec, GatedMlp, Input, Mlp, NormPlace};
use ndarray::{Array2, ArrayView2};

use super::Block;
use super::experts::Routed;
use super::fused::is_one;
use super::gated_mlp::Gated;
use super::linear_backward::{ParameterSums, back};
use super::residual::{add_branch, add_output, normed_or_same};

/// What never happens: callers pass a block and its own trace.
const OTHER: &str = "a trace of another block";

/// The values inside a block's MLP.
#[derive(Debug, Clone)]
pub(super) enum Inside {
    /// of a dense MLP
    Dense(Gated),
    /// of experts and their router
    Routed(Routed),
}

/// A block's MLP with the norm before it.
#[derive(Debug, Clone)]
pub(super) struct NormedMlp {
    /// the MLP's input, after the norm before it
    pub(super) normed: Array2<f32>,
    /// the values inside
    pub(super) inside: Inside,
}

impl NormedMlp {
    /// The input of linear layers inside the MLP.
    pub(super) fn input(&self, read: Input) -> Option<ArrayView2<'_, f32>> {
        match &self.inside {
            Inside::Dense(inside) => (read == Input::Activated).then(|| inside.activated.view()),
            Inside::Routed(inside) => inside.input(read),
        }
    }

    /// Given the gradient of the output, adds those of the layers and returns that of the input.
    pub(super) fn backward(
        &self,
        block: &Block,
        grad_out: &Array2<f32>,
        sums: &mut ParameterSums<'_>,
    ) -> Array2<f32> {
        match (&self.inside, &block.spec().mlp) {
            (Inside::Dense(inside), Mlp::Dense(mlp)) => {
                let grad = back(block, mlp.down, grad_out);
                inside.backward(block, mlp, self.normed.view(), grad_out, grad, sums)
            }
            (Inside::Routed(inside), Mlp::Routed(mlp)) => {
                inside.backward(block, mlp, self.normed.view(), grad_out, sums)
            }
            _ => panic!("{OTHER}"),
        }
    }
}

impl NormedMlp {
    /// The parts in the order of computation, each with the layer or module whose output it is.
    pub(super) fn parts<'a>(&self, spec: &'a BlockSpec) -> Vec<(&'a str, ArrayView2<'_, f32>)> {
        match (&self.inside, &spec.mlp) {
            (Inside::Dense(inside), Mlp::Dense(mlp)) => inside.parts(spec, mlp),
            (Inside::Routed(inside), Mlp::Routed(mlp)) => inside.parts(spec, mlp),
            _ => panic!("{OTHER}"),
        }
    }
}

/// The residual stream after a block's MLP, from that after attention; also the values inside the MLP, and
/// its output if a norm is behind it.
pub(super) fn add_mlp(block: &Block, middle: &Array2<f32>) -> (Array2<f32>, NormedMlp, Option<Array2<f32>>) {
    let normed = normed_or_same(block, NormPlace::BeforeMlp, middle);
    let place = NormPlace::AfterMlp;
    match &block.spec().mlp {
        Mlp::Dense(mlp) => {
            let inside = Gated::of(block, mlp, normed.view());
            let (y, out) = add_branch(block, mlp.down, inside.activated.view(), middle, place);
            let inside = Inside::Dense(inside);
            (y, NormedMlp { normed, inside }, out)
        }
        Mlp::Routed(mlp) => {
            let (inside, out) = Routed::of(block, mlp, normed.view());
            let (y, out) = add_output(block, out, middle, place);
            let inside = Inside::Routed(inside);
            (y, NormedMlp { normed, inside }, out)
        }
    }
}

/// Numbers that [`Inside`] keeps for each token.
pub(super) fn inside_width(spec: &BlockSpec) -> usize {
    let width = |mlp: &GatedMlp| 3 * spec.shape(mlp.down).1;
    match &spec.mlp {
        Mlp::Dense(mlp) => width(mlp),
        Mlp::Routed(mlp) => {
            let shared = mlp.shared.as_ref().map_or(0, |shared| width(&shared.mlp) + 1);
            mlp.experts.len() + mlp.used * (spec.hidden_size() + width(&mlp.experts[0])) + shared
        }
    }
}

/// Numbers for each token that exist besides those kept, at most, while a token passes the MLP back.
pub(super) fn passing_width(spec: &BlockSpec) -> usize {
    let (hidden, inner) = (spec.hidden_size(), spec.intermediate_size());
    // a gradient that a factor or a norm behind the MLP has changed
    let changed = spec.residual_scale != 1.0 || spec.norm(NormPlace::AfterMlp).is_some();
    let behind = if changed { hidden } else { 0 };
    let inside = match &spec.mlp {
        // the parts of a fused layer stand side by side before they become one
        Mlp::Dense(mlp) if is_one(&[mlp.gate, mlp.up]) => 2 * hidden + 4 * inner,
        Mlp::Dense(_) => 2 * hidden + 2 * inner,
        // one expert at a time, which all tokens may pass
        Mlp::Routed(mlp) => 4 * hidden + 3 * inner + 2 * mlp.experts.len(),
    };
    behind + inside
}
