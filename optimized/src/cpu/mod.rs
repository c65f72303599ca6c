//! The CPU backend: f32 arithmetic on f16 or f32 storage, rayon over rows, SIMD chosen at run time.
//!
//! A [`PackedMatrix`] is a quantized matrix laid out for one [`Plan`]; it decodes and multiplies. The order
//! of sums depends only on shape and plan, not on threads or machine.

#![allow(
    clippy::inline_always,
    reason = "a kernel's body gets the instructions of the function that it is inlined into, and no others"
)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "an ndarray view is a reference, and passing it by value is ndarray's own custom"
)]

pub(crate) mod adam;
mod aligned;
mod decode;
mod layout;
pub mod llama;
mod matmul;
mod matvec;
mod plan;
pub mod product;
pub mod quantizer;
mod row_major;
mod simd;
mod stepper;
mod vectorize;
mod words;
mod zeroed;

pub use layout::PackedMatrix;
pub use plan::{CodebookPrecision, Form, Plan, TablePrecision};
pub use simd::SimdLevel;
