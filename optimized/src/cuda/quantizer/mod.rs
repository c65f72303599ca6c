//! Quantizes a layer on the device: the CPU's algorithms (`cpu::quantizer`) over kernels and products.
//!
//! The host decides, the device computes: a step's scalars (slopes, losses) come back to the host, arrays
//! stay. Sums that decide something are added in f64 in an order that depends on the shapes alone, without
//! atomics, so the same input gives the same bytes.

#![allow(
    clippy::needless_pass_by_ref_mut,
    reason = "kernels write through addresses, which the compiler cannot see"
)]

mod beam_search;
mod codebook_update;
mod codes;
mod em_init;
mod factor;
mod feedback_init;
mod kmeans;
mod layer;
mod machine;
mod outer;
mod problem;
mod residual_init;
mod row_search;
mod two_sided;
mod vectors;

pub use beam_search::beam_search;
pub use codebook_update::update;
pub use em_init::em_init;
pub use feedback_init::{feedback_init, feedback_search};
pub use kmeans::kmeans;
pub use layer::{BYTES_A_WEIGHT, LayerProblem, Layers};
pub use outer::Outer;
pub use problem::Trial;
pub use residual_init::residual_init;
pub use row_search::{Errors, Found};
