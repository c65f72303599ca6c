use aqlm_vocabulary::{
    AqlmError, ArchSpec, CodeChange, CodeSettings, CodeState, LayerId, QuantizedMatrix, Result, StreamKey,
    codebook_order,
};
use ndarray::Array2;

use super::Block;
use crate::cpu::quantizer::{CodeBuffer, Differences, allowances};

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
    ///
    /// # Errors
    /// `Argument` when the settings are out of their range.
    pub(super) fn new(blocks: &[Block], settings: CodeSettings, seed: u64) -> Result<Self> {
        settings.check()?;
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
        Ok(Self {
            settings,
            seed,
            layers,
        })
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
    /// `changed` is told the matrices whose codes changed.
    pub(super) fn step(
        &mut self,
        code_lr: f64,
        step: u32,
        blocks: &mut [Block],
        changed: &mut dyn FnMut(usize, LayerId, &QuantizedMatrix),
    ) -> Result<CodeChange> {
        let matrix = |blocks: &[Block], layer: &TrainedLayer| -> QuantizedMatrix {
            let layer = blocks[layer.block].quantized(layer.id).expect(QUANTIZED_ONLY);
            layer.matrix().clone()
        };
        let mut differences: Vec<Differences> = Vec::with_capacity(self.layers.len());
        for layer in &mut self.layers {
            layer.codes.move_buffer(code_lr);
            differences.push(layer.codes.differences(&matrix(blocks, layer)));
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
            let mut matrix = matrix(blocks, layer);
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
            if recoded.changed > 0 {
                matrix = matrix.with_codes(recoded.codes)?;
                changed(layer.block, layer.id, &matrix);
                blocks[layer.block].set_layer(layer.id, matrix.clone())?;
            }
            layer.codes.decay(&matrix);
        }
        Ok(total)
    }

    /// The state of every matrix.
    pub(super) fn state(&self, arch: &ArchSpec, blocks: &[Block]) -> Vec<CodeState> {
        let widened = |values: &[f32]| -> Vec<f64> { values.iter().map(|&value| f64::from(value)).collect() };
        let of_layer = |layer: &TrainedLayer| {
            let (first, second) = layer.codes.moments();
            let quantized = blocks[layer.block].quantized(layer.id).expect(QUANTIZED_ONLY);
            CodeState {
                block: layer.block,
                layer: layer.id,
                name: arch.layer_name(layer.block, layer.id),
                codes: quantized.matrix().codes().clone(),
                buffer: layer
                    .codes
                    .buffer()
                    .iter()
                    .map(|&value| f64::from(value))
                    .collect(),
                first: widened(first),
                second: widened(second),
            }
        };
        self.layers.iter().map(of_layer).collect()
    }

    /// The matrices of a state, whose buffers and moments are taken over.
    ///
    /// # Errors
    /// `Shape` when the state belongs to other matrices, `CodeOutOfRange` for a code that does not exist.
    pub(super) fn restored(
        &self,
        steps: u32,
        states: &[CodeState],
        blocks: &[Block],
    ) -> Result<(Self, Vec<OfLayer>)> {
        let here: Vec<_> = self.layers.iter().map(|layer| (layer.block, layer.id)).collect();
        if !states
            .iter()
            .map(|state| (state.block, state.layer))
            .eq(here.iter().copied())
        {
            return Err(AqlmError::Shape {
                what: "matrices with codes of a training state".into(),
                expected: vec![here.len()],
                found: vec![states.len()],
            });
        }
        let mut restored = self.clone();
        let mut matrices = Vec::with_capacity(states.len());
        for (layer, state) in restored.layers.iter_mut().zip(states) {
            let quantized = blocks[layer.block].quantized(layer.id).expect(QUANTIZED_ONLY);
            let matrix = quantized.matrix().clone().with_codes(state.codes.clone())?;
            let lists = [&state.buffer, &state.first, &state.second].map(Vec::as_slice);
            layer.codes.restore(steps, lists)?;
            matrices.push((layer.block, layer.id, matrix));
        }
        Ok((restored, matrices))
    }

    /// The first matrix whose buffer is not finite, by its name in the checkpoint.
    pub(super) fn first_not_finite(&self, arch: &ArchSpec) -> Option<String> {
        let broken = |layer: &&TrainedLayer| layer.codes.buffer().iter().any(|value| !value.is_finite());
        let layer = self.layers.iter().find(broken)?;
        Some(arch.layer_name(layer.block, layer.id))
    }
}
