use aqlm_vocabulary::{BlockSpec, GatedMlp, Input, Mlp, NormPlace};

use super::super::{Buffer, Result};
use super::experts::Routed;
use super::gated::Gated;
use super::gradients::Gradients;
use super::norms::{Normed, Raw};
use super::pass::{Pass, Rows};

/// What never happens: callers pass a block and its own trace.
const OTHER: &str = "a trace of another block";

/// The values inside a block's MLP.
pub(super) enum Inside {
    /// of a dense MLP
    Dense(Box<Gated>),
    /// of experts and their router
    Routed(Box<Routed>),
}

impl Inside {
    /// From the MLP's input, of some rows, and the residual stream that it is added to. Returns also the sum,
    /// and what the norm behind the MLP was applied to.
    pub(super) fn add(
        pass: Pass<'_>,
        x: &Buffer<f32>,
        middle: &Buffer<f32>,
        rows: usize,
    ) -> Result<(Buffer<f32>, Self, Option<Raw>)> {
        let place = NormPlace::AfterMlp;
        match &pass.block.spec.mlp {
            Mlp::Dense(mlp) => {
                let inside = Gated::of(pass, mlp, x, rows)?;
                let (y, out) = pass.add_layer(mlp.down, &inside.activated, middle, place)?;
                Ok((y, Self::Dense(Box::new(inside)), out))
            }
            Mlp::Routed(mlp) => {
                let (inside, out) = Routed::of(pass, mlp, x, rows)?;
                let (y, out) = pass.add_output(out, middle, place)?;
                Ok((y, Self::Routed(Box::new(inside)), out))
            }
        }
    }

    /// The input of linear layers inside the MLP.
    pub(super) fn input(&self, read: Input) -> Option<Rows<'_>> {
        match self {
            Self::Dense(inside) => (read == Input::Activated).then(|| inside.activated.slice(..)),
            Self::Routed(inside) => inside.input(read),
        }
    }

    /// The gradients of the layers and of the MLP's input x, given that of its output.
    pub(super) fn backward(
        &self,
        gradients: &mut Gradients<'_>,
        x: &Buffer<f32>,
        grad_out: &Buffer<f32>,
        rows: usize,
    ) -> Result<Buffer<f32>> {
        let pass = gradients.pass;
        match (self, &pass.block.spec.mlp) {
            (Self::Dense(inside), Mlp::Dense(mlp)) => {
                let mut grad = pass
                    .machine
                    .space(inside.activated.len(), "the gradient of an activated gate")?;
                pass.back(pass.whole(mlp.down), grad_out, &mut grad, rows, false)?;
                inside.backward(gradients, mlp, &x.slice(..), grad_out, grad, rows)
            }
            (Self::Routed(inside), Mlp::Routed(mlp)) => inside.backward(gradients, mlp, x, grad_out, rows),
            _ => panic!("{OTHER}"),
        }
    }

    /// The parts of `rows` rows in the order of computation, each with the layer or module whose output it is
    /// and its width.
    pub(super) fn parts<'a>(&'a self, spec: &'a BlockSpec, rows: usize) -> Vec<(&'a str, Rows<'a>, usize)> {
        match (self, &spec.mlp) {
            (Self::Dense(inside), Mlp::Dense(mlp)) => inside.parts(spec, mlp, 0..rows),
            (Self::Routed(inside), Mlp::Routed(mlp)) => inside.parts(spec, mlp),
            _ => panic!("{OTHER}"),
        }
    }
}

/// A block's MLP with the norm before it.
pub(super) struct NormedMlp {
    /// `None` where the MLP reads the residual stream itself
    pub(super) normed: Option<Normed>,
    /// the values inside
    pub(super) inside: Inside,
}

/// Numbers that [`Inside`] keeps for each token.
pub(super) fn inside_width(spec: &BlockSpec) -> usize {
    let width = |mlp: &GatedMlp| 3 * spec.shape(mlp.down).1;
    match &spec.mlp {
        Mlp::Dense(mlp) => width(mlp),
        Mlp::Routed(mlp) => {
            let shared = mlp.shared.as_ref().map_or(0, |shared| width(&shared.mlp) + 1);
            // a slot's expert, factor, place and row, and a place's slot
            mlp.experts.len() + mlp.used * (spec.hidden_size() + width(&mlp.experts[0]) + 5) + shared
        }
    }
}

/// Numbers for each token that exist besides those kept, at most, while a token passes a block.
pub(super) fn passing_width(spec: &BlockSpec) -> usize {
    let hidden = spec.hidden_size();
    match &spec.mlp {
        Mlp::Dense(_) => 6 * hidden + 2 * spec.intermediate_size(),
        Mlp::Routed(mlp) => {
            let inner = spec.shape(mlp.experts[0].down).1;
            let shared = mlp
                .shared
                .as_ref()
                .map_or(0, |shared| spec.shape(shared.mlp.down).1);
            6 * hidden + mlp.used * (2 * hidden + 2 * inner + 1) + 2 * (shared + mlp.experts.len())
        }
    }
}
