use std::sync::Arc;

use aqlm_vocabulary::{
    AqlmError, ArchSpec, ChangeBudget, CodeChange, CodeSettings, CodeState, LayerId, PartOutline, StreamKey,
    codebook_order,
};

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::block::Block;
use super::code_buffer::{CodeBuffer, Differences};
use super::machine::Machine;
use super::quantized::Quantized;
use super::selection::Chosen;

/// The codes that are tuned: a buffer for every quantized matrix of a model.
pub(super) struct TrainedCodes {
    machine: Arc<Machine>,
    settings: CodeSettings,
    seed: u64,
    /// sorted by block and layer
    layers: Vec<TrainedLayer>,
}

struct TrainedLayer {
    block: usize,
    id: LayerId,
    codes: CodeBuffer,
}

impl TrainedCodes {
    /// Buffers for all quantized layers of these blocks.
    ///
    /// # Errors
    /// `Aqlm` with `Argument` when the settings are out of their range, with `Unsupported` for a beam that is
    /// too wide for the device; `Memory`, `Driver`.
    pub(super) fn new(
        machine: &Arc<Machine>,
        blocks: &[Block],
        settings: CodeSettings,
        seed: u64,
    ) -> Result<Self> {
        settings.check()?;
        let mut layers = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            for id in block.spec.layers() {
                if let Some(quantized) = block.quantized(id) {
                    layers.push(TrainedLayer {
                        block: index,
                        id,
                        codes: CodeBuffer::new(machine, quantized, settings)?,
                    });
                }
            }
        }
        Ok(Self {
            machine: Arc::clone(machine),
            settings,
            seed,
            layers,
        })
    }

    /// Adds to the gradient of a decoded weight.
    pub(super) fn add(&self, block: usize, id: LayerId, gradient: &Buffer<f32>) -> Result<()> {
        let mut layers = self.layers.iter();
        match layers.find(|layer| (layer.block, layer.id) == (block, id)) {
            Some(layer) => layer.codes.add(gradient),
            None => Ok(()),
        }
    }

    /// Number of all weights.
    pub(super) fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.codes.len()).sum()
    }

    /// Takes the sums of the gradients out, one matrix after the other.
    pub(super) fn take_gradients(&mut self, taken: &mut Vec<f64>) -> Result<()> {
        for layer in &mut self.layers {
            taken.extend(layer.codes.take_gradient()?);
        }
        Ok(())
    }

    /// Adds sums of [`TrainedCodes::take_gradients`], as many as there are weights.
    pub(super) fn add_gradients(&self, sums: &[f64]) -> Result<()> {
        let mut rest = sums;
        for layer in &self.layers {
            let (own, others) = rest.split_at(layer.codes.len());
            layer.codes.add_sums(own)?;
            rest = others;
        }
        Ok(())
    }

    /// Moves the buffers and gives the blocks new codes, under codebooks and scales that have moved already.
    /// `step` counts the steps from 1.
    pub(super) fn step(&self, code_lr: f64, step: u32, blocks: &mut [Block]) -> Result<CodeChange> {
        let machine = &*self.machine;
        for layer in &self.layers {
            layer.codes.move_buffer(code_lr, step)?;
        }
        let visits = self.visits(step, blocks);
        let starts: Vec<usize> = visits.iter().map(Vec::len).collect();
        let visits = machine.upload(&visits.concat(), "the order of codebooks")?;
        let changed = machine.zeros::<u32>(self.layers.len(), "the numbers of changed groups")?;
        let at = |buffer: &Buffer<u32>, number: usize| {
            address(machine.device(), buffer) + (number * size_of::<u32>()) as u64
        };
        let (mut total, mut from) = (CodeChange::default(), 0);
        let mut of_model = match self.settings.budget {
            ChangeBudget::Matrix => None,
            ChangeBudget::Model => Some(self.of_model(blocks)?.into_iter()),
        };
        for (number, layer) in self.layers.iter().enumerate() {
            let quantized = quantized_mut(blocks, layer)?;
            total.groups += quantized.count();
            let (differences, chosen) = match of_model.as_mut().and_then(Iterator::next) {
                Some(of_model) => of_model,
                None => layer.codes.of_matrix(quantized)?,
            };
            layer.codes.recode(
                quantized,
                &differences,
                &chosen,
                at(&visits, from),
                at(&changed, number),
            )?;
            layer.codes.decay(quantized)?;
            from += starts[number];
        }
        for (layer, changed) in self.layers.iter().zip(machine.device().download(&changed)?) {
            total.changed += changed as usize;
            if changed > 0 {
                quantized_mut(blocks, layer)?.codes_changed();
            }
        }
        Ok(total)
    }

    /// The order in which each matrix's codebooks are visited.
    fn visits(&self, step: u32, blocks: &[Block]) -> Vec<Vec<u32>> {
        let of_layer = |layer: &TrainedLayer| -> Vec<u32> {
            let key = StreamKey {
                seed: self.seed,
                block: layer.block,
                layer: Some(layer.id),
            };
            let books = blocks[layer.block]
                .quantized(layer.id)
                .map_or(0, |quantized| quantized.scheme.num_codebooks);
            let order = codebook_order(key, step, books);
            order.into_iter().map(|book| book as u32).collect()
        };
        self.layers.iter().map(of_layer).collect()
    }

    /// The groups of every matrix that may change, of one budget for the model.
    fn of_model(&self, blocks: &[Block]) -> Result<Vec<(Differences, Chosen)>> {
        let mut all = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            all.push(layer.codes.differences(quantized(blocks, layer)?)?);
        }
        let norms: Vec<&Buffer<f64>> = all.iter().map(|differences| &differences.norms).collect();
        let total: usize = norms.iter().map(|norms| norms.len()).sum();
        let count = ((self.settings.max_change * total as f64).ceil() as usize).min(total);
        let ordered = self.settings.trust_ratio.is_some();
        let chosen = self.machine.largest_of_all(&norms, count, ordered)?;
        Ok(all.into_iter().zip(chosen).collect())
    }

    /// What [`TrainedCodes::part`] gives, without numbers.
    pub(super) fn outline(&self, arch: &ArchSpec, blocks: &[Block]) -> Vec<PartOutline> {
        let of_layer = |layer: &TrainedLayer| {
            let quantized = blocks[layer.block].quantized(layer.id)?;
            let (out_groups, in_groups) = quantized.groups;
            Some(PartOutline::Codes {
                block: layer.block,
                layer: layer.id,
                name: arch.layer_name(layer.block, layer.id),
                shape: [out_groups, in_groups, quantized.scheme.num_codebooks],
                len: layer.codes.len(),
                first: layer.codes.firsts(),
                metric: 0,
            })
        };
        self.layers.iter().filter_map(of_layer).collect()
    }

    /// The state of one matrix, on the host; `None` beyond the last.
    pub(super) fn part(&self, arch: &ArchSpec, blocks: &[Block], number: usize) -> Result<Option<CodeState>> {
        let Some(layer) = self.layers.get(number) else {
            return Ok(None);
        };
        let [first, second] = layer.codes.moments()?;
        Ok(Some(CodeState {
            block: layer.block,
            layer: layer.id,
            name: arch.layer_name(layer.block, layer.id),
            codes: quantized(blocks, layer)?.codes_on_host(&self.machine)?,
            buffer: layer.codes.on_host()?.into_iter().map(f64::from).collect(),
            first,
            second,
            metric: Vec::new(),
        }))
    }

    /// Checks the codes of one matrix for [`TrainedCodes::restore`].
    ///
    /// # Errors
    /// `Aqlm` with `CodeOutOfRange` for a code that does not exist; `Driver`.
    pub(super) fn check(&self, number: usize, part: &CodeState, blocks: &[Block]) -> Result<()> {
        if let Some(layer) = self.layers.get(number) {
            let matrix = quantized(blocks, layer)?.matrix(&self.machine)?;
            matrix.with_codes(part.codes.clone())?;
        }
        Ok(())
    }

    /// Takes over the state of one matrix; whether there is such a matrix.
    pub(super) fn restore(&mut self, number: usize, part: &CodeState, blocks: &mut [Block]) -> Result<bool> {
        let Some(layer) = self.layers.get_mut(number) else {
            return Ok(false);
        };
        let codes: Vec<u16> = part.codes.iter().copied().collect();
        quantized_mut(blocks, layer)?.set_codes(&self.machine, &codes)?;
        layer.codes.restore([&part.buffer, &part.first, &part.second])?;
        Ok(true)
    }

    /// The first matrix whose buffer is not finite, by its name in the checkpoint.
    pub(super) fn first_not_finite(&self, arch: &ArchSpec) -> Result<Option<String>> {
        for layer in &self.layers {
            if !layer.codes.is_finite()? {
                return Ok(Some(arch.layer_name(layer.block, layer.id)));
            }
        }
        Ok(None)
    }
}

fn quantized<'a>(blocks: &'a [Block], layer: &TrainedLayer) -> Result<&'a Quantized> {
    let found = blocks[layer.block].quantized(layer.id);
    Ok(found.ok_or_else(|| AqlmError::Device("a quantized layer has become dense".into()))?)
}

fn quantized_mut<'a>(blocks: &'a mut [Block], layer: &TrainedLayer) -> Result<&'a mut Quantized> {
    let found = blocks[layer.block].quantized_mut(layer.id);
    Ok(found.ok_or_else(|| AqlmError::Device("a quantized layer has become dense".into()))?)
}
