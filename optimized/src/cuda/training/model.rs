use aqlm_vocabulary::{AqlmError, ModelWeights, NormSpec};
use ndarray::Array1;

use super::super::{Buffer, Result};
use super::block::{Block, matrix};
use super::machine::Machine;

/// A whole model on the device, for training.
pub(super) struct Model {
    /// [vocab, hidden]
    pub(super) embedding: Buffer<f32>,
    /// the decoder layers, first to last
    pub(super) blocks: Vec<Block>,
    /// the RMSNorm before the head, `[hidden]`
    pub(super) norm: Buffer<f32>,
    /// its arithmetic
    pub(super) norm_spec: NormSpec,
    /// [vocab, hidden]; `None` if the embedding serves as the head
    pub(super) lm_head: Option<Buffer<f32>>,
}

impl Model {
    /// Copies a model of the machine's shape to the device.
    pub(super) fn new(machine: &Machine, weights: &ModelWeights) -> Result<Self> {
        let arch = machine.arch();
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
        expect("final norm", &vocabulary[1..], weights.norm.shape())?;
        if let Some(lm_head) = &weights.lm_head {
            expect("lm_head", &vocabulary, lm_head.shape())?;
        }
        expect("blocks", &[arch.blocks.len()], &[weights.blocks.len()])?;
        let blocks = arch.blocks.iter().zip(&weights.blocks);
        let lm_head = weights.lm_head.as_ref().filter(|_| !arch.tied);
        Ok(Self {
            embedding: machine.table(&weights.embedding, "the embedding")?,
            blocks: blocks
                .map(|(spec, block)| Block::new(machine, spec, block))
                .collect::<Result<_>>()?,
            norm: machine.upload(&weights.norm.to_vec(), "the final norm")?,
            norm_spec: arch.final_norm,
            lm_head: lm_head
                .map(|lm_head| machine.table(lm_head, "lm_head"))
                .transpose()?,
        })
    }

    /// The model, back on the host.
    pub(super) fn to_weights(&self, machine: &Machine) -> Result<ModelWeights> {
        let (arch, device) = (machine.arch(), machine.device());
        let shape = (arch.vocab_size, arch.hidden_size);
        let table = |values: &Buffer<f32>| matrix(shape, device.download(values)?);
        let blocks = self.blocks.iter().map(|block| block.to_weights(machine));
        Ok(ModelWeights {
            embedding: table(&self.embedding)?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: Array1::from(device.download(&self.norm)?),
            lm_head: self.lm_head.as_ref().map(table).transpose()?,
        })
    }

    /// The output layer, [vocab, hidden].
    pub(super) fn head(&self) -> &Buffer<f32> {
        self.lm_head.as_ref().unwrap_or(&self.embedding)
    }
}
