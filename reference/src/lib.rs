//! AQLM, slow and readable: every idea of the paper in f64 on ndarray, one file an idea.
//!
//! Read it in this order: [`vocabulary`] (scheme, codes, codebooks, scales), [`decode()`], [`Hessian`],
//! [`layer_error()`], [`kmeans()`], [`residual_init()`], [`Mrf`], [`beam_search()`]; then the model
//! that the layers belong to, [`llama`].

#![allow(
    clippy::needless_pass_by_value,
    reason = "an ndarray view is a reference, and passing it by value is ndarray's own custom"
)]

mod beam_search;
mod decode;
mod hessian;
mod kmeans;
mod layer_error;
pub mod linalg;
pub mod llama;
mod mrf;
#[cfg(test)]
mod problem;
mod residual_init;
pub mod vocabulary;

pub use beam_search::beam_search;
pub use decode::decode;
pub use hessian::{Hessian, damped, dead_inputs};
pub use kmeans::{KMeans, KMeansSettings, kmeans, starting_points};
pub use layer_error::{layer_error, relative_layer_error, row_errors};
pub use mrf::{MAX_COMBINATIONS, Mrf, exhaustive_search};
pub use residual_init::residual_init;
