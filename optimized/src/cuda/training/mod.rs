//! Blocks and models forward and back on the device, for Hessians and for training.
//!
//! Activations are f32, [rows, features], with a row for each token of each sequence. Products go through
//! cuBLAS; everything between them is a kernel of this project. Attention never holds a matrix of tokens x
//! tokens: its backward pass computes the probabilities anew. Parameters, the sums of their gradients and
//! moments are f64, buffers of codes f32, as on the CPU. No sum of floats uses atomics, so the same input
//! gives the same bytes.

mod backward;
mod block;
mod block_tuner;
mod broken;
mod code_buffer;
mod experts;
mod forward;
mod gated;
mod gradients;
mod head;
mod hessian;
mod machine;
mod memory;
mod mlp;
mod model;
mod model_losses;
mod model_tuner;
mod norms;
mod pass;
pub mod plan;
mod products;
mod pv_matrix;
mod quantized;
mod rows;
mod selection;
mod stepper;
mod trained;
mod trained_codes;

pub use block::{Block, Decoded};
pub use block_tuner::BlockTuner;
pub use forward::Trace;
pub use gradients::BlockGradient;
pub use head::Head;
pub use hessian::Hessian;
pub use machine::Machine;
pub use memory::{TeacherMemory, TuningMemory};
pub use model_tuner::ModelTuner;
pub use norms::Chunks;
pub use products::Precision;
pub use pv_matrix::{PlainParameter, PvMatrix};

use std::ops::Range;

use aqlm_vocabulary::ArchSpec;

use self::forward::trace_width;
use self::machine::ROWS;
use self::mlp::passing_width;
use crate::cpu::llama::parts_of_rows;

/// Divides sequences of these lengths into parts that go through a block together: consecutive sequences of
/// equal length, up to some 16,384 tokens.
pub fn parts(lengths: &[usize]) -> Vec<Range<usize>> {
    parts_of_rows(lengths, ROWS)
}

/// Bytes that [`working_bytes`] adds for what it does not count: logits, f32 sums of Hessians, factors
/// rounded to bf16, and the driver.
pub const SPARE_BYTES: usize = 3 << 30;

/// Bytes that one part of `sequences` sequences of `tokens` tokens takes at most while it passes through a
/// block and back: its trace, the gradients beside it, decoded weights and the gradient of one, the Hessians
/// of a block and the f32 sums that are added to them, and logits.
pub fn working_bytes(arch: &ArchSpec, sequences: usize, tokens: usize) -> usize {
    let rows = sequences.min((ROWS / tokens.max(1)).max(1)) * tokens;
    let of_block = |spec: &aqlm_vocabulary::BlockSpec| {
        let widths = trace_width(spec) + passing_width(spec);
        let inputs = |layer| spec.shape(layer).1;
        let squares: usize = spec.layers().map(|layer| inputs(layer) * inputs(layer)).sum();
        (rows * widths + 2 * spec.parameters()) * size_of::<f32>() + squares * 2 * size_of::<f64>()
    };
    let widest = arch.blocks.iter().map(of_block).max().unwrap_or(0);
    widest + SPARE_BYTES
}
