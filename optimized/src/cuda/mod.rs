//! The operations on an NVIDIA GPU, through cudarc. CUDA libraries are loaded when a device is opened, so the
//! same program runs without them.

mod activation;
mod blas;
mod buffer;
mod decoded_matmul;
mod device;
pub mod dispatch;
mod error;
mod image;
mod launch;
pub mod llama;
mod matrix;
pub mod memory_rate;
pub mod pack;
pub mod quantizer;
pub mod timing;
pub mod training;

pub use activation::{Activation, Activations};
pub use blas::Blas;
pub use buffer::Buffer;
pub use decoded_matmul::DecodedMatmul;
pub use device::{Device, F16Buffer};
pub use error::{CudaError, Result};
pub use matrix::DeviceMatrix;
