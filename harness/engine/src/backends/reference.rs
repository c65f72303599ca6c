use std::ops::Range;
use std::path::Path;

use aqlm_reference::llama::{
    self, Block, KvCacheLayer, Rotary, block_decode_step, block_finetune, block_forward, block_forward_traced,
};
use aqlm_reference::{Hessian, layer_quantize};
use aqlm_vocabulary::{
    ArchSpec, BlockWeights, FinetuneEvent, FinetuneReport, FinetuneSettings, LayerEvent, LayerId,
    LayerReport, LayerSettings, QuantizedMatrix, StreamKey,
};
use ndarray::{Array1, Array2};
use rayon::prelude::*;

use super::{Backend, BackendKind, Memory};
use aqlm_formats::{Error, Result};

/// The reference crate behind the trait: everything on the host in f64, sequences in parallel.
#[derive(Debug)]
pub struct ReferenceBackend {
    config: ArchSpec,
    rotary: Rotary,
}

impl ReferenceBackend {
    /// For sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// `Unsupported` when the model is no plain Llama.
    pub fn new(config: &ArchSpec, positions: usize) -> Result<Self> {
        config.require_plain()?;
        Ok(Self {
            config: config.clone(),
            rotary: Rotary::new(config.attention(), positions),
        })
    }
}

/// Final norm `[hidden]` and lm_head [vocab, hidden].
#[derive(Debug)]
pub struct ReferenceHead {
    pub(super) norm: Array1<f64>,
    lm_head: Array2<f64>,
}

impl Backend for ReferenceBackend {
    type Hidden = Vec<Array2<f64>>;
    type Block = Block;
    type Hessian = Array2<f64>;
    type Head = ReferenceHead;
    type Cache = KvCacheLayer;

    fn kind(&self) -> BackendKind {
        BackendKind::Reference
    }

    fn device(&self) -> String {
        format!("host, {} threads, f64", rayon::current_num_threads())
    }

    fn config(&self) -> &ArchSpec {
        &self.config
    }

    fn bound_memory(&mut self, memory: Memory, _spill: &Path, _sequences: usize) -> Result<()> {
        Err(Error::argument(
            "memory",
            "no bound with the reference backend, which keeps everything in memory as the cpu backend need not",
            memory.bytes().to_string(),
        ))
    }

    fn embed(&self, embedding: &Array2<f32>, sequences: &[&[u32]]) -> Result<Self::Hidden> {
        sequences
            .iter()
            .map(|tokens| Ok(llama::embed(embedding.view(), tokens)?))
            .collect()
    }

    fn load_block(&self, index: usize, weights: &BlockWeights) -> Result<Block> {
        Ok(Block::from_weights(&self.config.blocks[index], weights)?)
    }

    fn store_block(&self, block: &Block) -> Result<BlockWeights> {
        Ok(block.to_weights())
    }

    fn block_forward(&self, block: &Block, hidden: &Self::Hidden) -> Result<Self::Hidden> {
        Ok(hidden
            .par_iter()
            .map(|x| block_forward(block, &self.rotary, x.view()))
            .collect())
    }

    fn hessians(
        &self,
        block: &Block,
        hidden: &Self::Hidden,
        sequences: Range<usize>,
        layers: &[LayerId],
    ) -> Result<Vec<Array2<f64>>> {
        let mut hessians: Vec<Hessian> = layers
            .iter()
            .map(|&layer| Hessian::new(block.spec().shape(layer).1))
            .collect();
        // One wave of sequences at a time: their traces are what takes memory, and adding them up in order
        // keeps the sums independent of the number of threads.
        for wave in hidden[sequences].chunks(rayon::current_num_threads().max(1)) {
            let traces: Vec<_> = wave
                .par_iter()
                .map(|x| block_forward_traced(block, &self.rotary, x.view()).1)
                .collect();
            hessians
                .par_iter_mut()
                .zip(layers)
                .try_for_each(|(hessian, &layer)| {
                    let read = block.spec().linear(layer).reads;
                    traces.iter().try_for_each(|trace| hessian.add(trace.input(read)))
                })?;
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
        inputs: &Self::Hidden,
        targets: &Self::Hidden,
        validation: usize,
        settings: &FinetuneSettings,
        key: StreamKey,
        observe: &mut dyn FnMut(FinetuneEvent),
    ) -> Result<FinetuneReport> {
        Ok(block_finetune(
            block,
            &self.rotary,
            inputs,
            targets,
            validation,
            settings,
            key,
            observe,
        )?)
    }

    fn mean_squares(&self, a: &Self::Hidden, b: &Self::Hidden) -> Result<(f64, f64)> {
        let (mut difference, mut norm, mut count) = (0.0, 0.0, 0);
        for (a, b) in a.iter().zip(b) {
            for (a, b) in a.iter().zip(b) {
                difference += (a - b) * (a - b);
                norm += b * b;
            }
            count += b.len();
        }
        Ok((difference / count as f64, norm / count as f64))
    }

    fn load_head(&self, norm: &Array1<f32>, lm_head: &Array2<f32>) -> Result<ReferenceHead> {
        Ok(ReferenceHead {
            norm: norm.mapv(f64::from),
            lm_head: lm_head.mapv(f64::from),
        })
    }

    fn logits(&self, head: &ReferenceHead, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f64>> {
        Ok(llama::logits(
            self.config.final_norm,
            &head.norm,
            head.lm_head.view(),
            hidden[sequence].view(),
        ))
    }

    fn token_losses(
        &self,
        head: &ReferenceHead,
        hidden: &Self::Hidden,
        sequences: &[&[u32]],
    ) -> Result<Vec<Array1<f64>>> {
        let losses = hidden.par_iter().zip(sequences).map(|(x, tokens)| {
            let predicting = x.slice(ndarray::s![..tokens.len() - 1, ..]);
            let logits = llama::logits(
                self.config.final_norm,
                &head.norm,
                head.lm_head.view(),
                predicting,
            );
            Ok(llama::token_losses(logits.view(), &tokens[1..])?)
        });
        losses.collect()
    }

    fn new_cache(&self, block: &Block) -> KvCacheLayer {
        KvCacheLayer::new(&block.spec().attention, self.rotary.positions())
    }

    fn decode_step(
        &self,
        blocks: &[Block],
        head: &ReferenceHead,
        caches: &mut [KvCacheLayer],
        embedding_row: &Array1<f32>,
        position: usize,
    ) -> Result<Array1<f64>> {
        let mut row = embedding_row.mapv(f64::from);
        for (block, cache) in blocks.iter().zip(caches) {
            row = block_decode_step(block, &self.rotary, cache, row.view(), position);
        }
        let row = row.insert_axis(ndarray::Axis(0));
        Ok(llama::logits(
            self.config.final_norm,
            &head.norm,
            head.lm_head.view(),
            row.view(),
        )
        .row(0)
        .to_owned())
    }
}
