//! Quantizes a layer: f32 for the bulk of the work, f64 for decisions.
//!
//! Work is cut into pieces that depend only on the shapes, and their sums are added in order, so no byte of a
//! result depends on the number of threads.

mod beam_search;
mod code_step;
mod codebook_update;
mod codewords;
mod decode;
mod em_init;
mod feedback_init;
mod hessian;
mod kmeans;
mod layer;
mod places;
mod problem;
mod residual_init;
mod small_solve;
mod sums;
mod trial;
pub(crate) mod triangle;

pub use beam_search::beam_search;
pub use code_step::{CodeBuffer, Differences, Recoded, allowances};
pub use codebook_update::{adam, update};
pub use decode::decode;
pub use em_init::em_init;
pub use feedback_init::{feedback_init, feedback_search};
pub use hessian::Hessian;
pub use kmeans::{KMeans, kmeans, starting_points};
pub use layer::LayerProblem;
pub use residual_init::residual_init;
pub use trial::Trial;

pub(crate) use beam_search::{Visit, sweeps};
pub(crate) use codebook_update::{Preconditioner, Stop};
pub(crate) use decode::decode_into;
pub(crate) use em_init::diagonal_blocks;
pub(crate) use feedback_init::groups_in_order;
pub(crate) use layer::validate;
pub(crate) use places::{Places, quantized_gradients};
pub(crate) use problem::{WIDE, check_hessian};
