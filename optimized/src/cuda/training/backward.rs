use aqlm_vocabulary::NormPlace;

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::block::{Block, Decoded};
use super::forward::Trace;
use super::gradients::{BlockGradient, Gradients};
use super::machine::Machine;
use super::norms::Normed;
use super::pass::{Pass, outputs};
use super::plan::{self, AttentionPass};
use super::products::Precision;
use crate::cpu::llama::Wanted;

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
        let attention = &block.spec.attention;
        let (rows, tokens) = (trace.rows, trace.tokens);
        let pass = Pass {
            machine: self,
            precision,
            block,
            weights,
        };
        let mut gradients = Gradients { pass, wanted, sink };

        // y = middle + r b(Down gated(Gate n'(middle), Up n'(middle)))
        let of_mlp = gradients.through_branch(NormPlace::AfterMlp, trace.out.as_ref(), &grad_y)?;
        let grad_out = of_mlp.as_ref().unwrap_or(&grad_y);
        let inside = &trace.mlp.inside;
        let grad_normed = inside.backward(&mut gradients, trace.mlp_input(), grad_out, rows)?;
        drop(of_mlp);
        let grad_middle = grad_y;
        gradients.add_through_norm(
            NormPlace::BeforeMlp,
            &trace.middle,
            roots(trace.mlp.normed.as_ref()),
            &grad_normed,
            Some(&grad_middle),
        )?;
        drop(grad_normed);

        // middle = x + r a(O attention(Q n(x), K n(x), V n(x)))
        let place = NormPlace::AfterAttention;
        let of_attention = gradients.through_branch(place, trace.mixed.as_ref(), &grad_middle)?;
        let grad_mixed = of_attention.as_ref().unwrap_or(&grad_middle);
        let output = attention.output;
        gradients.add(output, &trace.attended.slice(..), &[&grad_mixed.slice(..)], rows)?;
        let mut grad_attended = self.space(trace.attended.len(), "the gradient of attention")?;
        pass.back(pass.whole(output), grad_mixed, &mut grad_attended, rows, false)?;
        drop(of_attention);
        let [grad_q, grad_k, grad_v] = self.attention_back(precision, block, trace, &grad_attended)?;
        drop(grad_attended);
        for (x, heads) in [(&grad_q, attention.heads), (&grad_k, attention.kv_heads)] {
            self.rotate(attention, x, [rows, tokens], heads, true)?;
        }
        let [raw_q, raw_k] = &trace.raw;
        let grad_q = match raw_q {
            Some(raw) => gradients.through_norm(NormPlace::Query, raw, &grad_q)?,
            None => grad_q,
        };
        let grad_k = match raw_k {
            Some(raw) => gradients.through_norm(NormPlace::Key, raw, &grad_k)?,
            None => grad_k,
        };
        let grads = [grad_q, grad_k, grad_v];
        let views = grads.each_ref().map(|grad| grad.slice(..));
        let (layers, widths) = attention.projections();
        let input = trace.attention_input().slice(..);
        gradients.add_each(&layers, &input, &views.each_ref(), rows)?;
        if !wanted.norms && !wanted.x {
            return Ok(None);
        }
        let mut grad_normed = self.space(trace.x.len(), "the gradient of attention's input")?;
        for (number, (of, grad)) in outputs(layers, widths).into_iter().zip(&grads).enumerate() {
            pass.back(of, grad, &mut grad_normed, rows, number > 0)?;
        }
        gradients.add_through_norm(
            NormPlace::BeforeAttention,
            &trace.x,
            roots(trace.normed.as_ref()),
            &grad_normed,
            wanted.x.then_some(&grad_middle),
        )?;
        Ok(wanted.x.then_some(grad_middle))
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
        let form = self.attention_form(spec, precision.rounds_gradients())?;
        let pass = |pass| plan::attention(pass, spec, shape, form);
        self.run(&pass(AttentionPass::Queries), &pointers(&[&gradients[0]]))?;
        self.run(
            &pass(AttentionPass::KeysAndValues),
            &pointers(&[&gradients[1], &gradients[2]]),
        )?;
        Ok(gradients)
    }
}

/// The factors of a norm, where there is one.
fn roots(normed: Option<&Normed>) -> Option<&Buffer<f32>> {
    normed.map(|normed| &normed.roots)
}
