use std::sync::Arc;

use cudarc::cublas::{result, sys};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use super::super::error::check_lengths;
use super::super::{Blas, CudaError, Device, Result};

/// How products of training round their factors; sums are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// not at all: f32
    #[default]
    Single,
    /// those of gradients to TF32, the others not at all
    Mixed,
    /// to 10 bits after the point (TF32), for the tensor cores
    Tf32,
}

impl Precision {
    /// Whether products on the way to a loss round their factors.
    pub(super) fn rounds_values(self) -> bool {
        self == Self::Tf32
    }

    /// Whether products on the way back do.
    pub(super) fn rounds_gradients(self) -> bool {
        self != Self::Single
    }
}

/// Dense products of row-major f32 matrices through cuBLAS.
pub(super) struct Products {
    blas: Blas,
    stream: Arc<CudaStream>,
}

/// A matrix as cuBLAS sees it: transposed, because cuBLAS is column-major.
#[derive(Clone, Copy)]
struct Factor {
    address: u64,
    /// whether it is transposed once more
    turned: bool,
    /// length of a row
    stride: usize,
}

impl Products {
    pub(super) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            blas: Blas::new(device)?,
            stream: Arc::clone(device.stream()),
        })
    }

    /// Y = X W^T, or Y += X W^T: a linear layer. Weight [out, in], x [rows, in], y [rows, out].
    pub(super) fn forward(
        &self,
        precision: Precision,
        weight: &impl DevicePtr<f32>,
        x: &impl DevicePtr<f32>,
        y: &mut impl DevicePtrMut<f32>,
        [out, inputs, rows]: [usize; 3],
        add: bool,
    ) -> Result<()> {
        check_lengths(&[
            ("weight", out * inputs, weight.len()),
            ("x", rows * inputs, x.len()),
            ("y", rows * out, y.len()),
        ])?;
        let left = self.factor(weight, true, inputs);
        let right = self.factor(x, false, inputs);
        let to = y.device_ptr_mut(&self.stream).0;
        // SAFETY: the lengths have just been checked.
        unsafe {
            self.multiply(
                precision.rounds_values(),
                left,
                right,
                to,
                [out, rows, inputs],
                add,
            )
        }
    }

    /// dX = dY W, or dX += dY W: the gradient of a layer's input. Weight [out, in], y [rows, out], x [rows,
    /// in].
    pub(super) fn back(
        &self,
        precision: Precision,
        weight: &impl DevicePtr<f32>,
        y: &impl DevicePtr<f32>,
        x: &mut impl DevicePtrMut<f32>,
        [out, inputs, rows]: [usize; 3],
        add: bool,
    ) -> Result<()> {
        check_lengths(&[
            ("weight", out * inputs, weight.len()),
            ("y", rows * out, y.len()),
            ("x", rows * inputs, x.len()),
        ])?;
        let left = self.factor(weight, false, inputs);
        let right = self.factor(y, false, out);
        let to = x.device_ptr_mut(&self.stream).0;
        // SAFETY: the lengths have just been checked.
        unsafe {
            self.multiply(
                precision.rounds_gradients(),
                left,
                right,
                to,
                [inputs, rows, out],
                add,
            )
        }
    }

    /// dW = dY^T X, or dW += dY^T X: the gradient of a layer's weight, [out, in]. y [rows, out], x [rows,
    /// in].
    pub(super) fn weight(
        &self,
        precision: Precision,
        y: &impl DevicePtr<f32>,
        x: &impl DevicePtr<f32>,
        weight: &mut impl DevicePtrMut<f32>,
        [out, inputs, rows]: [usize; 3],
        add: bool,
    ) -> Result<()> {
        check_lengths(&[
            ("weight", out * inputs, weight.len()),
            ("y", rows * out, y.len()),
            ("x", rows * inputs, x.len()),
        ])?;
        let left = self.factor(x, false, inputs);
        let right = self.factor(y, true, out);
        let to = weight.device_ptr_mut(&self.stream).0;
        // SAFETY: the lengths have just been checked.
        unsafe {
            self.multiply(
                precision.rounds_gradients(),
                left,
                right,
                to,
                [inputs, out, rows],
                add,
            )
        }
    }

    fn factor(&self, matrix: &impl DevicePtr<f32>, turned: bool, stride: usize) -> Factor {
        Factor {
            address: matrix.device_ptr(&self.stream).0,
            turned,
            stride,
        }
    }

    /// The product of two column-major matrices, [m, k] and [k, n], into one of [m, n].
    ///
    /// # Safety
    /// Every element that the shape implies must lie within its buffer.
    unsafe fn multiply(
        &self,
        rounds: bool,
        left: Factor,
        right: Factor,
        to: u64,
        [m, n, k]: [usize; 3],
        add: bool,
    ) -> Result<()> {
        let (one, beta) = (1.0_f32, if add { 1.0_f32 } else { 0.0 });
        // SAFETY: the caller guarantees the lengths. Handle and factors outlive the call, and the buffers'
        // memory is freed in stream order.
        unsafe {
            result::gemm_ex(
                self.blas.handle(),
                operation(left.turned),
                operation(right.turned),
                m as i32,
                n as i32,
                k as i32,
                (&raw const one).cast(),
                left.address as *const _,
                SINGLE,
                left.stride as i32,
                right.address as *const _,
                SINGLE,
                right.stride as i32,
                (&raw const beta).cast(),
                to as *mut _,
                SINGLE,
                m as i32,
                compute(rounds),
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(refused)
    }

    /// X^T X over consecutive chunks of `rows` rows each, into `parts` matrices of [width, width].
    pub(super) fn grams(
        &self,
        x: &impl DevicePtr<f32>,
        parts: &mut impl DevicePtrMut<f32>,
        [chunks, rows, width]: [usize; 3],
    ) -> Result<()> {
        check_lengths(&[
            ("x", chunks * rows * width, x.len()),
            ("parts", chunks * width * width, parts.len()),
        ])?;
        let from = x.device_ptr(&self.stream).0;
        let to = parts.device_ptr_mut(&self.stream).0;
        let (one, zero) = (1.0_f32, 0.0_f32);
        let n = width as i32;
        // SAFETY: the lengths have just been checked. Handle and factors outlive the call, and the buffers'
        // memory is freed in stream order.
        unsafe {
            result::gemm_strided_batched_ex(
                self.blas.handle(),
                operation(false),
                operation(true),
                n,
                n,
                rows as i32,
                (&raw const one).cast(),
                from as *const _,
                SINGLE,
                n,
                (rows * width) as i64,
                from as *const _,
                SINGLE,
                n,
                (rows * width) as i64,
                (&raw const zero).cast(),
                to as *mut _,
                SINGLE,
                n,
                (width * width) as i64,
                chunks as i32,
                compute(false),
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(refused)
    }
}

const SINGLE: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_32F;

fn operation(turned: bool) -> sys::cublasOperation_t {
    if turned {
        sys::cublasOperation_t::CUBLAS_OP_T
    } else {
        sys::cublasOperation_t::CUBLAS_OP_N
    }
}

fn compute(rounds: bool) -> sys::cublasComputeType_t {
    if rounds {
        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
    } else {
        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F
    }
}

fn refused(error: cudarc::cublas::result::CublasError) -> CudaError {
    CudaError::Library {
        library: "cuBLAS",
        error: format!("{error:?}"),
    }
}
