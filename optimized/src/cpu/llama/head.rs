use aqlm_reference::vocabulary::{AqlmError, LlamaConfig, Result};
use faer::Par;
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;

use super::rms_norm::{rms_norm, rms_norm_row};
use crate::cpu::product::linear;
use crate::cpu::vectorize::{dot, squared_distance, sum_of_exponentials};
use crate::cpu::zeroed::zeroed_sequences;

/// Logits that one pass holds at a time when only losses are wanted.
const LOGITS: usize = 1 << 25;

/// Vocabulary rows of one task of a single position's logits.
const VOCABULARY_ROWS: usize = 256;

/// The RMSNorm before the head, and the head.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// `[hidden]`
    norm: Array1<f32>,
    /// [vocab, hidden], standard layout
    lm_head: Array2<f32>,
}

impl Head {
    /// Of the norm's weight, `[hidden]`, and lm_head, [vocab, hidden].
    ///
    /// # Errors
    /// `Shape` when the two do not fit.
    pub fn new(norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Self> {
        if norm.len() != lm_head.ncols() {
            return Err(AqlmError::Shape {
                what: "final norm".into(),
                expected: vec![lm_head.ncols()],
                found: vec![norm.len()],
            });
        }
        Ok(Self {
            norm: norm.clone(),
            lm_head: lm_head.as_standard_layout().into_owned(),
        })
    }

    /// Logits of hidden states: [rows, hidden] to [rows, vocab].
    ///
    /// # Panics
    /// When the rows have another width than the head.
    pub fn logits(&self, config: &LlamaConfig, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let normed = rms_norm(x, &self.norm, config.rms_norm_eps);
        linear(normed.view(), self.lm_head.view(), Par::rayon(0))
    }

    /// Logits of one position: `[hidden]` to `[vocab]`.
    ///
    /// # Panics
    /// When the row has another width than the head.
    pub fn logits_of_row(&self, config: &LlamaConfig, x: ArrayView1<'_, f32>) -> Array1<f32> {
        let x = x.as_standard_layout();
        let mut normed = vec![0.0; x.len()];
        let (Some(x), Some(norm)) = (x.as_slice(), self.norm.as_slice()) else {
            return Array1::zeros(0);
        };
        rms_norm_row(&mut normed, x, norm, config.rms_norm_eps);
        let mut logits = Array1::zeros(self.lm_head.nrows());
        let width = normed.len();
        if let (Some(logits), Some(lm_head)) = (logits.as_slice_mut(), self.lm_head.as_slice()) {
            logits
                .par_chunks_mut(VOCABULARY_ROWS)
                .zip(lm_head.par_chunks(VOCABULARY_ROWS * width))
                .for_each(|(logits, rows)| {
                    for (logit, row) in logits.iter_mut().zip(rows.chunks_exact(width)) {
                        *logit = dot(row, &normed);
                    }
                });
        }
        logits
    }

    /// Negative log-likelihoods in nats of each next token of each sequence, [tokens - 1] each, for hidden states
    /// [sequences, tokens, hidden]: ln(sum_i e^l_i) - l_target, exponentials in f32 and their sum in f64.
    ///
    /// # Errors
    /// `Shape` when sequences and hidden states do not fit, `TokenOutOfRange` when a target has no logit.
    pub fn token_losses(
        &self,
        config: &LlamaConfig,
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
        let vocab = self.lm_head.nrows();
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
                let logits = self.logits(config, x);
                let part: Vec<f64> = logits
                    .outer_iter()
                    .into_par_iter()
                    .zip(targets)
                    .map(|(row, &target)| token_loss(row, target))
                    .collect();
                losses.extend(part);
            }
            result.push(Array1::from(losses));
        }
        Ok(result)
    }
}

/// ln(sum_i e^l_i) - l_target, the largest logit taken out of the sum first.
fn token_loss(logits: ArrayView1<'_, f32>, target: u32) -> f64 {
    let largest = logits.fold(f32::NEG_INFINITY, |most, &logit| most.max(logit));
    let logits_in_order = logits.as_standard_layout();
    let sum = sum_of_exponentials(logits_in_order.as_slice().unwrap_or_default(), largest);
    sum.ln() + (f64::from(largest) - f64::from(logits[target as usize]))
}

/// The embeddings of sequences of equal length, [sequences, tokens, hidden], for an embedding of [vocab, hidden].
///
/// # Errors
/// `TokenOutOfRange` when a token has no embedding, `Shape` when the sequences differ in length.
pub fn embed(embedding: ArrayView2<'_, f32>, sequences: &[&[u32]]) -> Result<Array3<f32>> {
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
            .for_each(|(mut row, &token)| row.assign(&embedding.row(token as usize)));
    }
    Ok(hidden)
}

fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<()> {
    match tokens.iter().position(|&token| token as usize >= vocab_size) {
        Some(position) => Err(AqlmError::TokenOutOfRange {
            token: tokens[position],
            position,
            vocab_size,
        }),
        None => Ok(()),
    }
}

/// Mean over all elements of (a - b)^2, and of b^2, in f64.
///
/// # Errors
/// `Shape` when the two differ in shape.
pub fn mean_squares(a: ArrayView3<'_, f32>, b: ArrayView3<'_, f32>) -> Result<(f64, f64)> {
    if a.dim() != b.dim() {
        return Err(AqlmError::Shape {
            what: "hidden states".into(),
            expected: b.shape().to_vec(),
            found: a.shape().to_vec(),
        });
    }
    let parts: Vec<(f64, f64)> = a
        .outer_iter()
        .into_par_iter()
        .zip(b.outer_iter())
        .map(|(a, b)| {
            let zero = vec![0.0; b.ncols()];
            let mut sums = (0.0, 0.0);
            for (a, b) in a.outer_iter().zip(b.outer_iter()) {
                let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
                if let (Some(a), Some(b)) = (a.as_slice(), b.as_slice()) {
                    sums.0 += squared_distance(a, b);
                    sums.1 += squared_distance(&zero, b);
                }
            }
            sums
        })
        .collect();
    let count = b.len().max(1) as f64;
    let (difference, norm) = parts
        .iter()
        .fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    Ok((difference / count, norm / count))
}
