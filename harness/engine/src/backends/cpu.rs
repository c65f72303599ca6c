use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aqlm_optimized::cpu::SimdLevel;
use aqlm_optimized::cpu::llama::{
    self, Activations, Block, Head, KvCacheLayer, Rotary, Sequences, block_decode_step, block_finetune,
    block_forward_traced, parts, working_bytes,
};
use aqlm_optimized::cpu::quantizer::{Hessian, layer_quantize};
use aqlm_vocabulary::{
    AqlmError, ArchSpec, BlockWeights, FinetuneEvent, FinetuneReport, FinetuneSettings, LayerEvent, LayerId,
    LayerReport, LayerSettings, QuantizedMatrix, StreamKey,
};
use ndarray::{Array1, Array2, Axis};

use super::hidden_states::{Bound, HiddenStates};
use super::{Backend, BackendKind, Memory};
use aqlm_formats::{Error, Result};

/// The optimized CPU code behind the trait: f32 with rayon and SIMD.
#[derive(Debug)]
pub struct CpuBackend {
    config: ArchSpec,
    rotary: Rotary,
    /// for the hidden states that it makes
    bound: Option<Arc<Bound>>,
    activations: Activations,
}

impl CpuBackend {
    /// For sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// `Unsupported` when the model is no plain Llama.
    pub fn new(config: &ArchSpec, positions: usize) -> Result<Self> {
        config.require_plain()?;
        Ok(Self {
            config: config.clone(),
            rotary: Rotary::new(config.attention(), positions),
            bound: None,
            activations: Activations::fitting(config, positions),
        })
    }

    /// Tokens of the longest sequence.
    pub(super) fn positions(&self) -> usize {
        self.rotary.positions()
    }

    /// Bounds the memory of training: activations are kept where they fit and computed again where they do
    /// not.
    pub(super) fn bound_training(&mut self, memory: Memory, spill: &Path, batch: usize) -> Result<()> {
        let bytes = |activations: Activations| activations.bytes(&self.config, batch, self.positions());
        let least = left(memory, bytes(Activations::Recompute))?;
        self.activations = if bytes(Activations::Keep) <= memory.bytes() {
            Activations::fitting(&self.config, self.positions())
        } else {
            Activations::Recompute
        };
        // The teacher's hidden states, before training begins: inside a block as much as then.
        self.bound = Some(Bound::new(least, spill.to_path_buf()));
        Ok(())
    }

    /// What training keeps.
    pub(super) fn activations(&self) -> Activations {
        self.activations
    }

    /// # Errors
    /// `Shape` when hidden states are of another model, or longer than the rotary tables.
    fn check(&self, hidden: &HiddenStates) -> Result<()> {
        let (sequences, tokens, width) = hidden.dim();
        let expected = [
            sequences,
            tokens.min(self.rotary.positions()),
            self.config.hidden_size,
        ];
        if [sequences, tokens, width] == expected {
            return Ok(());
        }
        Err(AqlmError::Shape {
            what: "hidden states".into(),
            expected: expected.to_vec(),
            found: vec![sequences, tokens, width],
        }
        .into())
    }
}

/// What is left of a bound behind what is needed in any case.
fn left(memory: Memory, needed: usize) -> Result<usize> {
    memory.bytes().checked_sub(needed).ok_or_else(|| {
        Error::argument(
            "memory",
            &format!("at least {needed} bytes, which the sequences that are computed together take"),
            memory.to_string(),
        )
    })
}

impl Backend for CpuBackend {
    type Hidden = HiddenStates;
    type Block = Block;
    type Hessian = Array2<f64>;
    type Head = Head;
    type Cache = KvCacheLayer;

    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn device(&self) -> String {
        format!(
            "host, {} threads, f32, {}",
            rayon::current_num_threads(),
            SimdLevel::current()
        )
    }

    fn config(&self) -> &ArchSpec {
        &self.config
    }

    fn bound_memory(&mut self, memory: Memory, spill: &Path, sequences: usize) -> Result<()> {
        let working = working_bytes(&self.config, sequences, self.positions());
        self.bound = Some(Bound::new(left(memory, working)?, spill.to_path_buf()));
        Ok(())
    }

    fn embed(&self, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<HiddenStates> {
        let tokens = sequences.first().map_or(0, |sequence| sequence.len());
        let dim = (sequences.len(), tokens, embedding.ncols());
        let mut hidden = HiddenStates::new(dim, self.bound.as_ref())?;
        for part in parts(0..sequences.len(), tokens) {
            let tokens: Vec<&[u32]> = part.iter().map(|&index| sequences[index]).collect();
            hidden.write(part[0], &llama::embed(embedding.view(), &tokens)?.view())?;
        }
        Ok(hidden)
    }

    fn load_block(&self, index: usize, weights: &BlockWeights) -> Result<Block> {
        Ok(Block::from_weights(&self.config.blocks[index], weights)?)
    }

    fn store_block(&self, block: &Block) -> Result<BlockWeights> {
        Ok(block.to_weights())
    }

    fn block_forward(&self, block: &Block, hidden: &HiddenStates) -> Result<HiddenStates> {
        self.check(hidden)?;
        let (sequences, tokens, _) = hidden.dim();
        let mut outputs = HiddenStates::new(hidden.dim(), self.bound.as_ref())?;
        for part in parts(0..sequences, tokens) {
            let x = hidden.read(&part)?;
            let (y, _) = block_forward_traced(block, &self.rotary, x.view());
            outputs.write(part[0], &y.view())?;
        }
        Ok(outputs)
    }

    fn hessians(
        &self,
        block: &Block,
        hidden: &HiddenStates,
        sequences: Range<usize>,
        layers: &[LayerId],
    ) -> Result<Vec<Array2<f64>>> {
        self.check(hidden)?;
        let mut hessians: Vec<Hessian> = layers
            .iter()
            .map(|&layer| Hessian::new(block.spec().shape(layer).1))
            .collect();
        for part in parts(sequences, hidden.dim().1) {
            let x = hidden.read(&part)?;
            let (_, trace) = block_forward_traced(block, &self.rotary, x.view());
            for (hessian, &layer) in hessians.iter_mut().zip(layers) {
                hessian.add(trace.input(block.spec().linear(layer).reads))?;
            }
        }
        Ok(hessians.iter().map(Hessian::mean).collect())
    }

    fn layer_quantize(
        &self,
        block: &Block,
        layer: LayerId,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
        key: StreamKey,
        observe: &mut dyn FnMut(LayerEvent),
    ) -> Result<(QuantizedMatrix, LayerReport)> {
        Ok(layer_quantize(
            block.weight(layer),
            hessian,
            settings,
            key,
            observe,
        )?)
    }

    fn set_layer(&self, block: &mut Block, layer: LayerId, matrix: QuantizedMatrix) -> Result<()> {
        Ok(block.set_layer(layer, matrix)?)
    }

    fn block_finetune(
        &self,
        block: &mut Block,
        inputs: &HiddenStates,
        targets: &HiddenStates,
        validation: usize,
        settings: &FinetuneSettings,
        key: StreamKey,
        observe: &mut dyn FnMut(FinetuneEvent),
    ) -> Result<FinetuneReport> {
        block_finetune(
            block,
            &self.rotary,
            inputs,
            targets,
            validation,
            settings,
            key,
            observe,
        )
    }

    fn mean_squares(&self, a: &HiddenStates, b: &HiddenStates) -> Result<(f64, f64)> {
        llama::mean_squares(a, b)
    }

    fn load_head(&self, norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Head> {
        Ok(Head::new(self.config.final_norm, norm, lm_head)?)
    }

    fn logits(&self, head: &Head, hidden: &HiddenStates, sequence: usize) -> Result<Array2<f64>> {
        self.check(hidden)?;
        let x = hidden.read(&[sequence])?;
        Ok(head.logits(x.index_axis(Axis(0), 0)).mapv(f64::from))
    }

    fn token_losses(
        &self,
        head: &Head,
        hidden: &HiddenStates,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>> {
        self.check(hidden)?;
        let count = hidden.dim().0;
        if sequences.len() != count {
            return Err(AqlmError::Shape {
                what: "targets".into(),
                expected: vec![count],
                found: vec![sequences.len()],
            }
            .into());
        }
        let mut losses = Vec::with_capacity(count);
        for part in parts(0..count, hidden.dim().1) {
            let x = hidden.read(&part)?;
            let tokens: Vec<&[u32]> = part.iter().map(|&index| sequences[index]).collect();
            losses.extend(head.token_losses(x.view(), &tokens)?);
        }
        Ok(losses)
    }

    fn new_cache(&self, _block: &Block) -> KvCacheLayer {
        KvCacheLayer::new()
    }

    fn decode_step(
        &self,
        blocks: &[Block],
        head: &Head,
        caches: &mut [KvCacheLayer],
        embedding_row: &Array1<f32>,
        position: usize,
    ) -> Result<Array1<f64>> {
        let mut row = embedding_row.clone();
        for (block, cache) in blocks.iter().zip(caches) {
            row = block_decode_step(block, &self.rotary, cache, row.view(), position)?;
        }
        Ok(head.logits_of_row(row.view()).mapv(f64::from))
    }
}
