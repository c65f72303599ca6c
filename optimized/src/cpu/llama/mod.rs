//! The block of Llama and its relatives forward and backward in f32, the whole model around the blocks, the
//! fine-tuning of both, and decoding with a cache.
//!
//! Activations of several sequences of equal length are [sequences, tokens, features]. Internally they are
//! matrices with one row a token, so that products have many rows. Work is split by rows, heads and sequences
//! into pieces that depend only on the shapes, so no result depends on the number of threads.

mod attention;
mod backward;
mod block;
mod block_tuner;
mod cache;
mod continued;
mod cross_entropy;
mod experts;
mod forward;
mod fused;
mod gated;
mod gated_mlp;
mod geglu;
mod head;
mod kl_divergence;
mod label_gradient;
mod linear_backward;
mod mlp;
mod model;
mod model_backward;
mod model_tuner;
mod norm;
mod pv_matrix;
mod residual;
mod rms_norm;
mod rotary;
mod routing;
mod row_store;
mod sequences;
mod soft_cap;
mod softmax;
mod swiglu;
mod trained;
mod trained_codes;

pub use backward::{BlockGradients, Wanted, block_backward};
pub use block::{Block, Layer, QuantizedLayer, Weight};
pub use block_tuner::BlockTuner;
pub use cache::{KvCacheLayer, block_decode_step};
pub use continued::{Piece, block_forward_continued};
pub use cross_entropy::cross_entropy;
pub use forward::{BlockTrace, block_forward, block_forward_traced, working_bytes};
pub(crate) use head::check_tokens;
pub use head::{Head, embed, squares_of_sequences, token_losses};
pub use kl_divergence::{kl_divergence, top_kl_divergence};
pub use model::Model;
pub use model_backward::{Activations, Gradient, model_backward, model_losses};
pub use model_tuner::ModelTuner;
pub use pv_matrix::{PlainParameter, PvMatrix};
pub use rotary::Rotary;
pub(crate) use sequences::parts_of_rows;
pub use sequences::{Sequences, parts, selected};
