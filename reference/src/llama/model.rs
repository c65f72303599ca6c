use ndarray::{Array1, Array2, ArrayView2};

use super::linear::linear;
use super::norm::norm;
use super::soft_cap::soft_cap;
use super::{Block, Rotary, block_forward};
use aqlm_vocabulary::{AqlmError, ArchSpec, LogitSpec, ModelWeights, Result};

/// A whole model in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// the model's shape and arithmetic
    pub arch: ArchSpec,
    /// [vocab, hidden]
    pub embedding: Array2<f64>,
    /// the decoder layers, first to last
    pub blocks: Vec<Block>,
    /// the RMSNorm before the head, `[hidden]`
    pub norm: Array1<f64>,
    /// [vocab, hidden]; equal to the embedding if tied
    pub lm_head: Array2<f64>,
}

impl Model {
    /// The f64 form of stored weights; quantized layers are decoded.
    ///
    /// # Errors
    /// Those of [`ArchSpec::check`]; `Shape` when the weights do not have the model's shape.
    pub fn from_weights(arch: &ArchSpec, weights: &ModelWeights) -> Result<Self> {
        arch.check()?;
        if weights.blocks.len() != arch.blocks.len() {
            return Err(AqlmError::Shape {
                what: "blocks".into(),
                expected: vec![arch.blocks.len()],
                found: vec![weights.blocks.len()],
            });
        }
        let lm_head = weights.lm_head.as_ref().unwrap_or(&weights.embedding);
        Ok(Self {
            arch: arch.clone(),
            embedding: weights.embedding.mapv(f64::from),
            blocks: arch
                .blocks
                .iter()
                .zip(&weights.blocks)
                .map(|(spec, block)| Block::from_weights(spec, block))
                .collect::<Result<_>>()?,
            norm: weights.norm.mapv(f64::from),
            lm_head: lm_head.mapv(f64::from),
        })
    }

    /// The form for storage: dense parameters rounded to f32. A tied head is not repeated.
    pub fn to_weights(&self) -> ModelWeights {
        let narrowed = |values: &Array2<f64>| values.mapv(|value| value as f32);
        ModelWeights {
            embedding: narrowed(&self.embedding),
            blocks: self.blocks.iter().map(Block::to_weights).collect(),
            norm: self.norm.mapv(|value| value as f32),
            lm_head: (!self.arch.tied).then(|| narrowed(&self.lm_head)),
        }
    }
}

/// Logits of every position of one sequence, [tokens, vocab]: row t predicts token t + 1.
///
/// # Errors
/// `TokenOutOfRange` when a token has no embedding.
pub fn model_forward(model: &Model, tokens: &[u32]) -> Result<Array2<f64>> {
    let rotary = Rotary::of_model(&model.arch, tokens.len());
    let mut x = embed(model.embedding.view(), tokens, model.arch.embedding_scale)?;
    for block in &model.blocks {
        x = block_forward(block, &rotary, x.view());
    }
    Ok(logits(&model.arch, &model.norm, model.lm_head.view(), x.view()))
}

/// `scale` times the embeddings of tokens, [tokens, hidden], from an embedding of shape [vocab, hidden].
///
/// # Errors
/// `TokenOutOfRange` when a token has no embedding.
pub fn embed<T: Copy + Into<f64>>(
    embedding: ArrayView2<T>,
    tokens: &[u32],
    scale: f64,
) -> Result<Array2<f64>> {
    check_tokens(tokens, embedding.nrows())?;
    let element = |(t, i): (usize, usize)| scale * embedding[[tokens[t] as usize, i]].into();
    Ok(Array2::from_shape_fn((tokens.len(), embedding.ncols()), element))
}

/// The final norm and the head: from hidden states [tokens, hidden] to logits [tokens, vocab].
pub fn logits(
    arch: &ArchSpec,
    weight: &Array1<f64>,
    lm_head: ArrayView2<f64>,
    x: ArrayView2<f64>,
) -> Array2<f64> {
    let normed = norm(arch.final_norm, x, weight.view());
    finished(arch.logits, linear(normed.view(), lm_head, None))
}

/// Logits from the products of final states and output layer: scaled, then capped where there is a cap.
pub(super) fn finished(spec: LogitSpec, mut products: Array2<f64>) -> Array2<f64> {
    products *= spec.scale;
    if let Some(cap) = spec.cap {
        products.mapv_inplace(|logit| soft_cap(logit, cap));
    }
    products
}

/// Negative log-likelihood in nats of each target under its row of logits, `[tokens]`: ln(sum_i e^l_i) -
/// l_target, with the largest logit factored out of the sum.
///
/// # Errors
/// `Shape` unless there is one target per row, `TokenOutOfRange` when a target has no logit.
pub fn token_losses(logits: ArrayView2<f64>, targets: &[u32]) -> Result<Array1<f64>> {
    if targets.len() != logits.nrows() {
        return Err(AqlmError::Shape {
            what: "targets".into(),
            expected: vec![logits.nrows()],
            found: vec![targets.len()],
        });
    }
    check_tokens(targets, logits.ncols())?;
    let loss = |t: usize| {
        let row = logits.row(t);
        let largest = row.fold(f64::NEG_INFINITY, |most, &logit| most.max(logit));
        let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
        sum.ln() + (largest - row[targets[t] as usize])
    };
    Ok(Array1::from_shape_fn(targets.len(), loss))
}

pub(super) fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<()> {
    match tokens.iter().position(|&token| token as usize >= vocab_size) {
        Some(position) => Err(AqlmError::TokenOutOfRange {
            token: tokens[position],
            position,
            vocab_size,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;
    use crate::llama::test_data::{model, random};

    #[test]
    fn losses_are_cross_entropies() {
        // Equal logits over 4 tokens give ln 4, a certain token gives 0. Logits beyond the exponential's
        // range still work.
        let logits = arr2(&[[7.0; 4], [0.0, 900.0, 0.0, -900.0], [0.0, 900.0, 0.0, -900.0]]);
        let losses = token_losses(logits.view(), &[2, 1, 3]).unwrap();
        assert!((losses[0] - 4f64.ln()).abs() <= f64::EPSILON);
        assert_eq!([losses[1], losses[2]], [0.0, 1800.0]);
    }

    #[test]
    fn a_position_does_not_see_later_tokens() {
        let model = model(&mut random(1), 2, None);
        let full = model_forward(&model, &[3, 1, 4, 1, 5]).unwrap();
        let other = model_forward(&model, &[3, 1, 4, 9, 2]).unwrap();
        let rows = |logits: &Array2<f64>, t: usize| logits.row(t).to_owned();
        for t in 0..3 {
            assert_eq!(rows(&full, t), rows(&other, t));
        }
        assert_ne!(rows(&full, 3), rows(&other, 3));
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_refused() {
        let model = model(&mut random(2), 2, None);
        let refused = AqlmError::TokenOutOfRange {
            token: 11,
            position: 1,
            vocab_size: 11,
        };
        assert_eq!(model_forward(&model, &[10, 11]), Err(refused.clone()));
        let logits = model_forward(&model, &[1, 2]).unwrap();
        assert_eq!(token_losses(logits.view(), &[0, 11]), Err(refused));
        assert!(matches!(
            token_losses(logits.view(), &[0]),
            Err(AqlmError::Shape { .. })
        ));
    }
}
