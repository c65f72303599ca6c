//! Device memory that every token and every chunk of a prompt reuses.

use aqlm_vocabulary::{ArchSpec, BlockSpec, RoutedMlp};
use half::f16;

use super::super::{Buffer, CudaError, Device, Result};
use super::block::Block;

/// Buffers of one token.
pub(super) struct Buffers {
    pub(super) hidden: Buffer<f32>,
    pub(super) normed: Buffer<f16>,
    pub(super) qkv: Buffer<f16>,
    pub(super) attended: Buffer<f16>,
    /// output of the output layer, then of down, or of the downs of all experts of a token
    pub(super) delta: Buffer<f16>,
    pub(super) gate_up: Buffer<f16>,
    pub(super) activated: Buffer<f16>,
    /// of the router, and of the gate of the shared expert
    pub(super) scores: Buffer<f32>,
    /// the experts of the token
    pub(super) experts: Buffer<u32>,
    /// the factors of their outputs, and of the shared expert's
    pub(super) shares: Buffer<f32>,
    pub(super) logits: Buffer<f32>,
    /// position, token, increment of the position, and padding
    pub(super) state: Buffer<u32>,
    /// the token chosen at each position
    pub(super) chosen: Buffer<u32>,
}

impl Buffers {
    pub(super) fn new(device: &Device, arch: &ArchSpec, blocks: &[Block], positions: usize) -> Result<Self> {
        let widest = |width: fn(&Block) -> usize| blocks.iter().map(width).fold(1, usize::max);
        let slots = widest(|block| slots(&block.spec));
        let experts = widest(|block| block.spec.mlp.routed().map_or(0, |mlp| mlp.experts.len()));
        Ok(Self {
            hidden: device.zeros(arch.hidden_size)?.named("hidden"),
            normed: device.zeros(arch.hidden_size)?.named("normed"),
            qkv: device.zeros(widest(|block| block.qkv.width()))?.named("qkv"),
            attended: device
                .zeros(widest(|block| block.spec.attention.query_width()))?
                .named("attended"),
            delta: device.zeros(slots * arch.hidden_size)?.named("delta"),
            gate_up: device
                .zeros(widest(|block| block.mlp.gate_up_width()))?
                .named("gate_up"),
            activated: device
                .zeros(widest(|block| {
                    slots_of_experts(&block.spec) * block.spec.intermediate_size()
                }))?
                .named("activated"),
            scores: device.zeros(experts + 1)?.named("scores"),
            experts: device.zeros(slots)?.named("experts"),
            shares: device.zeros(slots)?.named("shares"),
            logits: device.zeros(arch.vocab_size)?.named("logits"),
            state: device.zeros(4)?.named("state"),
            chosen: device.zeros(positions + 1)?.named("chosen"),
        })
    }
}

/// Outputs that a block adds to the residual stream at once: one, or those of a token's experts and of the
/// shared one.
pub(super) fn slots(spec: &BlockSpec) -> usize {
    let of_experts = |mlp: &RoutedMlp| mlp.used + usize::from(mlp.shared.is_some());
    spec.mlp.routed().map_or(1, of_experts)
}

/// Experts of a token; 1 for a dense MLP.
fn slots_of_experts(spec: &BlockSpec) -> usize {
    spec.mlp.routed().map_or(1, |mlp| mlp.used)
}

/// Buffers of a chunk of a prompt; each [rows, ...]. Rows past the prompt's end are computed but not used.
pub(super) struct Prompt {
    pub(super) rows: usize,
    pub(super) tokens: Buffer<u32>,
    pub(super) hidden: Buffer<f32>,
    pub(super) normed: Buffer<f16>,
    pub(super) q: Buffer<f16>,
    pub(super) k: Buffer<f16>,
    pub(super) v: Buffer<f16>,
    pub(super) attended: Buffer<f16>,
    pub(super) delta: Buffer<f16>,
    pub(super) gate: Buffer<f16>,
    pub(super) up: Buffer<f16>,
    pub(super) activated: Buffer<f16>,
    pub(super) logits: Buffer<f32>,
}

impl Prompt {
    pub(super) fn new(device: &Device, arch: &ArchSpec, rows: usize) -> Result<Self> {
        let f16s = |width: usize, name| Ok::<_, CudaError>(device.zeros(rows * width)?.named(name));
        let widest = |width: fn(&BlockSpec) -> usize| arch.blocks.iter().map(width).max().unwrap_or(0);
        let queries = widest(|block| block.attention.query_width());
        let keys = widest(|block| block.attention.key_width());
        let inner = widest(BlockSpec::intermediate_size);
        Ok(Self {
            rows,
            tokens: device.zeros(rows)?.named("tokens"),
            hidden: device.zeros(rows * arch.hidden_size)?.named("hidden"),
            normed: f16s(arch.hidden_size, "normed")?,
            q: f16s(queries, "q")?,
            k: f16s(keys, "k")?,
            v: f16s(keys, "v")?,
            attended: f16s(queries, "attended")?,
            delta: f16s(arch.hidden_size, "delta")?,
            gate: f16s(inner, "gate")?,
            up: f16s(inner, "up")?,
            activated: f16s(inner, "activated")?,
            logits: device.zeros(rows * arch.vocab_size)?.named("logits"),
        })
    }
}
