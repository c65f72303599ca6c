use aqlm_vocabulary::LayerId;

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::block::{Block, Decoded};
use super::forward::{Trace, plain_mlp};
use super::machine::Machine;
use super::plan::{self, AttentionPass};
use super::products::Precision;
use crate::cpu::llama::Wanted;

/// A gradient of a block's parameter, over all rows of a pass.
pub enum BlockGradient {
    /// with respect to the decoded weight, [out_features, in_features]
    Weight(LayerId, Buffer<f32>),
    /// with respect to the bias: sums over chunks of rows, [chunks, out_features]
    Bias(LayerId, Chunks),
    /// with respect to the first (0) or second (1) norm's weight
    Norm(usize, Chunks),
}

/// Sums over chunks of rows, which must still be added up.
pub struct Chunks {
    pub(super) sums: Buffer<f64>,
    pub(super) count: usize,
    pub(super) width: usize,
}

impl Machine {
    /// Passes the gradients of [`Machine::forward`] to `sink`, given the gradient of its result, [rows,
    /// hidden], and the trace of the same pass. Returns the gradient of its input if wanted.
    ///
    /// # Errors
    /// Those of the sink; `Length` when the gradient does not fit; `Memory`, `Driver`, `Library`.
    #[expect(
        clippy::too_many_arguments,
        reason = "a pass, its gradient, and what is wanted of them"
    )]
    pub fn backward(
        &self,
        precision: Precision,
        block: &Block,
        weights: &Decoded,
        trace: &Trace,
        grad_y: Buffer<f32>,
        wanted: &Wanted,
        sink: &mut dyn FnMut(BlockGradient) -> Result<()>,
    ) -> Result<Option<Buffer<f32>>> {
        let spec = &*block.spec;
        let (attention, mlp) = (&spec.attention, plain_mlp(spec));
        let (rows, tokens) = (trace.rows, trace.tokens);
        let device = self.device();
        let mut into_parameters = |layer: LayerId, grad: &Buffer<f32>| -> Result<()> {
            let (out, inputs) = spec.shape(layer);
            if wanted.weights[layer.index()] {
                let mut weight = self.space(out * inputs, "the gradient of a weight")?;
                let x = trace.input(spec.linear(layer).reads);
                self.products
                    .weight(precision, grad, x, &mut weight, [out, inputs, rows], false)?;
                sink(BlockGradient::Weight(layer, weight))?;
            }
            if wanted.biases && block.bias(layer).is_some() {
                sink(BlockGradient::Bias(
                    layer,
                    self.column_sums(grad, None, rows, out)?,
                ))?;
            }
            Ok(())
        };
        let back = |to: &mut Buffer<f32>, layer: LayerId, grad: &Buffer<f32>, add: bool| {
            let (out, inputs) = spec.shape(layer);
            let weight = weights.weight(layer);
            self.products
                .back(precision, weight, grad, to, [out, inputs, rows], add)
        };
        let hidden = grad_y.len();

        // y = middle + Down swiglu(Gate n'(middle), Up n'(middle))
        into_parameters(mlp.down, &grad_y)?;
        let mut grad_up = self.space(trace.up.len(), "the gradient of up")?;
        back(&mut grad_up, mlp.down, &grad_y, false)?;
        let grad_gate = self.space(trace.gate.len(), "the gradient of gate")?;
        self.run(
            &plan::gate_back(grad_up.len()),
            &[&trace.gate, &trace.up, &grad_up, &grad_gate].map(|buffer| address(device, buffer)),
        )?;
        into_parameters(mlp.gate, &grad_gate)?;
        into_parameters(mlp.up, &grad_up)?;
        let mut grad_normed = self.space(hidden, "the gradient of a norm's result")?;
        back(&mut grad_normed, mlp.gate, &grad_gate, false)?;
        back(&mut grad_normed, mlp.up, &grad_up, true)?;
        drop((grad_gate, grad_up));
        let grad_middle = grad_y;
        self.norm_back(
            &trace.middle,
            &block.norms[1],
            &trace.roots[1],
            &grad_normed,
            &grad_middle,
            rows,
        )?;
        let second = wanted
            .norms
            .then(|| self.norm_sums(&grad_normed, &trace.middle, &trace.roots[1], rows))
            .transpose()?;

        // middle = x + O attention(Q n(x), K n(x), V n(x))
        into_parameters(attention.output, &grad_middle)?;
        let mut grad_attended = self.space(trace.attended.len(), "the gradient of attention")?;
        back(&mut grad_attended, attention.output, &grad_middle, false)?;
        let [grad_q, grad_k, grad_v] = self.attention_back(precision, block, trace, &grad_attended)?;
        drop(grad_attended);
        for (x, heads) in [(&grad_q, attention.heads), (&grad_k, attention.kv_heads)] {
            self.rotate(x, rows, tokens, heads, attention.head_dim, true)?;
        }
        into_parameters(attention.query, &grad_q)?;
        into_parameters(attention.key, &grad_k)?;
        into_parameters(attention.value, &grad_v)?;
        if let Some(sums) = second {
            sink(BlockGradient::Norm(1, sums))?;
        }
        if !wanted.norms && !wanted.x {
            return Ok(None);
        }
        back(&mut grad_normed, attention.query, &grad_q, false)?;
        back(&mut grad_normed, attention.key, &grad_k, true)?;
        back(&mut grad_normed, attention.value, &grad_v, true)?;
        if wanted.norms {
            let sums = self.norm_sums(&grad_normed, &trace.x, &trace.roots[0], rows)?;
            sink(BlockGradient::Norm(0, sums))?;
        }
        if !wanted.x {
            return Ok(None);
        }
        let grad_x = grad_middle;
        self.norm_back(
            &trace.x,
            &block.norms[0],
            &trace.roots[0],
            &grad_normed,
            &grad_x,
            rows,
        )?;
        Ok(Some(grad_x))
    }

    /// The gradients of attention with respect to queries, keys and values.
    fn attention_back(
        &self,
        precision: Precision,
        block: &Block,
        trace: &Trace,
        grad: &Buffer<f32>,
    ) -> Result<[Buffer<f32>; 3]> {
        let spec = &block.spec.attention;
        let device = self.device();
        let pairs = trace.rows * spec.heads;
        let delta = self.space(pairs, "inner products of attention")?;
        self.run(
            &plan::attention_delta(pairs, spec.head_dim),
            &[&trace.attended, grad, &delta].map(|buffer| address(device, buffer)),
        )?;
        let shape = [trace.rows / trace.tokens.max(1), trace.tokens];
        let gradients = [
            self.space(trace.q.len(), "the gradient of queries")?,
            self.space(trace.k.len(), "the gradient of keys")?,
            self.space(trace.v.len(), "the gradient of values")?,
        ];
        let operands = [&trace.q, &trace.k, &trace.v, grad, &trace.stats, &delta];
        let pointers = |results: &[&Buffer<f32>]| {
            let buffers = operands.iter().chain(results);
            buffers.map(|buffer| address(device, buffer)).collect::<Vec<_>>()
        };
        let form = self.attention_form(precision.rounds_gradients());
        let pass = |pass| plan::attention(pass, spec, shape, form);
        self.run(&pass(AttentionPass::Queries), &pointers(&[&gradients[0]]))?;
        self.run(
            &pass(AttentionPass::KeysAndValues),
            &pointers(&[&gradients[1], &gradients[2]]),
        )?;
        Ok(gradients)
    }

    /// Adds the gradient of a norm's input, given that of its result.
    pub(super) fn norm_back(
        &self,
        x: &Buffer<f32>,
        weight: &Buffer<f32>,
        roots: &Buffer<f32>,
        grad_y: &Buffer<f32>,
        grad_x: &Buffer<f32>,
        rows: usize,
    ) -> Result<()> {
        let device = self.device();
        self.run(
            &plan::norm_back(rows, weight.len()),
            &[x, weight, roots, grad_y, grad_x].map(|buffer| address(device, buffer)),
        )
    }

    /// The gradient of a norm's weight, given that of its result.
    pub(super) fn norm_sums(
        &self,
        grad_y: &Buffer<f32>,
        x: &Buffer<f32>,
        roots: &Buffer<f32>,
        rows: usize,
    ) -> Result<Chunks> {
        self.column_sums(grad_y, Some((x, roots)), rows, x.len() / rows.max(1))
    }

    /// Sums of columns over chunks of rows, for a norm's weight with the norm's input and factors.
    fn column_sums(
        &self,
        grad: &Buffer<f32>,
        norm: Option<(&Buffer<f32>, &Buffer<f32>)>,
        rows: usize,
        width: usize,
    ) -> Result<Chunks> {
        let chunks = plan::column_chunks(rows);
        let sums = self.space(chunks * width, "sums over rows")?;
        let device = self.device();
        // Without a norm the kernel reads neither, so any address will do.
        let (x, roots) = norm.unwrap_or((grad, grad));
        let [grad, x, roots] = [grad, x, roots].map(|buffer| address(device, buffer));
        self.run(
            &plan::column_sums(rows, width, norm.is_some()),
            &[grad, x, roots, address(device, &sums)],
        )?;
        Ok(Chunks {
            sums,
            count: chunks,
            width,
        })
    }

    /// Adds chunks to f64 sums, one number to each.
    pub(super) fn add_chunks(&self, from: &Chunks, total: &Buffer<f64>) -> Result<()> {
        let device = self.device();
        self.run(
            &plan::add_parts(from.width, from.count, true),
            &[address(device, &from.sums), address(device, total)],
        )
    }

    /// Sums over chunks of rows, added up on the host.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn sums(&self, from: &Chunks) -> Result<Vec<f64>> {
        let total = self.zeros(from.width, "sums")?;
        self.add_chunks(from, &total)?;
        self.device().download(&total)
    }
}
