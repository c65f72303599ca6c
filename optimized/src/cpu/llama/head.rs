use aqlm_vocabulary::{AqlmError, ArchSpec, LogitSpec, NormSpec, Result};
use faer::Par;
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;

use super::norm::{norm, norm_row};
use super::row_store::RowStore;
use super::sequences::{Sequences, parts};
use super::soft_cap::{soft_cap, soft_cap_slopes};
use crate::cpu::product::linear;
use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::vectorize::{squared_distance, sum_of_exponentials};
use crate::cpu::zeroed::{zeroed, zeroed_sequences};

/// Maximum number of logits that one pass holds when only losses are wanted.
const LOGITS: usize = 1 << 25;

/// The RMSNorm before the head, and the head.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    pub(super) norm: NormSpec,
    /// what becomes of the products
    pub(super) logits: LogitSpec,
    /// parameters of the norm
    pub(super) weight: Array1<f32>,
    /// [vocab, hidden]
    pub(super) output: RowStore,
}

impl Head {
    /// The model's head, from the norm's parameters and lm_head, [vocab, hidden].
    ///
    /// # Errors
    /// `Shape` when weight and lm_head do not match.
    pub fn new(arch: &ArchSpec, weight: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Self> {
        let expected = arch.final_norm.parameters(lm_head.ncols());
        if weight.len() != expected {
            return Err(AqlmError::Shape {
                what: "final norm".into(),
                expected: vec![expected],
                found: vec![weight.len()],
            });
        }
        Ok(Self {
            norm: arch.final_norm,
            logits: arch.logits,
            weight: weight.as_standard_layout().into_owned(),
            output: RowStore::new(lm_head),
        })
    }

    /// Logits of hidden states: [rows, hidden] to [rows, vocab].
    ///
    /// # Panics
    /// When the width of the rows differs from the head's.
    pub fn logits(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        self.logits_by(x, &self.output.widened())
    }

    /// [`Head::logits`] with an lm_head already in f32.
    fn logits_by(&self, x: ArrayView2<'_, f32>, lm_head: &[f32]) -> Array2<f32> {
        let normed = self.normed(x);
        let lm_head = ArrayView2::from_shape(self.output.dim(), lm_head)
            .expect("as many values as the store was made of");
        let mut logits = linear(normed.view(), lm_head, Par::rayon(0));
        finish(self.logits, &mut logits);
        logits
    }

    /// The input of the output layer: hidden states after the norm, [rows, hidden].
    ///
    /// # Panics
    /// When the width of the rows differs from the head's.
    pub fn normed(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        norm(self.norm, x.as_standard_layout().view(), &self.weight)
    }

    /// Logits of one position: `[hidden]` to `[vocab]`.
    ///
    /// # Panics
    /// When the width of the row differs from the head's.
    pub fn logits_of_row(&self, x: ArrayView1<'_, f32>) -> Array1<f32> {
        let x = x.as_standard_layout();
        let mut normed = vec![0.0; x.len()];
        norm_row(self.norm, &mut normed, elements(&x), &self.weight);
        let mut logits = self.output.times(&normed);
        finish_slice(self.logits, &mut logits);
        Array1::from(logits)
    }

    /// Negative log-likelihoods in nats of each next token of each sequence, [tokens - 1] each, for hidden
    /// states [sequences, tokens, hidden]: ln(sum_i e^l_i) - l_target, with exponentials in f32 and their sum
    /// in f64.
    ///
    /// # Errors
    /// `Shape` when sequences and hidden states do not match, `TokenOutOfRange` when a target exceeds the
    /// vocabulary.
    pub fn token_losses(
        &self,
        hidden: ArrayView3<'_, f32>,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>> {
        let (count, tokens, _) = hidden.dim();
        if sequences.len() != count {
            return Err(AqlmError::Shape {
                what: "targets".into(),
                expected: vec![count],
                found: vec![sequences.len()],
            });
        }
        let (vocab, _) = self.output.dim();
        let lm_head = self.output.widened();
        let rows_at_once = (LOGITS / vocab.max(1)).max(1);
        let mut result = Vec::with_capacity(count);
        for (x, sequence) in hidden.outer_iter().zip(sequences) {
            if sequence.len() != tokens || tokens == 0 {
                return Err(AqlmError::Shape {
                    what: "tokens of a sequence".into(),
                    expected: vec![tokens.max(1)],
                    found: vec![sequence.len()],
                });
            }
            check_tokens(sequence, vocab)?;
            let predicting = x.slice(ndarray::s![..tokens - 1, ..]);
            let targets = &sequence[1..];
            let mut losses = Vec::with_capacity(targets.len());
            for (x, targets) in predicting
                .axis_chunks_iter(Axis(0), rows_at_once)
                .zip(targets.chunks(rows_at_once))
            {
                let logits = self.logits_by(x, &lm_head);
                losses.extend(losses_of(logits.view(), targets));
            }
            result.push(Array1::from(losses));
        }
        Ok(result)
    }
}

/// Makes logits of the products of final states and output layer, in place.
pub(super) fn finish(spec: LogitSpec, products: &mut Array2<f32>) {
    if spec != LogitSpec::PLAIN {
        let rows = products.ncols().max(1);
        elements_mut(products)
            .par_chunks_mut(rows)
            .for_each(|row| finish_slice(spec, row));
    }
}

fn finish_slice(spec: LogitSpec, products: &mut [f32]) {
    if spec.scale != 1.0 {
        let scale = spec.scale as f32;
        for product in products.iter_mut() {
            *product *= scale;
        }
    }
    if let Some(cap) = spec.cap {
        soft_cap(products, cap as f32);
    }
}

/// Makes gradients with respect to the products from those with respect to logits, in place. `logits` is
/// needed with a cap only.
pub(super) fn unfinish(spec: LogitSpec, logits: Option<&Array2<f32>>, grad: &mut Array2<f32>) {
    if spec.scale != 1.0 {
        *grad *= spec.scale as f32;
    }
    if let (Some(cap), Some(logits)) = (spec.cap, logits) {
        let mut slopes = zeroed(logits.dim());
        soft_cap_slopes(elements_mut(&mut slopes), elements(logits), cap as f32);
        *grad *= &slopes;
    }
}

/// Negative log-likelihoods in nats of `targets` under logits [targets, vocab]: the computation of
/// [`Head::token_losses`] for logits from elsewhere.
///
/// # Errors
/// `Shape` unless there is one target a row, `TokenOutOfRange` when a target exceeds the vocabulary.
pub fn token_losses(logits: ArrayView2<'_, f32>, targets: &[u32]) -> Result<Array1<f64>> {
    if logits.nrows() != targets.len() {
        return Err(AqlmError::Shape {
            what: "targets".into(),
            expected: vec![logits.nrows()],
            found: vec![targets.len()],
        });
    }
    check_tokens(targets, logits.ncols())?;
    Ok(Array1::from(losses_of(logits, targets)))
}

/// One loss a row; every target must be within the vocabulary.
fn losses_of(logits: ArrayView2<'_, f32>, targets: &[u32]) -> Vec<f64> {
    logits
        .outer_iter()
        .into_par_iter()
        .zip(targets)
        .map(|(row, &target)| token_loss(row, target))
        .collect()
}

/// ln(sum_i e^l_i) - l_target, computed relative to the largest logit.
fn token_loss(logits: ArrayView1<'_, f32>, target: u32) -> f64 {
    let largest = logits.fold(f32::NEG_INFINITY, |most, &logit| most.max(logit));
    let logits_in_order = logits.as_standard_layout();
    let sum = sum_of_exponentials(elements(&logits_in_order), largest);
    sum.ln() + (f64::from(largest) - f64::from(logits[target as usize]))
}

/// `scale` times the embeddings of sequences of equal length, [sequences, tokens, hidden], in an embedding of
/// [vocab, hidden].
///
/// # Errors
/// `TokenOutOfRange` when a token has no embedding, `Shape` when the sequences differ in length.
pub fn embed(embedding: ArrayView2<'_, f32>, sequences: &[&[u32]], scale: f64) -> Result<Array3<f32>> {
    let scale = scale as f32;
    let tokens = sequences.first().map_or(0, |sequence| sequence.len());
    let mut hidden = zeroed_sequences((sequences.len(), tokens, embedding.ncols()));
    for (mut to, sequence) in hidden.outer_iter_mut().zip(sequences) {
        if sequence.len() != tokens {
            return Err(AqlmError::Shape {
                what: "tokens of a sequence".into(),
                expected: vec![tokens],
                found: vec![sequence.len()],
            });
        }
        check_tokens(sequence, embedding.nrows())?;
        to.outer_iter_mut()
            .into_par_iter()
            .zip(sequence.par_iter())
            .for_each(|(mut row, &token)| {
                row.assign(&embedding.row(token as usize));
                if scale != 1.0 {
                    row *= scale;
                }
            });
    }
    Ok(hidden)
}

pub(crate) fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<()> {
    match tokens.iter().position(|&token| token as usize >= vocab_size) {
        Some(position) => Err(AqlmError::TokenOutOfRange {
            token: tokens[position],
            position,
            vocab_size,
        }),
        None => Ok(()),
    }
}

/// The sums of (a - b)^2 and of b^2 over each sequence, in f64.
///
/// # Errors
/// `Shape` when the two shapes differ; errors of reading the sequences.
pub fn squares_of_sequences<S: Sequences>(a: &S, b: &S) -> std::result::Result<Vec<(f64, f64)>, S::Error> {
    let (lengths, width) = (b.lengths(), b.width());
    let shape = |lengths: &[usize], width| vec![lengths.len(), lengths.iter().sum(), width];
    if a.lengths() != lengths || a.width() != width {
        return Err(AqlmError::Shape {
            what: "hidden states".into(),
            expected: shape(&lengths, width),
            found: shape(&a.lengths(), a.width()),
        }
        .into());
    }
    let mut all = Vec::with_capacity(lengths.len());
    for part in parts(&lengths) {
        let part: Vec<usize> = part.collect();
        let (a, b) = (a.read(&part)?, b.read(&part)?);
        let of_part = a.outer_iter().into_par_iter().zip(b.outer_iter());
        all.par_extend(of_part.map(|(a, b)| squares(a, b)));
    }
    Ok(all)
}

/// The sums of (a - b)^2 and of b^2 over one sequence.
fn squares(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> (f64, f64) {
    let zero = vec![0.0; b.ncols()];
    let mut sums = (0.0, 0.0);
    for (a, b) in a.outer_iter().zip(b.outer_iter()) {
        let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
        sums.0 += squared_distance(elements(&a), elements(&b));
        sums.1 += squared_distance(&zero, elements(&b));
    }
    sums
}
