use std::sync::Arc;

use cudarc::cublas::{CudaBlas, result, sys};
use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use half::f16;

use super::error::check_lengths;
use super::{Activation, Activations, Buffer, CudaError, Device, Result};

/// Dense products in f16 or bf16 with f32 sums through cuBLAS: the baseline for quantized kernels, and the
/// second half of a matmul that decodes.
pub struct Blas {
    handle: Arc<CudaBlas>,
    stream: Arc<CudaStream>,
}

impl Blas {
    /// Loads the library for the device's stream.
    ///
    /// # Errors
    /// `Absent` when cuBLAS is missing or cannot start.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            handle: device.blas()?,
            stream: Arc::clone(device.stream()),
        })
    }

    /// The library's handle, bound to the device's stream.
    pub(super) fn handle(&self) -> sys::cublasHandle_t {
        *self.handle.handle()
    }

    /// Starts Y = X W^T: weight `[out_features, in_features]`, x `[batch, in_features]`, y `[batch,
    /// out_features]`, all row-major.
    ///
    /// # Errors
    /// `Length` when a buffer does not fit the shape, `Library`.
    pub fn start<T: Activation>(
        &self,
        weight: &Buffer<T>,
        x: &Buffer<T>,
        y: &mut Buffer<T>,
        [out_features, in_features, batch]: [usize; 3],
    ) -> Result<()> {
        check_shape(
            [weight.len(), x.len(), y.len()],
            [out_features, in_features, batch],
        )?;
        // SAFETY: the lengths have just been checked.
        unsafe { self.start_unchecked(weight, x, y, [out_features, in_features, batch], out_features) }
    }

    /// [`Blas::start`] with f32 results, for logits, whose differences determine the probabilities of a text.
    ///
    /// # Errors
    /// `Length` when a buffer does not fit the shape, `Library`.
    pub(crate) fn start_wide(
        &self,
        weight: &Buffer<f16>,
        x: &CudaView<'_, f16>,
        y: &mut CudaViewMut<'_, f32>,
        [out_features, in_features, batch]: [usize; 3],
    ) -> Result<()> {
        check_shape(
            [weight.len(), x.len(), y.len()],
            [out_features, in_features, batch],
        )?;
        let stream = &self.stream;
        let formats = [sys::cudaDataType_t::CUDA_R_16F, sys::cudaDataType_t::CUDA_R_32F];
        // SAFETY: the lengths have just been checked.
        unsafe {
            self.product(
                [
                    weight.device_ptr(stream).0,
                    x.device_ptr(stream).0,
                    y.device_ptr_mut(stream).0,
                ],
                formats,
                [out_features, in_features, batch],
                out_features,
            )
        }
    }

    /// [`Blas::start`] for buffers whose lengths the caller has checked; `y_stride` is the stride of rows of
    /// y.
    ///
    /// # Safety
    /// Every element that the shape implies must lie within its buffer.
    pub(crate) unsafe fn start_unchecked<T: Activation>(
        &self,
        weight: &impl DevicePtr<T>,
        x: &impl DevicePtr<T>,
        y: &mut impl DevicePtrMut<T>,
        [out_features, in_features, batch]: [usize; 3],
        y_stride: usize,
    ) -> Result<()> {
        let format = match T::FORMAT {
            Activations::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Activations::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let stream = &self.stream;
        // SAFETY: the caller guarantees the lengths.
        unsafe {
            self.product(
                [
                    weight.device_ptr(stream).0,
                    x.device_ptr(stream).0,
                    y.device_ptr_mut(stream).0,
                ],
                [format, format],
                [out_features, in_features, batch],
                y_stride,
            )
        }
    }

    /// Y = X W^T on device addresses of W, x and y; `formats` are those of W and x, and of y.
    ///
    /// # Safety
    /// Every element that the shape implies must lie within its buffer.
    unsafe fn product(
        &self,
        [weight, x, y]: [cudarc::driver::sys::CUdeviceptr; 3],
        [format, y_format]: [sys::cudaDataType_t; 2],
        [out_features, in_features, batch]: [usize; 3],
        y_stride: usize,
    ) -> Result<()> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        // cuBLAS is column-major: its Y^T [out, batch] = W [out, in] X^T. SAFETY: the caller guarantees the
        // lengths. Handle and factors (f32, as the compute type requires) outlive the call, and the buffers'
        // memory is freed in stream order.
        unsafe {
            result::gemm_ex(
                *self.handle.handle(),
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                out_features as i32,
                batch as i32,
                in_features as i32,
                (&raw const one).cast(),
                weight as *const _,
                format,
                in_features as i32,
                x as *const _,
                format,
                in_features as i32,
                (&raw const zero).cast(),
                y as *mut _,
                y_format,
                y_stride as i32,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| CudaError::Library {
            library: "cuBLAS",
            error: format!("{error:?}"),
        })
    }
}

/// Whether buffers have the lengths of a product of this shape.
fn check_shape([weight, x, y]: [usize; 3], [out_features, in_features, batch]: [usize; 3]) -> Result<()> {
    check_lengths(&[
        ("weight", out_features * in_features, weight),
        ("x", batch * in_features, x),
        ("y", batch * out_features, y),
    ])
}
