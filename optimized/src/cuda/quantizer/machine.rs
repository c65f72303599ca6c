use std::sync::Arc;

use cudarc::cublas::{CudaBlas, result as blas, sys as blas_sys};
use cudarc::driver::result::memcpy_dtod_async;
use cudarc::driver::{DevicePtr, DeviceRepr, ValidAsZeroBits, sys};

use aqlm_vocabulary::AqlmError;
use ndarray::Array2;

use crate::cuda::error::During;
use crate::cuda::launch::{self, Shape};
use crate::cuda::{Buffer, CudaError, Device, Result};

/// A type of real numbers in which kernels and products exist.
pub(super) trait Real: DeviceRepr + ValidAsZeroBits + Copy + Default {
    /// the kernels' `AQLM_WIDE`
    const WIDE: usize;
    const TYPE: blas_sys::cudaDataType_t;
    const COMPUTE: blas_sys::cublasComputeType_t;
    /// Arithmetic of products whose errors later steps make good.
    const FAST: blas_sys::cublasComputeType_t;

    /// The number as a factor of a product.
    fn factor(value: f64) -> Self;
}

impl Real for f32 {
    const WIDE: usize = 0;
    const TYPE: blas_sys::cudaDataType_t = blas_sys::cudaDataType_t::CUDA_R_32F;
    const COMPUTE: blas_sys::cublasComputeType_t = blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    const FAST: blas_sys::cublasComputeType_t = blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32;

    fn factor(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    const WIDE: usize = 1;
    const TYPE: blas_sys::cudaDataType_t = blas_sys::cudaDataType_t::CUDA_R_64F;
    const COMPUTE: blas_sys::cublasComputeType_t = blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_64F;
    const FAST: blas_sys::cublasComputeType_t = Self::COMPUTE;

    fn factor(value: f64) -> Self {
        value
    }
}

/// A matrix in device memory, row-major: the address of its first element, and how far its rows are apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) at: sys::CUdeviceptr,
    pub(super) stride: usize,
}

/// The arithmetic of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// that of the type
    Full,
    /// f32 with factors rounded to TF32, where the device has tensor cores
    Fast,
}

/// C = `alpha` A B + `beta` C.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    /// rows of A and C, columns of B and C, columns of A
    pub(super) sizes: [usize; 3],
    pub(super) alpha: f64,
    pub(super) beta: f64,
    /// whether B is given as its transpose
    pub(super) transposed: bool,
    pub(super) precision: Precision,
}

impl Product {
    pub(super) fn new(rows: usize, columns: usize, terms: usize) -> Self {
        Self {
            sizes: [rows, columns, terms],
            alpha: 1.0,
            beta: 0.0,
            transposed: false,
            precision: Precision::Full,
        }
    }
}

/// The device, its products, and launches of kernels on its stream.
pub(crate) struct Machine {
    device: Arc<Device>,
    blas: Arc<CudaBlas>,
}

/// Threads of blocks whose number does not matter.
pub(super) const THREADS: usize = 256;

/// Blocks along a grid's second axis, at most.
const MOST_ROWS: usize = 65_535;

impl Machine {
    pub(super) fn new(device: Arc<Device>) -> Result<Self> {
        let blas = device.blas()?;
        device.keep_freed_memory()?;
        Ok(Self { device, blas })
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn address<T>(&self, buffer: &Buffer<T>) -> sys::CUdeviceptr {
        // The guard records a use for cudarc's own ordering of streams, which is disabled.
        buffer.device_ptr(self.device.stream()).0
    }

    pub(super) fn upload<T: DeviceRepr>(&self, values: &[T], name: &str) -> Result<Buffer<T>> {
        Ok(self.device.upload(values)?.named(name))
    }

    /// A matrix of the host, row after row.
    pub(super) fn upload_rows<T: DeviceRepr + Copy>(
        &self,
        matrix: &Array2<T>,
        name: &str,
    ) -> Result<Buffer<T>> {
        match matrix.as_slice() {
            Some(rows) => self.upload(rows, name),
            None => self.upload(&matrix.iter().copied().collect::<Vec<T>>(), name),
        }
    }

    pub(super) fn zeros<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        count: usize,
        name: &str,
    ) -> Result<Buffer<T>> {
        Ok(self.device.zeros(count)?.named(name))
    }

    /// Memory that the next kernel writes.
    pub(super) fn fresh<T: DeviceRepr>(&self, count: usize, name: &str) -> Result<Buffer<T>> {
        // SAFETY: every caller passes it to a kernel or a product that writes all of it, before it is read.
        Ok(unsafe { self.device.uninitialized(count) }?.named(name))
    }

    pub(super) fn download<T: DeviceRepr>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        self.device.download(buffer)
    }

    /// A matrix that is stored row after row.
    pub(super) fn download_rows(
        &self,
        buffer: &Buffer<f32>,
        rows: usize,
        columns: usize,
    ) -> Result<Array2<f32>> {
        let numbers = self.download(buffer)?;
        let found = vec![numbers.len()];
        Array2::from_shape_vec((rows, columns), numbers).map_err(|_| {
            AqlmError::Shape {
                what: "rows on the device".into(),
                expected: vec![rows, columns],
                found,
            }
            .into()
        })
    }

    /// Starts a kernel. Pointers and integers must be those of its source.
    pub(super) fn run(
        &self,
        kernel: &'static str,
        defines: &[(&str, usize)],
        [blocks, rows, threads, shared_bytes]: [usize; 4],
        pointers: &[sys::CUdeviceptr],
        integers: &[usize],
    ) -> Result<()> {
        if blocks == 0 || rows == 0 {
            return Ok(());
        }
        let function = self.device.function(kernel, defines, shared_bytes)?;
        let shape = Shape {
            grid: [blocks as u32, rows.min(MOST_ROWS) as u32],
            block: threads as u32,
            cluster: 1,
            shared_bytes,
        };
        let mut integers: Vec<i32> = integers.iter().map(|&integer| integer as u32 as i32).collect();
        // SAFETY: the callers, all in this folder, pass what each kernel's head documents, and buffers that
        // they sized from the same numbers. Buffers are freed in stream order.
        unsafe {
            launch::start(
                &self.device,
                self.device.stream(),
                (kernel, &function),
                shape,
                &mut pointers.to_vec(),
                &mut integers,
                false,
            )
        }
    }

    /// Starts a product of row-major blocks, all within their buffers.
    pub(super) fn product<T: Real>(&self, product: &Product, [a, b, c]: [Block; 3]) -> Result<()> {
        let [rows, columns, terms] = product.sizes;
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let (alpha, beta) = (T::factor(product.alpha), T::factor(product.beta));
        let compute = match product.precision {
            Precision::Full => T::COMPUTE,
            Precision::Fast => T::FAST,
        };
        let operation = if product.transposed {
            blas_sys::cublasOperation_t::CUBLAS_OP_T
        } else {
            blas_sys::cublasOperation_t::CUBLAS_OP_N
        };
        // cuBLAS is column-major: it computes C^T = B^T A^T. SAFETY: the callers' blocks lie within buffers
        // sized from the same numbers; handle and factors outlive the call.
        unsafe {
            blas::gemm_ex(
                *self.blas.handle(),
                operation,
                blas_sys::cublasOperation_t::CUBLAS_OP_N,
                columns as i32,
                rows as i32,
                terms as i32,
                (&raw const alpha).cast(),
                b.at as *const _,
                T::TYPE,
                b.stride as i32,
                a.at as *const _,
                T::TYPE,
                a.stride as i32,
                (&raw const beta).cast(),
                c.at as *mut _,
                T::TYPE,
                c.stride as i32,
                compute,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| CudaError::Library {
            library: "cuBLAS",
            error: format!("{error:?}"),
        })
    }

    /// Copies numbers from one address to another.
    pub(super) fn copy<T>(&self, from: sys::CUdeviceptr, to: sys::CUdeviceptr, count: usize) -> Result<()> {
        // SAFETY: the callers pass addresses inside buffers with room for so many numbers.
        unsafe { memcpy_dtod_async(to, from, count * size_of::<T>(), self.device.stream().cu_stream()) }
            .during("copying on the device")
    }

    /// Waits for all work.
    pub(super) fn wait(&self) -> Result<()> {
        self.device
            .stream()
            .synchronize()
            .during("waiting for the device")
    }
}

/// The address `count` elements of type T further on.
pub(super) fn further<T>(from: sys::CUdeviceptr, count: usize) -> sys::CUdeviceptr {
    from + (count * size_of::<T>()) as sys::CUdeviceptr
}

/// The halves of a double as kernels take them.
pub(super) fn halves(value: f64) -> [usize; 2] {
    let bits = value.to_bits();
    [(bits & 0xffff_ffff) as usize, (bits >> 32) as usize]
}
