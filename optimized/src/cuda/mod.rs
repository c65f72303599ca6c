//! The operations on an NVIDIA GPU, through cudarc. Libraries are loaded when a device is opened, so the same program runs without one.

mod device;
mod error;
mod matrix;
pub mod pack;
pub mod timing;

pub use device::Device;
pub use error::{CudaError, Result};
pub use matrix::DeviceMatrix;
