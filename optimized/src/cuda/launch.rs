//! Launches a kernel: pointers first, then integers, with the launch attributes of recent architectures.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaStream, sys};

use super::device::cluster_attribute;
use super::error::During;
use super::{Device, Result};

/// The blocks of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// blocks
    pub(super) grid: [u32; 2],
    /// threads of a block
    pub(super) block: u32,
    /// blocks of a cluster, along the grid's first axis
    pub(super) cluster: u32,
    /// dynamic shared memory of a block
    pub(super) shared_bytes: usize,
}

/// Launches `function`, the compiled `kernel`. `overlap` lets it run its set-up while the stream's previous
/// kernel still runs (programmatic dependent launch, from compute capability 9.0).
///
/// # Errors
/// `Driver`.
///
/// # Safety
/// The kernel must take exactly these pointers and integers. Every pointer must point to as much memory as
/// the kernel touches in this shape. That memory may be freed only in stream order.
pub(super) unsafe fn start(
    device: &Device,
    stream: &Arc<CudaStream>,
    (kernel, function): (&str, &CudaFunction),
    shape: Shape,
    pointers: &mut [sys::CUdeviceptr],
    integers: &mut [i32],
    overlap: bool,
) -> Result<()> {
    device.note_start(kernel);
    let mut arguments: Vec<*mut c_void> = Vec::with_capacity(pointers.len() + integers.len());
    arguments.extend(
        pointers
            .iter_mut()
            .map(|p| std::ptr::from_mut(p).cast::<c_void>()),
    );
    arguments.extend(
        integers
            .iter_mut()
            .map(|i| std::ptr::from_mut(i).cast::<c_void>()),
    );
    let mut attributes = Vec::with_capacity(2);
    if shape.cluster > 1 {
        attributes.push(cluster_attribute(shape.cluster));
    }
    if overlap && device.compute().0 >= 9 {
        attributes.push(sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        });
    }
    let config = sys::CUlaunchConfig {
        gridDimX: shape.grid[0],
        gridDimY: shape.grid[1],
        gridDimZ: 1,
        blockDimX: shape.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shape.shared_bytes as u32,
        hStream: stream.cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    };
    // SAFETY: `config` and `arguments` point to values that outlive the call; the caller guarantees the rest.
    unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            function.cu_function(),
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result()
    .during("launching a kernel")
}
