//! A whole Llama-family model on the device: first prompts in chunks, then a token at a time, each token a
//! replay of one CUDA graph.
//!
//! The residual stream is f32. Inputs and outputs of products are f16, and keys and values are cached in f16.
//! Weights are in the layout of the kernel that the table of measurements chooses. Layers that read the same
//! input share a launch if that kernel allows it.

mod block;
mod buffers;
mod experts;
mod group;
mod model;
mod norms;
pub mod plan;
mod prompt;
mod rung;
mod stage;
mod step;
mod stepped_block;

pub use model::{Builder, Model, Options, require_decodable};
pub use rung::Rung;
pub use stage::Stage;

use aqlm_vocabulary::AqlmError;
use cudarc::driver::{DevicePtr, sys};
use half::f16;
use rayon::prelude::*;

use self::plan::Plan;
use super::launch::{self, Shape};
use super::{Buffer, Device, Result};

/// The address of a buffer's first element.
pub(super) fn address<T>(device: &Device, buffer: &Buffer<T>) -> sys::CUdeviceptr {
    // The guard records a use for cudarc's own ordering of streams, which is disabled.
    buffer.device_ptr(device.stream()).0
}

/// The address `count` f16 elements further on.
fn further(from: sys::CUdeviceptr, count: usize) -> sys::CUdeviceptr {
    from + (count * size_of::<f16>()) as sys::CUdeviceptr
}

/// Starts a planned kernel on these addresses.
///
/// # Errors
/// As [`Device::function`].
pub(super) fn run(device: &Device, plan: &Plan, pointers: &[sys::CUdeviceptr], overlap: bool) -> Result<()> {
    let function = device.function(plan.kernel, &plan.defines, plan.shared_bytes)?;
    let shape = Shape {
        grid: plan.grid,
        block: plan.block,
        cluster: plan.cluster,
        shared_bytes: plan.shared_bytes,
    };
    // SAFETY: `plan` has the kernel's integers and shape. Callers pass the pointers in the
    // order that the plan's function documents. The buffers were sized from the same configuration and live
    // as long as the model.
    unsafe {
        launch::start(
            device,
            device.stream(),
            (plan.kernel, &function),
            shape,
            &mut pointers.to_vec(),
            &mut plan.integers.clone(),
            overlap,
        )
    }
}

/// f32 numbers narrowed to f16.
///
/// # Errors
/// `NotFinite` when one is beyond f16's range.
pub fn narrowed(values: &[f32], what: &str) -> Result<Vec<f16>> {
    let narrow: Vec<f16> = values.par_iter().map(|&value| f16::from_f32(value)).collect();
    match narrow.par_iter().position_first(|value| !value.is_finite()) {
        None => Ok(narrow),
        Some(index) => Err(AqlmError::NotFinite {
            what: format!("{what} in f16"),
            index: vec![index],
            value: f64::from(values[index]),
        }
        .into()),
    }
}
