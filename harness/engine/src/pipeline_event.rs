use aqlm_vocabulary::{FinetuneEvent, LayerEvent};

use crate::runs::records::{BlockReport, LayerSummary};

/// Progress of the pipeline, for an observer.
#[derive(Debug)]
pub enum PipelineEvent<'a> {
    /// a block of an earlier attempt was reused from the run folder
    BlockResumed(&'a BlockReport),
    /// a block in the run folder does not match the journal's checksum; that block and all later ones are
    /// quantized again
    BlockDamaged {
        /// index of the block
        block: usize,
        /// file and what is wrong with it
        reason: String,
    },
    /// a block begins
    BlockStarted {
        /// index of the block
        block: usize,
    },
    /// something happened inside a layer
    Layer {
        /// index of the block
        block: usize,
        /// which layer, `q_proj` for example
        layer: &'a str,
        /// the event
        event: LayerEvent,
    },
    /// a layer is done
    LayerDone(&'a LayerSummary),
    /// something happened in fine-tuning
    Finetune {
        /// index of the block
        block: usize,
        /// the event
        event: FinetuneEvent,
    },
    /// a block is done, stored and in the journal
    BlockDone(&'a BlockReport),
}
