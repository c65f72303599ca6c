use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaStream, DevicePtr, DevicePtrMut, sys};

use aqlm_vocabulary::AqlmError;

use super::device::allow_large_clusters;
use super::error::{During, check_lengths};
use super::launch::{self, Shape};
use super::pack::{Operand, Packed};
use super::{Activation, Buffer, CudaError, Device, Result};

/// A quantized matrix on the device, laid out for one kernel.
pub struct DeviceMatrix {
    packed: Packed,
    function: CudaFunction,
    buffers: Arc<Vec<Buffer<u8>>>,
    /// the operand shared with other matrices, and its position among the operands
    scratch: Option<(usize, Arc<Buffer<u8>>)>,
}

impl DeviceMatrix {
    /// Uploads `packed` and compiles its kernel.
    ///
    /// # Errors
    /// As [`Device::function`], and `Driver` when memory runs out.
    pub fn new(device: &Device, packed: &Packed) -> Result<Self> {
        let function = device.function(packed.kernel, &packed.defines, packed.shared_bytes)?;
        Self::with_function(device, packed, function)
    }

    /// [`DeviceMatrix::new`] with a user's own kernel in place of the one that `packed` names. `source` is
    /// compiled with `packed`'s constants. It must define an entry with the operation's name that takes the
    /// same arguments. Compiler messages refer to it as `name`.
    ///
    /// # Errors
    /// As [`DeviceMatrix::new`].
    pub fn with_source(device: &Device, packed: &Packed, name: &str, source: &str) -> Result<Self> {
        let function = device.function_of_source(
            name,
            source,
            packed.op().name(),
            &packed.defines,
            packed.shared_bytes,
        )?;
        Self::with_function(device, packed, function)
    }

    fn with_function(device: &Device, packed: &Packed, function: CudaFunction) -> Result<Self> {
        if packed.cluster > 8 {
            allow_large_clusters(&function)?;
        }
        let kernel = aqlm_kernels::kernel(packed.kernel)?;
        let blocks = packed.grid[0] * packed.grid[1];
        let room = device.target().multiprocessors;
        if kernel.meets && blocks > room {
            return Err(AqlmError::Unsupported(format!(
                "{blocks} blocks of {} wait for each other, and {room} run at once",
                packed.kernel
            ))
            .into());
        }
        let shared = |operand: &Operand| kernel.scratch.as_deref() == Some(operand.name);
        let scratch = match packed.operands.iter().position(shared) {
            Some(at) => Some((at, device.scratch(packed.operands[at].bytes.len())?)),
            None => None,
        };
        let upload = |operand: &Operand| {
            let name = format!("{} of {}", operand.name, packed.kernel);
            Ok(device.upload(&operand.bytes)?.named(&name))
        };
        let own = packed.operands.iter().filter(|operand| !shared(operand));
        let buffers = own.map(upload).collect::<Result<Vec<_>>>()?;
        // Keep the sizes, drop the host's copy of the contents.
        let packed = packed.without_operands();
        Ok(Self {
            packed,
            function,
            buffers: Arc::new(buffers),
            scratch,
        })
    }

    /// (out_features, in_features).
    pub fn shape(&self) -> (usize, usize) {
        (self.packed.out_features, self.packed.in_features)
    }

    /// Bytes on the device, without memory shared with other matrices.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::len).sum()
    }

    /// Registers and bytes of local memory (spills) a thread.
    ///
    /// # Errors
    /// `Driver`.
    pub fn resources(&self) -> Result<(i32, i32)> {
        let registers = self.function.num_regs().during("reading registers")?;
        Ok((
            registers,
            self.function.local_size_bytes().during("reading local memory")?,
        ))
    }

    /// The same matrix for another launch of the same layout, without a second upload.
    ///
    /// # Errors
    /// As [`Device::function`].
    pub fn relaunched(&self, device: &Device, packed: &Packed) -> Result<Self> {
        let function = device.function(packed.kernel, &packed.defines, packed.shared_bytes)?;
        if packed.cluster > 8 {
            allow_large_clusters(&function)?;
        }
        Ok(Self {
            packed: packed.without_operands(),
            function,
            buffers: Arc::clone(&self.buffers),
            scratch: self.scratch.clone(),
        })
    }

    /// Starts the operation on the device's stream: y = W x or, for several rows, Y = X W^T, or y = W if the
    /// kernel decodes. x `[batch, in_features]` (`None` to decode) and y `[batch, out_features]`
    /// (`[out_features, in_features]` to decode) are in the format that the matrix was packed for. Returns
    /// before the operation has ended.
    ///
    /// `overlap` lets the kernel run its set-up while the stream's previous kernel still runs (programmatic
    /// dependent launch, from compute capability 9.0). The kernel waits for the previous one before it reads
    /// x or writes y, but not before it reads the matrix.
    ///
    /// # Errors
    /// `Format`, `Length` when x or y does not fit the matrix, `Driver`.
    pub fn start<T: Activation>(
        &self,
        device: &Device,
        x: Option<&Buffer<T>>,
        y: &mut Buffer<T>,
        overlap: bool,
    ) -> Result<()> {
        self.start_on(device, device.stream(), x, y, overlap)
    }

    /// The same on another stream of the device. The caller must order it with other uses of the buffers.
    pub(crate) fn start_on<T: Activation, Y: DevicePtrMut<T>>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        x: Option<&Buffer<T>>,
        y: &mut Y,
        overlap: bool,
    ) -> Result<()> {
        if T::FORMAT != self.packed.activations {
            return Err(CudaError::Format {
                expected: self.packed.activations,
                found: T::FORMAT,
            });
        }
        check_lengths(&[
            ("x", self.packed.x_len(), x.map_or(0, Buffer::len)),
            ("y", self.packed.y_len(), y.len()),
        ])?;
        // The guards record uses for cudarc's own ordering of streams, which is disabled.
        let mut pointers: Vec<sys::CUdeviceptr> = self
            .buffers
            .iter()
            .map(|buffer| buffer.device_ptr(stream).0)
            .collect();
        if let Some((at, scratch)) = &self.scratch {
            pointers.insert(*at, scratch.device_ptr(stream).0);
        }
        pointers.extend(x.map(|x| x.device_ptr(stream).0));
        pointers.push(y.device_ptr_mut(stream).0);
        let shape = Shape {
            grid: self.packed.grid,
            block: self.packed.block,
            cluster: self.packed.cluster,
            shared_bytes: self.packed.shared_bytes,
        };
        // SAFETY: the packer made buffers, sizes and launch shape for this kernel's signature, and x and y
        // have the lengths that the matrix implies. All of them outlive the launch because their memory is
        // freed in stream order.
        unsafe {
            launch::start(
                device,
                stream,
                (self.packed.kernel, &self.function),
                shape,
                &mut pointers,
                &mut self.packed.integers(),
                overlap,
            )
        }
    }

    /// A copy of the matrix in memory of its own.
    ///
    /// # Errors
    /// `Driver`, for example when memory runs out.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self {
            packed: self.packed.without_operands(),
            function: self.function.clone(),
            buffers: Arc::new(
                self.buffers
                    .iter()
                    .map(Buffer::try_clone)
                    .collect::<Result<_>>()?,
            ),
            scratch: self.scratch.clone(),
        })
    }
}
