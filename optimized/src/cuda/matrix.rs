use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, sys};

use aqlm_vocabulary::AqlmError;
use half::f16;

use super::device::allow_large_clusters;
use super::error::{During, check_lengths};
use super::launch::{self, Shape};
use super::pack::{Operand, Packed, PackedExperts};
use super::{Activation, Activations, Buffer, CudaError, Device, Result};

/// A quantized matrix on the device, laid out for one kernel.
pub struct DeviceMatrix {
    packed: Packed,
    function: CudaFunction,
    buffers: Arc<Vec<Buffer<u8>>>,
    /// the operand shared with other matrices, and its position among the operands
    scratch: Option<(usize, Arc<Buffer<u8>>)>,
    /// `None` for a single matrix
    experts: Option<Lengths>,
}

/// What a launch of experts touches.
#[derive(Debug, Clone, Copy)]
struct Lengths {
    /// experts on the device
    count: usize,
    /// experts that a launch computes
    slots: usize,
    x: usize,
    y: usize,
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
            experts: None,
        })
    }

    /// The matrices of experts, of which a launch computes with those that the device has chosen.
    ///
    /// # Errors
    /// As [`DeviceMatrix::new`].
    pub fn of_experts(device: &Device, experts: &PackedExperts) -> Result<Self> {
        let last = experts.slots - 1;
        Ok(Self {
            experts: Some(Lengths {
                count: experts.count,
                slots: experts.slots,
                x: last * experts.x_stride + experts.packed.in_features,
                y: last * experts.y_stride + experts.packed.out_features,
            }),
            ..Self::new(device, &experts.packed)?
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

    /// Bytes that a launch reads of the matrix, or of the chosen experts.
    pub fn launch_bytes(&self) -> usize {
        self.experts.map_or_else(
            || self.bytes(),
            |experts| self.bytes() / experts.count * experts.slots,
        )
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
            experts: self.experts,
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
    pub(crate) fn start_on<T: Activation, X: DevicePtr<T>, Y: DevicePtrMut<T>>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        x: Option<&X>,
        y: &mut Y,
        overlap: bool,
    ) -> Result<()> {
        if T::FORMAT != self.packed.activations {
            return Err(CudaError::Format {
                expected: self.packed.activations,
                found: T::FORMAT,
            });
        }
        if self.experts.is_some() {
            return Err(AqlmError::Internal("experts were started without a choice".into()).into());
        }
        check_lengths(&[
            ("x", self.packed.x_len(), x.map_or(0, DeviceSlice::len)),
            ("y", self.packed.y_len(), y.len()),
        ])?;
        let mut after: Vec<sys::CUdeviceptr> = x.map(|x| x.device_ptr(stream).0).into_iter().collect();
        after.push(y.device_ptr_mut(stream).0);
        // SAFETY: x and y have the lengths that the matrix implies.
        unsafe { self.launch(device, stream, &after, overlap) }
    }

    /// Starts the products of the experts whose numbers are in `chosen`, which an earlier launch of the
    /// stream may write; each must be below the number of experts. x and y begin with the first slot's.
    ///
    /// # Errors
    /// `Format`, `Length` when x, y or the choice is too short, `Driver`.
    pub(crate) fn start_chosen<Y: DevicePtrMut<f16>>(
        &self,
        device: &Device,
        x: &Buffer<f16>,
        y: &mut Y,
        chosen: &Buffer<u32>,
        overlap: bool,
    ) -> Result<()> {
        let Some(experts) = self.experts else {
            return Err(AqlmError::Internal("a choice of experts for a single matrix".into()).into());
        };
        if self.packed.activations != Activations::F16 {
            return Err(CudaError::Format {
                expected: self.packed.activations,
                found: Activations::F16,
            });
        }
        check_lengths(&[
            ("x", experts.x, x.len().min(experts.x)),
            ("y", experts.y, y.len().min(experts.y)),
            ("chosen", experts.slots, chosen.len().min(experts.slots)),
        ])?;
        let stream = device.stream();
        let after = [
            x.device_ptr(stream).0,
            y.device_ptr_mut(stream).0,
            chosen.device_ptr(stream).0,
        ];
        // SAFETY: x, y and the choice are at least as long as the slots reach.
        unsafe { self.launch(device, stream, &after, overlap) }
    }

    /// Starts the kernel on the operands, then these pointers.
    ///
    /// # Safety
    /// The pointers must be those that the kernel takes after its operands, to as much memory as it touches.
    unsafe fn launch(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        after: &[sys::CUdeviceptr],
        overlap: bool,
    ) -> Result<()> {
        // The guards record uses for cudarc's own ordering of streams, which is disabled.
        let mut pointers: Vec<sys::CUdeviceptr> = self
            .buffers
            .iter()
            .map(|buffer| buffer.device_ptr(stream).0)
            .collect();
        if let Some((at, scratch)) = &self.scratch {
            pointers.insert(*at, scratch.device_ptr(stream).0);
        }
        pointers.extend(after);
        let shape = Shape {
            grid: self.packed.grid,
            block: self.packed.block,
            cluster: self.packed.cluster,
            shared_bytes: self.packed.shared_bytes,
        };
        // SAFETY: the packer made buffers, sizes and launch shape for this kernel's signature, and the caller
        // guarantees the other pointers. All of them outlive the launch because their memory is freed in
        // stream order.
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
            experts: self.experts,
        })
    }
}
