use std::sync::Arc;

use cudarc::cublas::{result, sys};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use half::bf16;

use super::super::error::check_lengths;
use super::super::llama::{address, run};
use super::super::{Blas, Buffer, CudaError, Device, Result};
use super::plan;

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
    /// to 7 bits after the point (bf16), for tensor cores at twice the speed; inside attention as `Tf32`
    Bf16,
}

impl Precision {
    /// Whether products on the way to a loss round their factors.
    pub(super) fn rounds_values(self) -> bool {
        matches!(self, Self::Tf32 | Self::Bf16)
    }

    /// Whether products on the way back do.
    pub(super) fn rounds_gradients(self) -> bool {
        self != Self::Single
    }
}

/// Rows of H that one product computes, with all columns up to the last of them. A GPU is full with a product
/// of this side, and a wide H computes little above its diagonal.
const PANEL: usize = 2048;

/// Dense products of row-major f32 matrices through cuBLAS.
pub(super) struct Products {
    blas: Blas,
    device: Arc<Device>,
    stream: Arc<CudaStream>,
}

/// A matrix as cuBLAS sees it: transposed, because cuBLAS is column-major.
struct Factor {
    address: u64,
    /// whether it is transposed once more
    turned: bool,
    /// length of a row
    stride: usize,
    /// its numbers, if they were rounded to bf16
    rounded: Option<Buffer<bf16>>,
}

impl Factor {
    fn number(&self) -> sys::cudaDataType_t {
        if self.rounded.is_some() { HALF } else { SINGLE }
    }
}

impl Products {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self> {
        Ok(Self {
            blas: Blas::new(device)?,
            device: Arc::clone(device),
            stream: Arc::clone(device.stream()),
        })
    }

    /// f32 numbers rounded to bf16.
    pub(super) fn rounded(&self, matrix: &impl DevicePtr<f32>) -> Result<Buffer<bf16>> {
        // SAFETY: the kernel writes all of it.
        let rounded = unsafe { self.device.uninitialized(matrix.len()) }?.named("rounded factors");
        let from = matrix.device_ptr(&self.stream).0;
        self.round_into(from, address(&self.device, &rounded), matrix.len())?;
        Ok(rounded)
    }

    /// Rounds `count` f32 numbers to bf16, from one address to another.
    pub(super) fn round_into(&self, from: u64, to: u64, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        run(&self.device, &plan::bf16(count, false), &[from, to], false)
    }

    /// Takes `count` bf16 numbers back to f32, from one address to another.
    pub(super) fn widen_into(&self, from: u64, to: u64, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        run(&self.device, &plan::bf16(count, true), &[from, to], false)
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
        let left = self.factor(precision, weight, true, inputs)?;
        let right = self.factor(precision, x, false, inputs)?;
        let to = y.device_ptr_mut(&self.stream).0;
        // SAFETY: the lengths have just been checked.
        unsafe {
            self.multiply(
                precision.rounds_values(),
                &left,
                &right,
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
        let left = self.factor(precision, weight, false, inputs)?;
        let right = self.factor(precision, y, false, out)?;
        let to = x.device_ptr_mut(&self.stream).0;
        // SAFETY: the lengths have just been checked.
        unsafe {
            self.multiply(
                precision.rounds_gradients(),
                &left,
                &right,
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
        let left = self.factor(precision, x, false, inputs)?;
        let right = self.factor(precision, y, true, out)?;
        let to = weight.device_ptr_mut(&self.stream).0;
        // SAFETY: the lengths have just been checked.
        unsafe {
            self.multiply(
                precision.rounds_gradients(),
                &left,
                &right,
                to,
                [inputs, out, rows],
                add,
            )
        }
    }

    fn factor(
        &self,
        precision: Precision,
        matrix: &impl DevicePtr<f32>,
        turned: bool,
        stride: usize,
    ) -> Result<Factor> {
        let rounded = match precision {
            Precision::Bf16 => Some(self.rounded(matrix)?),
            _ => None,
        };
        Ok(Factor {
            address: match &rounded {
                Some(rounded) => address(&self.device, rounded),
                None => matrix.device_ptr(&self.stream).0,
            },
            turned,
            stride,
            rounded,
        })
    }

    /// The product of two column-major matrices, [m, k] and [k, n], into one of [m, n].
    ///
    /// # Safety
    /// Every element that the shape implies must lie within its buffer.
    unsafe fn multiply(
        &self,
        rounds: bool,
        left: &Factor,
        right: &Factor,
        to: u64,
        [m, n, k]: [usize; 3],
        add: bool,
    ) -> Result<()> {
        // Rounded factors are multiplied as they are.
        let rounds = rounds && left.rounded.is_none();
        let factors = [(left, left.number()), (right, right.number())];
        // SAFETY: the caller's promise.
        unsafe { self.start(factors, (to, m), [m, n, k], (rounds, add)) }
    }

    /// [`Products::multiply`] of factors with their types, into columns that are `stride` apart.
    ///
    /// # Safety
    /// Every element that the shape implies must lie within its buffer.
    unsafe fn start(
        &self,
        [(left, left_number), (right, right_number)]: [(&Factor, sys::cudaDataType_t); 2],
        (to, stride): (u64, usize),
        [m, n, k]: [usize; 3],
        (rounds, add): (bool, bool),
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
                left_number,
                left.stride as i32,
                right.address as *const _,
                right_number,
                right.stride as i32,
                (&raw const beta).cast(),
                to as *mut _,
                SINGLE,
                stride as i32,
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

    /// The lower triangle of X^T X, into a matrix [width, width] whose other numbers mean nothing. x [rows,
    /// width] in bf16: products are exact and sums are f32.
    pub(super) fn gram(
        &self,
        x: &impl DevicePtr<bf16>,
        part: &mut impl DevicePtrMut<f32>,
        [rows, width]: [usize; 2],
    ) -> Result<()> {
        check_lengths(&[("x", rows * width, x.len()), ("part", width * width, part.len())])?;
        let from = x.device_ptr(&self.stream).0;
        let to = part.device_ptr_mut(&self.stream).0;
        for first in (0..width).step_by(PANEL) {
            let end = (first + PANEL).min(width);
            let factor = |skipped: usize, turned| Factor {
                address: from + (skipped * size_of::<bf16>()) as u64,
                turned,
                stride: width,
                rounded: None,
            };
            let panel = to + (first * width * size_of::<f32>()) as u64;
            let sizes = [end, end - first, rows];
            // SAFETY: rows `first` to `end` of the result and columns up to `end` of x lie within their
            // buffers, whose lengths have just been checked.
            unsafe {
                self.start(
                    [(&factor(0, false), HALF), (&factor(first, true), HALF)],
                    (panel, width),
                    sizes,
                    (false, false),
                )
            }?;
        }
        Ok(())
    }
}

const SINGLE: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_32F;
const HALF: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_16BF;

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
