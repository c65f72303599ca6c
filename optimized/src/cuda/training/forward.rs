use aqlm_vocabulary::{BlockSpec, GatedMlp, Input, LayerId};

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::block::{Block, Decoded};
use super::machine::Machine;
use super::plan::{self, AttentionPass};
use super::products::Precision;

/// The intermediate values of a block that its backward pass and the Hessians of its layers need: [rows,
/// features], with a row for each token of each sequence.
pub struct Trace {
    pub(super) rows: usize,
    /// rows of one sequence
    pub(super) tokens: usize,
    /// the block's input
    pub(super) x: Buffer<f32>,
    /// after the first norm
    pub(super) normed: Buffer<f32>,
    /// factors of the two norms, `[rows]` each
    pub(super) roots: [Buffer<f32>; 2],
    /// queries after rotation
    pub(super) q: Buffer<f32>,
    /// keys after rotation
    pub(super) k: Buffer<f32>,
    /// values
    pub(super) v: Buffer<f32>,
    /// result of attention before its output layer
    pub(super) attended: Buffer<f32>,
    /// logarithms of the sums of attention's exponentials, [rows, heads]
    pub(super) stats: Buffer<f32>,
    /// x plus the output of attention
    pub(super) middle: Buffer<f32>,
    /// after the second norm
    pub(super) middle_normed: Buffer<f32>,
    /// SwiGLU's gate
    pub(super) gate: Buffer<f32>,
    /// SwiGLU's other input
    pub(super) up: Buffer<f32>,
    /// SwiGLU's result
    pub(super) activated: Buffer<f32>,
}

impl Trace {
    /// The input of the linear layers that read `read`, [rows, in_features]: the samples of their Hessian.
    ///
    /// # Panics
    /// When no layer of a plain block reads that.
    pub fn input(&self, read: Input) -> &Buffer<f32> {
        match read {
            Input::Attention => &self.normed,
            Input::Attended => &self.attended,
            Input::Mlp => &self.middle_normed,
            Input::Activated => &self.activated,
            Input::Expert(_) | Input::ExpertActivated(_) => panic!("a plain block has no experts"),
        }
    }
}

/// Numbers that a [`Trace`] keeps for each token of a block of this shape.
pub(super) fn trace_width(spec: &BlockSpec) -> usize {
    let (queries, keys) = (spec.attention.query_width(), spec.attention.key_width());
    4 * spec.hidden_size() + 2 * queries + 2 * keys + 3 * spec.intermediate_size() + spec.attention.heads + 2
}

/// The MLP of a block. Blocks that are not plain are refused when they are made.
pub(super) fn plain_mlp(spec: &BlockSpec) -> &GatedMlp {
    spec.mlp.dense().expect("a plain block has a dense MLP")
}

impl Machine {
    /// The block's output for x [rows, hidden], whose rows hold sequences of `tokens` rows, and all that the
    /// backward pass needs. m = x + O attention(Q n(x), K n(x), V n(x)), y = m + Down swiglu(Gate n'(m), Up
    /// n'(m)), with n and n' the two RMSNorms and queries and keys rotated (Touvron et al. 2023, section
    /// 2.2).
    ///
    /// # Errors
    /// `Length` when x does not fit; `Memory`, `Driver`, `Library`.
    pub fn forward(
        &self,
        precision: Precision,
        block: &Block,
        weights: &Decoded,
        x: Buffer<f32>,
        tokens: usize,
    ) -> Result<(Buffer<f32>, Trace)> {
        let spec = &*block.spec;
        let (attending, mlp, hidden) = (&spec.attention, plain_mlp(spec), spec.hidden_size());
        let rows = x.len() / hidden;
        let epsilon = spec.norms[0].norm.epsilon;
        let layer = |layer, x: &Buffer<f32>| self.layer(precision, block, weights, layer, x, rows);
        let (normed, first_roots) = self.normed(&x, &block.norms[0], rows, epsilon)?;
        let q = layer(attending.query, &normed)?;
        let k = layer(attending.key, &normed)?;
        let v = layer(attending.value, &normed)?;
        for (x, heads) in [(&q, attending.heads), (&k, attending.kv_heads)] {
            self.rotate(x, rows, tokens, heads, attending.head_dim, false)?;
        }
        let attended = self.space(rows * attending.query_width(), "attended")?;
        let stats = self.space(rows * attending.heads, "sums of attention")?;
        let device = self.device();
        self.run(
            &plan::attention(
                AttentionPass::Forward,
                attending,
                [rows / tokens.max(1), tokens],
                self.attention_form(precision.rounds_values()),
            ),
            &[&q, &k, &v, &attended, &stats].map(|buffer| address(device, buffer)),
        )?;
        let middle = self.layer_added(precision, block, weights, attending.output, &attended, &x)?;
        let (middle_normed, second_roots) = self.normed(&middle, &block.norms[1], rows, epsilon)?;
        let gate = layer(mlp.gate, &middle_normed)?;
        let up = layer(mlp.up, &middle_normed)?;
        let activated = self.space(gate.len(), "activated")?;
        self.run(
            &plan::gate(gate.len()),
            &[&gate, &up, &activated].map(|buffer| address(device, buffer)),
        )?;
        let y = self.layer_added(precision, block, weights, mlp.down, &activated, &middle)?;
        let trace = Trace {
            rows,
            tokens,
            x,
            normed,
            roots: [first_roots, second_roots],
            q,
            k,
            v,
            attended,
            stats,
            middle,
            middle_normed,
            gate,
            up,
            activated,
        };
        Ok((y, trace))
    }

    /// RMSNorm of [rows, width], and the factor of each row.
    pub(super) fn normed(
        &self,
        x: &Buffer<f32>,
        weight: &Buffer<f32>,
        rows: usize,
        epsilon: f64,
    ) -> Result<(Buffer<f32>, Buffer<f32>)> {
        let normed = self.space(x.len(), "normed")?;
        let roots = self.space(rows, "factors of a norm")?;
        let device = self.device();
        self.run(
            &plan::norm(rows, weight.len(), epsilon),
            &[x, weight, &normed, &roots].map(|buffer| address(device, buffer)),
        )?;
        Ok((normed, roots))
    }

    /// Rotates every head in place.
    pub(super) fn rotate(
        &self,
        x: &Buffer<f32>,
        rows: usize,
        tokens: usize,
        heads: usize,
        head: usize,
        back: bool,
    ) -> Result<()> {
        let device = self.device();
        self.run(
            &plan::rotate(rows, tokens, heads, head, back),
            &[&self.cosines, &self.sines, x].map(|buffer| address(device, buffer)),
        )
    }

    /// One of the block's linear layers: x W^T + b.
    fn layer(
        &self,
        precision: Precision,
        block: &Block,
        weights: &Decoded,
        layer: LayerId,
        x: &Buffer<f32>,
        rows: usize,
    ) -> Result<Buffer<f32>> {
        let (out, inputs) = block.spec.shape(layer);
        let mut y = self.space(rows * out, "the output of a layer")?;
        let weight = weights.weight(layer);
        self.products
            .forward(precision, weight, x, &mut y, [out, inputs, rows], false)?;
        self.add_bias(block, layer, &y)?;
        Ok(y)
    }

    /// `residual` + x W^T + b.
    fn layer_added(
        &self,
        precision: Precision,
        block: &Block,
        weights: &Decoded,
        layer: LayerId,
        x: &Buffer<f32>,
        residual: &Buffer<f32>,
    ) -> Result<Buffer<f32>> {
        let (out, inputs) = block.spec.shape(layer);
        let mut y = self.copy(residual, "hidden states")?;
        let shape = [out, inputs, residual.len() / out];
        self.products
            .forward(precision, weights.weight(layer), x, &mut y, shape, true)?;
        self.add_bias(block, layer, &y)?;
        Ok(y)
    }

    fn add_bias(&self, block: &Block, layer: LayerId, y: &Buffer<f32>) -> Result<()> {
        let Some(bias) = block.bias(layer) else {
            return Ok(());
        };
        let device = self.device();
        self.run(
            &plan::add_bias(y.len() / bias.len(), bias.len()),
            &[bias, y].map(|buffer| address(device, buffer)),
        )
    }
}
