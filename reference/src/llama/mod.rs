//! The block of Llama and its relatives with hand-written forward and backward passes, the whole model around
//! the blocks, and the fine-tuning of both.
//!
//! Arrays have one row per token and hold one sequence. Sequences are independent; callers with several
//! distribute them over threads. No result depends on the number of threads.

mod attention;
mod backward;
mod block;
mod cache;
mod cross_entropy;
mod experts;
mod finetune;
mod forward;
mod fused;
mod gated;
mod gated_mlp;
mod geglu;
mod kl_divergence;
mod linear;
mod mlp;
mod model;
mod model_backward;
mod model_tuner;
mod norm;
mod pv_matrix;
mod quantized_gradients;
mod rms_norm;
mod rotary;
mod routing;
mod sketch;
mod soft_cap;
mod softmax;
mod swiglu;

#[cfg(test)]
mod finite_difference;
#[cfg(test)]
mod test_data;

pub use attention::{attention, attention_backward};
pub use backward::{BlockGradients, block_backward};
pub use block::{Block, ResidentLinear, ResidentWeight};
pub use cache::{KvCache, KvCacheLayer, block_decode_step, decode_step};
pub use cross_entropy::cross_entropy;
pub use finetune::{BlockTuner, block_finetune};
pub use forward::{BlockTrace, block_forward, block_forward_traced};
pub use geglu::{geglu, geglu_backward};
pub use kl_divergence::{kl_divergence, top_kl_divergence};
pub use linear::{LinearGradients, linear, linear_backward};
pub use model::{Model, embed, logits, model_forward, token_losses};
pub use model_backward::{ModelGradients, model_backward, model_loss};
pub use model_tuner::ModelTuner;
pub use norm::{norm, norm_backward};
pub use pv_matrix::PvMatrix;
pub use quantized_gradients::quantized_gradients;
pub use rms_norm::{rms_norm, rms_norm_backward};
pub use rotary::Rotary;
pub use routing::{Routing, route};
pub use sketch::{label_gradient, sketch};
pub use soft_cap::{soft_cap, soft_cap_slope};
pub use swiglu::{swiglu, swiglu_backward};
