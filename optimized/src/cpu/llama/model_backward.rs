use aqlm_vocabulary::{AqlmError, ArchSpec, LayerId, LogitSpec, NormPlace, Result, Target, Tuned};
use faer::Par;
use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayView3, Axis, s};

use super::forward::{trace_width, working_bytes};
use super::head::{finish, unfinish};
use super::norm::{norm, norm_backward};
use super::sequences::sequences_at_once;
use super::{
    BlockGradients, BlockTrace, Model, Rotary, Wanted, block_backward, block_forward_traced, cross_entropy,
    embed, kl_divergence, top_kl_divergence,
};
use crate::cpu::matvec::expect_len;
use crate::cpu::product::{add_linear_weight_gradient, linear, linear_input_gradient};

/// Inner activations of all blocks are kept between the forward and the backward pass if they take at most
/// this many bytes.
const KEPT_BYTES: usize = 1 << 30;

/// Whether a block's inner activations are kept between the forward and the backward pass. The results are
/// the same either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// kept, some twenty times the hidden states of every block
    Keep,
    /// recomputed, one block at a time: memory holds one block's and the inputs of all blocks
    Recompute,
}

impl Activations {
    /// [`Activations::Keep`] if the activations of the sequences that go through the model together take at
    /// most 1 GiB, else [`Activations::Recompute`].
    pub fn fitting(arch: &ArchSpec, tokens: usize) -> Self {
        let rows = sequences_at_once(tokens) * tokens;
        if Self::Keep.of_all_blocks(arch, rows) <= KEPT_BYTES {
            Self::Keep
        } else {
            Self::Recompute
        }
    }

    /// Bytes held between the forward and the backward pass of `rows` tokens.
    fn of_all_blocks(self, arch: &ArchSpec, rows: usize) -> usize {
        let row = match self {
            Self::Keep => arch.blocks.iter().map(trace_width).sum(),
            Self::Recompute => arch.hidden_size * arch.blocks.len(),
        };
        row * rows * size_of::<f32>()
    }

    /// Peak bytes of activations while gradients of `sequences` sequences of `tokens` tokens are computed:
    /// those held between the passes, those inside one block ([`working_bytes`]), the teacher's data for the
    /// sequences, and for one sequence at a time its logits, the teacher's logits, and their gradients.
    /// Capped logits are kept beside their gradients, with the cap's slopes.
    pub fn bytes(self, arch: &ArchSpec, sequences: usize, tokens: usize) -> usize {
        let rows = sequences.min(sequences_at_once(tokens)) * tokens;
        let said = sequences * tokens * arch.hidden_size;
        let kept = if arch.logits.cap.is_some() { 5 } else { 3 };
        let logits = kept * tokens * arch.vocab_size;
        self.of_all_blocks(arch, rows)
            + working_bytes(arch, sequences, tokens)
            + (said + logits) * size_of::<f32>()
    }
}

/// A gradient or a part of one, in the order in which [`model_backward`] finds them, from the head down.
/// Parts of one gradient must be added.
#[derive(Debug)]
pub enum Gradient<'a> {
    /// with respect to the decoded weight of a block's quantized layer, [out_features, in_features]
    Weight(usize, LayerId, &'a Array2<f32>),
    /// with respect to the norms of a block, in the order of its spec
    BlockNorms(usize, &'a [Array1<f64>]),
    /// with respect to the norm before the head, `[hidden]`
    FinalNorm(&'a Array1<f64>),
    /// with respect to the output layer, [vocab, hidden]; excludes the contribution through tied embeddings
    Head(&'a Array2<f32>),
    /// with respect to the embeddings of these sequences, [sequences, tokens, hidden]; excludes the
    /// contribution through a tied head
    Embedded(&'a [&'a [u32]], ArrayView3<'a, f32>),
}

/// Losses of a model on sequences of equal length, each summed over its positions, in f64.
///
/// Decoded weights are dropped after each block, so the model takes only the memory of its codes and of one
/// decoded block.
///
/// # Errors
/// `TokenOutOfRange` when a token exceeds the embedding or the vocabulary; `Shape` when sequences differ in
/// length, exceed the rotary tables, or a target does not match its sequence.
pub fn model_losses(
    model: &mut Model,
    rotary: &Rotary,
    sequences: &[&[u32]],
    targets: &[Target<'_>],
) -> Result<Vec<f64>> {
    let tokens = check(rotary, sequences, targets)?;
    let at_once = sequences_at_once(tokens);
    let mut losses = Vec::with_capacity(sequences.len());
    for (sequences, targets) in sequences.chunks(at_once).zip(targets.chunks(at_once)) {
        let mut x = embed(model.embedding.view(), sequences, model.embedding_scale)?;
        for block in &mut model.blocks {
            x = block_forward_traced(block, rotary, x.view()).0;
            block.release();
        }
        for ((x, sequence), &target) in x.outer_iter().zip(sequences).zip(targets) {
            let predicting = x.slice(s![..target.positions(tokens), ..]);
            let normed = norm(model.norm_spec, predicting, &model.norm);
            let mut logits = linear(normed.view(), model.head().view(), Par::rayon(0));
            finish(model.logits, &mut logits);
            losses.push(loss_and_gradient(
                model.logits,
                &mut logits,
                sequence,
                target,
                1.0,
            )?);
        }
    }
    Ok(losses)
}

/// [`model_losses`], and `scale` times the gradients of their sum with respect to the parameters that `tuned`
/// selects, passed to `sink` (paper appendix A). Sequences go through the model a few at a time, and each
/// such batch yields a part of every gradient.
///
/// # Errors
/// As [`model_losses`]; parts passed to the sink before an error stay there.
#[expect(
    clippy::too_many_arguments,
    reason = "a model, its data, and what is wanted of them"
)]
pub fn model_backward(
    model: &mut Model,
    rotary: &Rotary,
    sequences: &[&[u32]],
    targets: &[Target<'_>],
    scale: f64,
    tuned: Tuned,
    activations: Activations,
    sink: &mut dyn FnMut(&Model, Gradient<'_>),
) -> Result<Vec<f64>> {
    let tokens = check(rotary, sequences, targets)?;
    let at_once = sequences_at_once(tokens);
    let mut losses = Vec::with_capacity(sequences.len());
    for (sequences, targets) in sequences.chunks(at_once).zip(targets.chunks(at_once)) {
        let mut kept = Vec::with_capacity(model.blocks.len());
        let mut x = embed(model.embedding.view(), sequences, model.embedding_scale)?;
        for block in &mut model.blocks {
            let (y, trace) = block_forward_traced(block, rotary, x.view());
            match activations {
                Activations::Keep => kept.push(Kept::Trace(Box::new(trace))),
                Activations::Recompute => {
                    kept.push(Kept::Input(x));
                    block.release();
                }
            }
            x = y;
        }
        let mut grad = head_backward(model, x, sequences, targets, scale, tuned, &mut losses, sink)?;
        for (index, kept) in kept.into_iter().enumerate().rev() {
            let trace = match kept {
                Kept::Trace(trace) => *trace,
                Kept::Input(x) => block_forward_traced(&model.blocks[index], rotary, x.view()).1,
            };
            let block = &model.blocks[index];
            let wanted = Wanted {
                x: index > 0 || tuned.embedding,
                weights: block
                    .spec()
                    .layers()
                    .map(|layer| (tuned.codebooks || tuned.scales) && block.quantized(layer).is_some())
                    .collect(),
                biases: false,
                norms: tuned.norms,
            };
            let mut gradients = BlockGradients::zeros(block, &wanted);
            let grad_x = block_backward(block, rotary, &trace, grad.view(), &wanted, &mut gradients);
            drop(trace);
            for (layer, weight) in block.spec().layers().zip(&gradients.weights) {
                if let Some(weight) = weight {
                    sink(model, Gradient::Weight(index, layer, weight));
                }
            }
            if tuned.norms {
                sink(model, Gradient::BlockNorms(index, &gradients.norms));
            }
            model.blocks[index].release();
            match grad_x {
                Some(grad_x) => grad = grad_x,
                // only before the first block
                None => break,
            }
        }
        if tuned.embedding {
            if model.embedding_scale != 1.0 {
                grad *= model.embedding_scale as f32;
            }
            sink(model, Gradient::Embedded(sequences, grad.view()));
        }
    }
    Ok(losses)
}

/// The data kept for a block between the forward and the backward pass.
enum Kept {
    Trace(Box<BlockTrace>),
    Input(Array3<f32>),
}

/// Pushes the losses of these sequences to `losses`. Replaces the last block's outputs `x` by `scale` times
/// the gradient of the sum of losses.
#[expect(clippy::too_many_arguments, reason = "the state of the loop above")]
fn head_backward(
    model: &Model,
    mut x: Array3<f32>,
    sequences: &[&[u32]],
    targets: &[Target<'_>],
    scale: f64,
    tuned: Tuned,
    losses: &mut Vec<f64>,
    sink: &mut dyn FnMut(&Model, Gradient<'_>),
) -> Result<Array3<f32>> {
    let par = Par::rayon(0);
    let head = model.head();
    let mut grad_head = tuned.head.then(|| Array2::zeros(head.dim()));
    let mut grad_norm = Array1::zeros(model.norm.len());
    for ((mut x, tokens), &target) in x.outer_iter_mut().zip(sequences).zip(targets) {
        let positions = target.positions(tokens.len());
        let predicting = x.slice(s![..positions, ..]);
        let normed = norm(model.norm_spec, predicting, &model.norm);
        let mut logits = linear(normed.view(), head.view(), par);
        finish(model.logits, &mut logits);
        let finished = model.logits.cap.map(|_| logits.clone());
        losses.push(loss_and_gradient(
            model.logits,
            &mut logits,
            tokens,
            target,
            scale,
        )?);
        unfinish(model.logits, finished.as_ref(), &mut logits);
        if let Some(sum) = &mut grad_head {
            add_linear_weight_gradient(sum.view_mut(), logits.view(), normed.view(), par);
        }
        let grad_normed = linear_input_gradient(logits.view(), head.view(), par);
        let mut grad = Array2::zeros(x.dim());
        let to = grad.slice_mut(s![..positions, ..]);
        grad_norm += &norm_backward(
            model.norm_spec,
            predicting,
            &model.norm,
            grad_normed.view(),
            Some(to),
        );
        x.assign(&grad);
    }
    if let Some(grad_head) = &grad_head {
        sink(model, Gradient::Head(grad_head));
    }
    if tuned.norms {
        sink(model, Gradient::FinalNorm(&grad_norm));
    }
    Ok(x)
}

/// The loss of one sequence; `scale` times the gradient replaces its logits. A teacher's logits are made of
/// its states as the model's own.
fn loss_and_gradient(
    spec: LogitSpec,
    logits: &mut Array2<f32>,
    tokens: &[u32],
    target: Target<'_>,
    scale: f64,
) -> Result<f64> {
    match target {
        Target::NextTokens => cross_entropy(
            logits,
            &tokens[tokens.len() - target.positions(tokens.len())..],
            scale,
        ),
        Target::Teacher { states, head } => {
            if states.ncols() != head.ncols() {
                return Err(AqlmError::Shape {
                    what: "the teacher's states".into(),
                    expected: vec![states.nrows(), head.ncols()],
                    found: states.shape().to_vec(),
                });
            }
            let mut teacher = teacher_logits(states, head);
            finish(spec, &mut teacher);
            kl_divergence(logits, teacher.view(), scale)
        }
        Target::Top(top) => top_kl_divergence(logits, top, scale),
    }
}

fn teacher_logits(states: ArrayView2<'_, f32>, head: ArrayView2<'_, f32>) -> Array2<f32> {
    linear(states, head, Par::rayon(0))
}

/// The length of all sequences, if they and their targets are valid.
fn check(rotary: &Rotary, sequences: &[&[u32]], targets: &[Target<'_>]) -> Result<usize> {
    expect_len("targets", sequences.len(), targets.len())?;
    let tokens = sequences.first().map_or(0, |sequence| sequence.len());
    expect_len("tokens of a sequence", tokens.min(rotary.positions()), tokens)?;
    for sequence in sequences {
        expect_len("tokens of a sequence", tokens, sequence.len())?;
    }
    Ok(tokens)
}

/// The first part of a model whose output on these sequences is not finite, by its name in the checkpoint: a
/// layer, a norm, or the head. `None` if all are finite.
///
/// # Errors
/// As [`model_losses`].
pub(super) fn first_not_finite(
    model: &mut Model,
    rotary: &Rotary,
    sequences: &[&[u32]],
) -> Result<Option<String>> {
    let targets = vec![Target::NextTokens; sequences.len()];
    let tokens = check(rotary, sequences, &targets)?;
    let finite = |values: ArrayView2<'_, f32>| values.iter().all(|value| value.is_finite());
    for sequences in sequences.chunks(sequences_at_once(tokens)) {
        let mut x = embed(model.embedding.view(), sequences, model.embedding_scale)?;
        if !x.iter().all(|value| value.is_finite()) {
            return Ok(Some("model.embed_tokens".into()));
        }
        for (index, block) in model.blocks.iter_mut().enumerate() {
            let (y, trace) = block_forward_traced(block, rotary, x.view());
            block.release();
            let spec = block.spec();
            let attention = &spec.attention;
            let name = |layer| spec.linear(layer).name.as_str();
            let last = |place, layer| spec.last_part(place, name(layer));
            let (first, second) = (NormPlace::BeforeAttention, NormPlace::BeforeMlp);
            let raw = |of: &Option<Array2<f32>>| of.as_ref().is_none_or(|raw| finite(raw.view()));
            let projected = &trace.projected;
            let of_mlp = trace.mlp.parts(spec);
            let first_of_mlp = of_mlp.first().map_or("mlp", |&(name, _)| name);
            // in the order of computation
            let mut parts = vec![
                (last(first, attention.query), finite(trace.normed.view())),
                (name(attention.query), raw(&projected.raw[0])),
                (
                    last(NormPlace::Query, attention.query),
                    finite(projected.q.view()),
                ),
                (name(attention.key), raw(&projected.raw[1])),
                (last(NormPlace::Key, attention.key), finite(projected.k.view())),
                (name(attention.value), finite(projected.v.view())),
                (
                    spec.linear(attention.output).module(),
                    finite(trace.attended.view()),
                ),
                (name(attention.output), raw(&trace.mixed)),
                (
                    last(NormPlace::AfterAttention, attention.output),
                    finite(trace.middle.view()),
                ),
                (
                    spec.last_part(second, first_of_mlp),
                    finite(trace.mlp.normed.view()),
                ),
            ];
            parts.extend(of_mlp.into_iter().map(|(name, values)| (name, finite(values))));
            let added = spec.mlp_output();
            parts.push((added, raw(&trace.out)));
            parts.push((
                spec.last_part(NormPlace::AfterMlp, added),
                y.iter().all(|value| value.is_finite()),
            ));
            if let Some((part, _)) = parts.into_iter().find(|(_, finite)| !finite) {
                return Ok(Some(format!("model.layers.{index}.{part}")));
            }
            x = y;
        }
        for x in x.axis_iter(Axis(0)) {
            let normed = norm(model.norm_spec, x, &model.norm);
            if !finite(normed.view()) {
                return Ok(Some("model.norm".into()));
            }
            if !finite(linear(normed.view(), model.head().view(), Par::rayon(0)).view()) {
                return Ok(Some("lm_head".into()));
            }
        }
    }
    Ok(None)
}
