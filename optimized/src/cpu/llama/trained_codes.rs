use aqlm_vocabulary::{
    AqlmError, ArchSpec, CodeChange, CodeSettings, CodeState, LayerId, PartOutline, QuantizedMatrix, Result,
    StreamKey, codebook_order,
};
use ndarray::Array2;

use super::Block;
use crate::cpu::quantizer::{CodeBuffer, Differences, allowances};
use crate::cpu::row_major::elements;

/// Why a layer with a buffer is quantized.
const QUANTIZED_ONLY: &str = "only quantized layers have buffers";

/// A layer, by block and number, and its matrix.
type OfLayer = (usize, LayerId, QuantizedMatrix);

/// The codes that are tuned: a buffer for every quantized matrix of a model.
#[derive(Debug, Clone)]
pub(super) struct TrainedCodes {
    settings: CodeSettings,
    seed: u64,
    /// sorted by block and layer
    layers: Vec<TrainedLayer>,
}

#[derive(Debug, Clone)]
struct TrainedLayer {
    block: usize,
    id: LayerId,
    codes: CodeBuffer,
}

impl TrainedCodes {
    /// Buffers for all quantized layers of these blocks.
    pub(super) fn new(blocks: &[Block], settings: CodeSettings, seed: u64) -> Self {
        let mut layers = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            for id in block.spec().layers() {
                if let Some(layer) = block.quantized(id) {
                    layers.push(TrainedLayer {
                        block: index,
                        id,
                        codes: CodeBuffer::new(layer.matrix(), settings),
                    });
                }
            }
        }
        Self {
            settings,
            seed,
            layers,
        }
    }

    /// Adds to the gradient of a decoded weight.
    pub(super) fn add(&mut self, block: usize, id: LayerId, gradient: &Array2<f32>) {
        if let Some(layer) = self
            .layers
            .iter_mut()
            .find(|layer| (layer.block, layer.id) == (block, id))
        {
            layer.codes.add(gradient);
        }
    }

    /// Takes the sums of the gradients out, one matrix after the other.
    pub(super) fn take_gradients(&mut self, taken: &mut Vec<f64>) {
        for layer in &mut self.layers {
            taken.extend(layer.codes.take_gradient());
        }
    }

    /// Number of all weights.
    pub(super) fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.codes.buffer().len()).sum()
    }

    /// Adds sums of [`TrainedCodes::take_gradients`], as many as there are weights.
    pub(super) fn add_gradients(&mut self, sums: &[f64]) {
        let mut rest = sums;
        for layer in &mut self.layers {
            let (own, others) = rest.split_at(layer.codes.buffer().len());
            layer.codes.add_sums(&mut own.iter());
            rest = others;
        }
    }

    /// Moves the buffers and gives the blocks new codes, under codebooks and scales that have moved already.
    /// `changed` is told the matrices whose codes changed or whose codebooks were fitted.
    pub(super) fn step(
        &mut self,
        code_lr: f64,
        step: u32,
        blocks: &mut [Block],
        changed: &mut dyn FnMut(usize, LayerId, &QuantizedMatrix),
    ) -> Result<CodeChange> {
        let mut differences: Vec<Differences> = Vec::with_capacity(self.layers.len());
        for layer in &mut self.layers {
            layer.codes.move_buffer(code_lr);
            differences.push(layer.codes.differences(matrix(blocks, layer)));
        }
        let sizes: Vec<(usize, &[f64])> = self
            .layers
            .iter()
            .zip(&differences)
            .map(|(layer, differences)| {
                let (out_groups, _) = matrix(blocks, layer).groups();
                (out_groups, differences.norms.as_slice())
            })
            .collect();
        let counts = allowances(&sizes, self.settings.max_change, self.settings.budget);
        let mut total = CodeChange::default();
        for ((layer, differences), count) in self.layers.iter_mut().zip(&differences).zip(counts) {
            let mut matrix = matrix(blocks, layer).clone();
            let key = StreamKey {
                seed: self.seed,
                block: layer.block,
                layer: Some(layer.id),
            };
            let order = codebook_order(key, step, matrix.scheme().num_codebooks);
            let recoded = layer.codes.recode(&matrix, differences, count, &order);
            total += CodeChange {
                changed: recoded.changed,
                groups: differences.norms.len(),
            };
            if recoded.changed > 0 || self.settings.refit > 0.0 {
                matrix = layer.codes.refitted(matrix.with_codes(recoded.codes)?);
                changed(layer.block, layer.id, &matrix);
                blocks[layer.block].set_layer(layer.id, matrix.clone())?;
            }
            layer.codes.decay(&matrix);
        }
        Ok(total)
    }

    /// What [`TrainedCodes::part`] gives, without numbers.
    pub(super) fn outline(&self, arch: &ArchSpec, blocks: &[Block]) -> impl Iterator<Item = PartOutline> {
        self.layers.iter().map(|layer| {
            let (out_groups, in_groups, codebooks) = matrix(blocks, layer).codes().dim();
            PartOutline::Codes {
                block: layer.block,
                layer: layer.id,
                name: arch.layer_name(layer.block, layer.id),
                shape: [out_groups, in_groups, codebooks],
                len: layer.codes.buffer().len(),
                first: layer.codes.moments().0.len(),
                metric: layer.codes.products().len(),
            }
        })
    }

    /// The state of one matrix; `None` beyond the last.
    pub(super) fn part(&self, arch: &ArchSpec, blocks: &[Block], number: usize) -> Option<CodeState> {
        let layer = self.layers.get(number)?;
        let widened = |values: &[f32]| -> Vec<f64> { values.iter().map(|&value| f64::from(value)).collect() };
        let (first, second) = layer.codes.moments();
        Some(CodeState {
            block: layer.block,
            layer: layer.id,
            name: arch.layer_name(layer.block, layer.id),
            codes: matrix(blocks, layer).codes().clone(),
            buffer: widened(elements(layer.codes.buffer())),
            first: widened(first),
            second: widened(second),
            metric: layer.codes.products().to_vec(),
        })
    }

    /// Takes over the state of one matrix after `steps` steps; returns its number and what it has become,
    /// which the block does not have yet.
    ///
    /// # Errors
    /// `Shape` for lists of other lengths, `CodeOutOfRange` for a code that does not exist; `Internal` for a
    /// matrix that does not exist.
    pub(super) fn restore(
        &mut self,
        steps: u32,
        number: usize,
        part: CodeState,
        blocks: &[Block],
    ) -> Result<OfLayer> {
        let layer = self
            .layers
            .get_mut(number)
            .ok_or_else(|| AqlmError::Internal("a matrix of a training state that does not exist".into()))?;
        let restored = matrix(blocks, layer).clone().with_codes(part.codes)?;
        let lists = [&part.buffer, &part.first, &part.second, &part.metric].map(Vec::as_slice);
        layer.codes.restore(steps, lists)?;
        Ok((layer.block, layer.id, restored))
    }

    /// The first matrix whose buffer is not finite, by its name in the checkpoint.
    pub(super) fn first_not_finite(&self, arch: &ArchSpec) -> Option<String> {
        let broken = |layer: &&TrainedLayer| layer.codes.buffer().iter().any(|value| !value.is_finite());
        let layer = self.layers.iter().find(broken)?;
        Some(arch.layer_name(layer.block, layer.id))
    }
}

/// The matrix of a layer that has a buffer.
fn matrix<'a>(blocks: &'a [Block], layer: &TrainedLayer) -> &'a QuantizedMatrix {
    let layer = blocks[layer.block].quantized(layer.id).expect(QUANTIZED_ONLY);
    layer.matrix()
}
