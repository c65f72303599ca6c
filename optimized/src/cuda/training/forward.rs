use aqlm_vocabulary::{AttentionSpec, BlockNorm, BlockSpec, Input, NormPlace};

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::block::{Block, Decoded};
use super::machine::Machine;
use super::mlp::{Inside, NormedMlp, inside_width};
use super::norms::{Normed, Raw};
use super::pass::{Pass, Rows, outputs};
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
    /// after the norm before attention; `None` where attention reads the block's input itself
    pub(super) normed: Option<Normed>,
    /// queries and keys before their norms, where there are any
    pub(super) raw: [Option<Raw>; 2],
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
    /// the output of attention before the norm behind it, if there is one
    pub(super) mixed: Option<Raw>,
    /// x plus what attention adds
    pub(super) middle: Buffer<f32>,
    /// the values inside the MLP
    pub(super) mlp: NormedMlp,
    /// the output of the MLP before the norm behind it, if there is one
    pub(super) out: Option<Raw>,
}

impl Trace {
    /// The input of the linear layers that read `read`, [rows, in_features]: the samples of their Hessian. An
    /// expert's layers have the rows that are routed to it.
    ///
    /// # Panics
    /// When no layer of the block reads that.
    pub fn input(&self, read: Input) -> Rows<'_> {
        match read {
            Input::Attention => self.attention_input().slice(..),
            Input::Attended => self.attended.slice(..),
            Input::Mlp => self.mlp_input().slice(..),
            Input::Activated | Input::Expert(_) | Input::ExpertActivated(_) => {
                let inside = self.mlp.inside.input(read);
                inside.expect("an input of the block's layers")
            }
        }
    }

    /// What queries, keys and values are computed from.
    pub(super) fn attention_input(&self) -> &Buffer<f32> {
        self.normed.as_ref().map_or(&self.x, |normed| &normed.y)
    }

    /// The MLP's input.
    pub(super) fn mlp_input(&self) -> &Buffer<f32> {
        let normed = self.mlp.normed.as_ref();
        normed.map_or(&self.middle, |normed| &normed.y)
    }
}

/// Numbers that a [`Trace`] keeps for each token of a block of this shape.
pub(super) fn trace_width(spec: &BlockSpec) -> usize {
    let attention = &spec.attention;
    let (queries, keys) = (attention.query_width(), attention.key_width());
    // what a norm inside the block was applied to, and its factors
    let kept = |norm: &BlockNorm| match norm.place {
        NormPlace::BeforeAttention | NormPlace::BeforeMlp => 1,
        NormPlace::Query => queries + attention.heads,
        NormPlace::Key => keys + attention.kv_heads,
        NormPlace::AfterAttention | NormPlace::AfterMlp => spec.hidden_size() + 1,
    };
    let raw: usize = spec.norms.iter().map(kept).sum();
    4 * spec.hidden_size() + 2 * queries + 2 * keys + attention.heads + inside_width(spec) + raw
}

impl Machine {
    /// The block's output for x [rows, hidden], whose rows hold sequences of `tokens` rows, and all that the
    /// backward pass needs. m = x + r a(O attention(Q n(x), K n(x), V n(x))), y = m + r b(Down gated(Gate
    /// n'(m), Up n'(m))). n, a, n' and b are RMSNorms, where the block has them, and r is a factor. Queries
    /// and keys are normed and rotated where the block says so (Touvron et al. 2023, section 2.2). The MLP
    /// may be a mixture of experts ([`RoutedMlp`](aqlm_vocabulary::RoutedMlp)).
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
        let attending = &spec.attention;
        let rows = x.len() / spec.hidden_size();
        let pass = Pass {
            machine: self,
            precision,
            block,
            weights,
        };
        let normed = pass.normed(NormPlace::BeforeAttention, &x)?;
        let input = normed.as_ref().map_or(&x, |normed| &normed.y);
        let (layers, widths) = attending.projections();
        let [q, k, v] = outputs(layers, widths);
        let (q, raw_q) = pass.normed_or_same(NormPlace::Query, pass.apply(q, input, rows)?)?;
        let (k, raw_k) = pass.normed_or_same(NormPlace::Key, pass.apply(k, input, rows)?)?;
        let v = pass.apply(v, input, rows)?;
        for (x, heads) in [(&q, attending.heads), (&k, attending.kv_heads)] {
            self.rotate(attending, x, [rows, tokens], heads, false)?;
        }
        let attended = self.space(rows * attending.query_width(), "attended")?;
        let stats = self.space(rows * attending.heads, "sums of attention")?;
        let device = self.device();
        self.run(
            &plan::attention(
                AttentionPass::Forward,
                attending,
                [rows / tokens.max(1), tokens],
                self.attention_form(attending, precision.rounds_values())?,
            ),
            &[&q, &k, &v, &attended, &stats].map(|buffer| address(device, buffer)),
        )?;
        let (middle, mixed) = pass.add_layer(attending.output, &attended, &x, NormPlace::AfterAttention)?;
        let of_mlp = pass.normed(NormPlace::BeforeMlp, &middle)?;
        let input = of_mlp.as_ref().map_or(&middle, |normed| &normed.y);
        let (y, inside, out) = Inside::add(pass, input, &middle, rows)?;
        let trace = Trace {
            rows,
            tokens,
            x,
            normed,
            raw: [raw_q, raw_k],
            q,
            k,
            v,
            attended,
            stats,
            mixed,
            middle,
            mlp: NormedMlp {
                normed: of_mlp,
                inside,
            },
            out,
        };
        Ok((y, trace))
    }

    /// Rotates every head in place, as the block says.
    pub(super) fn rotate(
        &self,
        spec: &AttentionSpec,
        x: &Buffer<f32>,
        [rows, tokens]: [usize; 2],
        heads: usize,
        back: bool,
    ) -> Result<()> {
        let Some([cosines, sines]) = self.rotation(spec) else {
            return Ok(());
        };
        let device = self.device();
        self.run(
            &plan::rotate([rows, tokens], [heads, spec.head_dim, spec.rotated], back),
            &[cosines, sines, x].map(|buffer| address(device, buffer)),
        )
    }
}
