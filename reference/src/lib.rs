//! AQLM, slow and readable: every idea of the paper in f64 on ndarray, one file per idea.
//!
//! Reading order: `aqlm_vocabulary` (scheme, codes, codebooks, scales), [`decode()`], [`Hessian`],
//! [`layer_error()`], [`rate_distortion_limit()`], [`kmeans()`], [`residual_init()`], [`em_init()`], [`Mrf`],
//! [`beam_search()`], [`update()`], [`feedback_init()`], [`layer_quantize()`], [`two_sided_loss()`]; then
//! [`llama`], the model that contains the layers, and [`pv`], which changes the codes while the model is
//! tuned.

#![allow(
    clippy::needless_pass_by_value,
    reason = "an ndarray view is a reference, and passing it by value is ndarray's own custom"
)]

mod adam;
mod beam_search;
mod codebook_update;
mod decode;
mod em_init;
mod feedback_init;
mod hessian;
mod kmeans;
mod layer_error;
mod layer_quantize;
mod least;
mod limit;
pub mod linalg;
pub mod llama;
mod mrf;
mod occurrences;
mod official_adam;
mod optimizer;
#[cfg(test)]
mod problem;
pub mod pv;
mod residual_init;
mod sums;
mod two_sided;

pub use beam_search::beam_search;
pub use codebook_update::{Descent, adam, closed_form, conjugate_gradients, optimal_scales, update};
pub use decode::decode;
pub use em_init::em_init;
pub use feedback_init::{feedback_init, feedback_search};
pub use hessian::{Hessian, damped, dead_inputs};
pub use kmeans::{KMeans, KMeansSettings, kmeans, starting_points};
pub use layer_error::{layer_error, relative_layer_error, row_errors};
pub use layer_quantize::{check_layer, layer_quantize};
pub use limit::{limit_db, rate_distortion_limit};
pub use mrf::{MAX_COMBINATIONS, Mrf, exhaustive_search};
pub use optimizer::Stepper;
pub use residual_init::residual_init;
pub use two_sided::{
    damped_outer, require_single_rows, two_sided_codebooks, two_sided_loss, two_sided_scales,
    two_sided_search, two_sided_update,
};
