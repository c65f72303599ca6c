use aqlm_vocabulary::{AqlmError, ArchSpec, LogitSpec, ModelWeights, NormSpec, Result};
use ndarray::{Array1, Array2};

use super::Block;

/// A whole model, resident.
#[derive(Debug, Clone)]
pub struct Model {
    /// [vocab, hidden], standard layout
    pub embedding: Array2<f32>,
    /// the decoder layers, first to last
    pub blocks: Vec<Block>,
    /// the RMSNorm before the head, `[hidden]`, standard layout
    pub norm: Array1<f32>,
    /// its arithmetic
    pub norm_spec: NormSpec,
    /// factor of embeddings
    pub embedding_scale: f64,
    /// what becomes of the products of final states and output layer
    pub logits: LogitSpec,
    /// [vocab, hidden], standard layout; `None` if the embedding serves as the head
    pub lm_head: Option<Array2<f32>>,
}

impl Model {
    /// The resident form of stored weights.
    ///
    /// # Errors
    /// Those of [`ArchSpec::check`]; `Shape` when the weights do not match the architecture.
    pub fn from_weights(arch: &ArchSpec, weights: &ModelWeights) -> Result<Self> {
        arch.check()?;
        let expect = |what: &str, expected: &[usize], found: &[usize]| {
            if expected == found {
                Ok(())
            } else {
                Err(AqlmError::Shape {
                    what: what.into(),
                    expected: expected.to_vec(),
                    found: found.to_vec(),
                })
            }
        };
        let vocabulary = [arch.vocab_size, arch.hidden_size];
        expect("embedding", &vocabulary, weights.embedding.shape())?;
        expect(
            "final norm",
            &[arch.final_norm_parameters()],
            weights.norm.shape(),
        )?;
        if let Some(lm_head) = &weights.lm_head {
            expect("lm_head", &vocabulary, lm_head.shape())?;
        }
        expect("blocks", &[arch.blocks.len()], &[weights.blocks.len()])?;
        let standard = |values: &Array2<f32>| values.as_standard_layout().into_owned();
        Ok(Self {
            embedding: standard(&weights.embedding),
            blocks: arch
                .blocks
                .iter()
                .zip(&weights.blocks)
                .map(|(spec, block)| Block::from_weights(spec, block))
                .collect::<Result<_>>()?,
            norm: weights.norm.as_standard_layout().into_owned(),
            norm_spec: arch.final_norm,
            embedding_scale: arch.embedding_scale,
            logits: arch.logits,
            lm_head: weights.lm_head.as_ref().map(standard),
        })
    }

    /// The form for transfer and storage.
    pub fn to_weights(&self) -> ModelWeights {
        ModelWeights {
            embedding: self.embedding.clone(),
            blocks: self.blocks.iter().map(Block::to_weights).collect(),
            norm: self.norm.clone(),
            lm_head: self.lm_head.clone(),
        }
    }

    /// The output layer, [vocab, hidden].
    pub fn head(&self) -> &Array2<f32> {
        self.lm_head.as_ref().unwrap_or(&self.embedding)
    }
}
