use std::ops::Range;

use aqlm_optimized::cpu::SimdLevel;
use aqlm_optimized::cpu::llama::{
    self, Block, Head, KvCacheLayer, Rotary, block_decode_step, block_finetune, block_forward,
    block_forward_traced, for_each_part,
};
use aqlm_optimized::cpu::quantizer::{Hessian, layer_quantize};
use aqlm_reference::vocabulary::{
    AqlmError, BlockWeights, FinetuneEvent, FinetuneReport, FinetuneSettings, LayerEvent, LayerKind,
    LayerReport, LayerSettings, LlamaConfig, QuantizedMatrix, StreamKey,
};
use ndarray::{Array1, Array2, Array3, Axis, s};

use super::{Backend, BackendKind};
use crate::error::Result;

/// The optimized CPU code behind the trait: f32 with rayon and SIMD.
#[derive(Debug)]
pub struct CpuBackend {
    config: LlamaConfig,
    rotary: Rotary,
}

impl CpuBackend {
    /// For sequences of at most `positions` tokens.
    pub fn new(config: &LlamaConfig, positions: usize) -> Self {
        Self {
            config: config.clone(),
            rotary: Rotary::new(config, positions),
        }
    }

    /// Tokens of the longest sequence.
    pub(super) fn positions(&self) -> usize {
        self.rotary.positions()
    }

    /// # Errors
    /// `Shape` when hidden states are of another model, or longer than the rotary tables.
    fn check(&self, hidden: &Array3<f32>) -> Result<()> {
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

impl Backend for CpuBackend {
    type Hidden = Array3<f32>;
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

    fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn embed(&self, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<Array3<f32>> {
        Ok(llama::embed(embedding.view(), sequences)?)
    }

    fn load_block(&self, weights: &BlockWeights) -> Result<Block> {
        Ok(Block::from_weights(weights))
    }

    fn store_block(&self, block: &Block) -> Result<BlockWeights> {
        Ok(block.to_weights())
    }

    fn block_forward(&self, block: &Block, hidden: &Array3<f32>) -> Result<Array3<f32>> {
        self.check(hidden)?;
        Ok(block_forward(&self.config, block, &self.rotary, hidden.view()))
    }

    fn hessians(
        &self,
        block: &Block,
        hidden: &Array3<f32>,
        sequences: Range<usize>,
        layers: &[LayerKind],
    ) -> Result<Vec<Array2<f64>>> {
        self.check(hidden)?;
        let mut hessians: Vec<Hessian> = layers
            .iter()
            .map(|&layer| Hessian::new(self.config.layer_shape(layer).1))
            .collect();
        let mut outcome = Ok(());
        for_each_part(hidden.slice(s![sequences, .., ..]), |_, x| {
            let (_, trace) = block_forward_traced(&self.config, block, &self.rotary, x);
            for (hessian, &layer) in hessians.iter_mut().zip(layers) {
                if outcome.is_ok() {
                    outcome = hessian.add(trace.layer_input(layer));
                }
            }
        });
        outcome?;
        Ok(hessians.iter().map(Hessian::mean).collect())
    }

    fn layer_quantize(
        &self,
        block: &Block,
        layer: LayerKind,
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

    fn set_layer(&self, block: &mut Block, layer: LayerKind, matrix: QuantizedMatrix) -> Result<()> {
        Ok(block.set_layer(layer, matrix)?)
    }

    fn block_finetune(
        &self,
        block: &mut Block,
        inputs: &Array3<f32>,
        targets: &Array3<f32>,
        validation: usize,
        settings: &FinetuneSettings,
        key: StreamKey,
        observe: &mut dyn FnMut(FinetuneEvent),
    ) -> Result<FinetuneReport> {
        Ok(block_finetune(
            &self.config,
            block,
            &self.rotary,
            inputs.view(),
            targets.view(),
            validation,
            settings,
            key,
            observe,
        )?)
    }

    fn mean_squares(&self, a: &Array3<f32>, b: &Array3<f32>) -> Result<(f64, f64)> {
        Ok(llama::mean_squares(a.view(), b.view())?)
    }

    fn load_head(&self, norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Head> {
        Ok(Head::new(norm, lm_head)?)
    }

    fn logits(&self, head: &Head, hidden: &Array3<f32>, sequence: usize) -> Result<Array2<f64>> {
        self.check(hidden)?;
        let x = hidden.index_axis(Axis(0), sequence);
        Ok(head.logits(&self.config, x).mapv(f64::from))
    }

    fn token_losses(
        &self,
        head: &Head,
        hidden: &Array3<f32>,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>> {
        self.check(hidden)?;
        Ok(head.token_losses(&self.config, hidden.view(), sequences)?)
    }

    fn new_cache(&self) -> KvCacheLayer {
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
            row = block_decode_step(&self.config, block, &self.rotary, cache, row.view(), position)?;
        }
        Ok(head.logits_of_row(&self.config, row.view()).mapv(f64::from))
    }
}
