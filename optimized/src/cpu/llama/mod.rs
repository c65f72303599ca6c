//! The Llama block forward and backward in f32, block fine-tuning, the head, and decoding with a cache.
//!
//! Activations of several sequences of equal length are [sequences, tokens, features]; inside they are matrices of one
//! row a token, so that products see many rows. Work is split by rows, heads and sequences into pieces that depend on
//! the shapes alone: no result depends on the number of threads.

mod attention;
mod backward;
mod block;
mod cache;
mod finetune;
mod forward;
mod head;
mod rms_norm;
mod rotary;
mod swiglu;

pub use backward::{BlockGradients, Wanted, block_backward};
pub use block::{Block, Layer, QuantizedLayer, Weight};
pub use cache::{KvCacheLayer, block_decode_step};
pub use finetune::block_finetune;
pub use forward::{BlockTrace, block_forward, block_forward_traced, for_each_part};
pub use head::{Head, embed, mean_squares};
pub use rotary::Rotary;
