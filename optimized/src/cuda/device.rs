use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublas::{CudaBlas, sys as blas_sys};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits, sys};
use cudarc::nvrtc::{self, Ptx};

use aqlm_vocabulary::AqlmError;
use half::f16;

use super::buffer::{Buffer, Guards};
use super::error::During;
use super::image::{self, Machine};
use super::pack::Target;
use super::{CudaError, Result};

/// Kernel id and compile-time constants.
type FunctionKey = (String, Vec<(String, usize)>);

/// f16 numbers in device memory.
pub type F16Buffer = Buffer<f16>;

/// One GPU with its stream and the kernels compiled so far.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    compute: (i32, i32),
    target: Target,
    machine: Machine,
    kernel_folder: Option<PathBuf>,
    /// whether NVRTC is available; without it only embedded kernels run
    compiler: bool,
    /// where compiled kernels are kept
    cache: Option<PathBuf>,
    functions: Arc<Mutex<HashMap<FunctionKey, CudaFunction>>>,
    scratch: Mutex<Option<Arc<Buffer<u8>>>>,
    /// cuBLAS on this stream, once it was asked for
    blas: Mutex<Option<Arc<CudaBlas>>>,
    /// of all buffers, on a device opened for checks
    guards: Option<Arc<Guards>>,
}

impl Device {
    /// Number of GPUs that this process sees; 0 without a driver.
    pub fn count() -> usize {
        // SAFETY: this only tries to load the library. Without the check cudarc panics if it is missing.
        if !unsafe { sys::is_culib_present() } {
            return 0;
        }
        CudaContext::device_count().map_or(0, |count| count.max(0) as usize)
    }

    /// Opens GPU number `ordinal`. Kernels come from `kernel_folder` if one is given, else from the program.
    /// Those in the program are compiled at run time. Without NVRTC, only kernels compiled at build time run
    /// (feature `embed-kernels`).
    ///
    /// # Errors
    /// `Absent` when the driver, NVRTC or the device is missing (never a panic), `Driver` when it refuses.
    pub fn open(ordinal: usize, kernel_folder: Option<&Path>) -> Result<Self> {
        // SAFETY: these only try to load the libraries. Without the checks cudarc panics if one is missing.
        let (driver, compiler) = unsafe { (sys::is_culib_present(), nvrtc::sys::is_culib_present()) };
        if !driver {
            return Err(CudaError::Absent(
                "the driver library libcuda.so.1 is not there".into(),
            ));
        }
        if !compiler && (kernel_folder.is_some() || !aqlm_kernels::has_embedded()) {
            let why = if kernel_folder.is_some() {
                "which a folder of kernels needs"
            } else {
                "and this program was built without compiled kernels (feature embed-kernels)"
            };
            return Err(CudaError::Absent(format!(
                "the run-time compiler libnvrtc.so is not there, {why}"
            )));
        }
        let context = CudaContext::new(ordinal)
            .map_err(|error| CudaError::Absent(format!("device {ordinal}: {error}")))?;
        // SAFETY: everything in this module runs on one stream, so uses of a buffer need no events to order
        // them.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().during("creating a stream")?;
        let compute = context
            .compute_capability()
            .during("reading the compute capability")?;
        let attribute = |which| context.attribute(which).during("reading a device attribute");
        let multiprocessors =
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let shared_bytes =
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize;
        let mut device = Self {
            context,
            stream,
            compute,
            target: Target {
                multiprocessors,
                shared_bytes,
                clusters: [multiprocessors, 0, 0, 0, 0],
                embedded_only: !compiler,
            },
            machine: Machine {
                compute,
                driver: driver_version()?,
            },
            kernel_folder: kernel_folder.map(Path::to_owned),
            compiler,
            cache: image::cache_folder(),
            functions: Arc::default(),
            scratch: Mutex::new(None),
            blas: Mutex::new(None),
            guards: None,
        };
        if compute.0 >= 9 {
            device.target.clusters = device.count_clusters()?;
        }
        Ok(device)
    }

    /// [`Device::open`] with guard bytes before and after every buffer. A kernel's write outside its buffers
    /// is then an error of the next [`Device::download`]. For checks: each download then waits for copies of
    /// all guard bytes.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_guarded(ordinal: usize, kernel_folder: Option<&Path>) -> Result<Self> {
        let device = Self::open(ordinal, kernel_folder)?;
        Ok(Self {
            guards: Some(Arc::default()),
            ..device
        })
    }

    /// The same GPU with another stream: work on both may overlap. They share compiled kernels and guards.
    ///
    /// Work on one device must not use the other's buffers before it has been waited for.
    ///
    /// # Errors
    /// `Driver`.
    pub(super) fn beside(&self) -> Result<Self> {
        self.let_streams_allocate_apart()?;
        Ok(Self {
            context: Arc::clone(&self.context),
            stream: self.context.new_stream().during("creating a stream")?,
            compute: self.compute,
            target: self.target.clone(),
            machine: self.machine,
            kernel_folder: self.kernel_folder.clone(),
            compiler: self.compiler,
            cache: self.cache.clone(),
            functions: Arc::clone(&self.functions),
            scratch: Mutex::new(None),
            blas: Mutex::new(None),
            guards: self.guards.clone(),
        })
    }

    /// Makes the calling thread one that may use the device. Most calls do so by themselves; launches do not.
    ///
    /// # Errors
    /// `Driver`.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().during("choosing the device")
    }

    /// How many clusters of each size run at once. The driver is asked, because graphics processing clusters
    /// differ in their number of working multiprocessors.
    fn count_clusters(&self) -> Result<[u32; 5]> {
        let probe = "extern \"C\" __global__ void probe(float* p) { extern __shared__ float s[]; p[0] = s[threadIdx.x]; }";
        let function = if self.compiler {
            self.compile_text("cluster probe", probe, "probe", &[])?
        } else {
            // Any kernel whose registers fit 512 threads will do.
            self.function("matvec/k3_lookup_table", &[("AQLM_M", 2), ("AQLM_G", 8)], 0)?
        };
        let bytes = self.target.shared_bytes as u32;
        allow_shared(&function, self.target.shared_bytes)?;
        allow_large_clusters(&function)?;
        let mut counts = [self.target.multiprocessors, 0, 0, 0, 0];
        for (exponent, count) in counts.iter_mut().enumerate().skip(1) {
            let size = 1_u32 << exponent;
            let mut attribute = cluster_attribute(size);
            let config = sys::CUlaunchConfig {
                gridDimX: size,
                gridDimY: self.target.multiprocessors,
                gridDimZ: 1,
                blockDimX: 512,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: bytes,
                hStream: self.stream.cu_stream(),
                attrs: &raw mut attribute,
                numAttrs: 1,
            };
            let mut clusters = 0;
            // SAFETY: function and stream are alive, config points to one valid attribute.
            unsafe {
                sys::cuOccupancyMaxActiveClusters(
                    &raw mut clusters,
                    function.cu_function(),
                    &raw const config,
                )
            }
            .result()
            .during("counting clusters")?;
            *count = clusters as u32;
        }
        Ok(counts)
    }

    /// The device's name, for reports.
    ///
    /// # Errors
    /// `Driver`.
    pub fn name(&self) -> Result<String> {
        self.context.name().during("reading the name")
    }

    /// Compute capability, for example (9, 0).
    pub fn compute(&self) -> (i32, i32) {
        self.compute
    }

    /// The facts that packers need about the device.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The stream on which everything of this device runs.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// cuBLAS on the device's stream. To start it takes hundreds of times longer than a small product, so it
    /// is kept.
    ///
    /// # Errors
    /// `Absent` when cuBLAS is missing or cannot start.
    pub(super) fn blas(&self) -> Result<Arc<CudaBlas>> {
        let mut kept = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blas) = &*kept {
            return Ok(Arc::clone(blas));
        }
        // SAFETY: this only tries to load the library. Without this check cudarc panics if it is missing.
        if !unsafe { blas_sys::is_culib_present() } {
            return Err(CudaError::Absent("the library libcublas.so is not there".into()));
        }
        let blas = CudaBlas::new(Arc::clone(&self.stream));
        let blas = Arc::new(blas.map_err(|error| CudaError::Absent(format!("cuBLAS: {error:?}")))?);
        *kept = Some(Arc::clone(&blas));
        Ok(blas)
    }

    /// Copies host values to the device.
    ///
    /// # Errors
    /// `Driver`, for example when memory runs out.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<Buffer<T>> {
        // SAFETY: the copy writes all numbers.
        let mut buffer = unsafe { Buffer::new(&self.stream, self.guards.as_ref(), values.len()) }?;
        self.stream
            .memcpy_htod(values, &mut buffer)
            .during("copying to the device")?;
        Ok(buffer)
    }

    /// Copies a buffer, or a part of one, to the host after all work started before.
    ///
    /// # Errors
    /// `Driver`, also when a kernel started before has failed; `Outside` when one wrote outside a buffer of a
    /// device with guard bytes.
    pub fn download<T: DeviceRepr>(&self, buffer: &impl DevicePtr<T>) -> Result<Vec<T>> {
        let values = self.stream.clone_dtoh(buffer).during("copying from the device")?;
        if let Some(guards) = &self.guards {
            guards.verify(&self.stream)?;
        }
        Ok(values)
    }

    /// A buffer of `count` zeros.
    ///
    /// # Errors
    /// `Driver`, for example when memory runs out.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, count: usize) -> Result<Buffer<T>> {
        // SAFETY: all numbers are written next.
        let mut buffer = unsafe { Buffer::new(&self.stream, self.guards.as_ref(), count) }?;
        self.stream.memset_zeros(&mut buffer).during("writing zeros")?;
        Ok(buffer)
    }

    /// Memory for `count` numbers.
    ///
    /// # Errors
    /// `Driver`, for example when memory runs out.
    ///
    /// # Safety
    /// The numbers must be written before they are read.
    pub(super) unsafe fn uninitialized<T: DeviceRepr>(&self, count: usize) -> Result<Buffer<T>> {
        // SAFETY: the caller's promise.
        unsafe { Buffer::new(&self.stream, self.guards.as_ref(), count) }
    }

    /// Lets the device's memory pool keep what is freed, for the next allocation. By default the pool gives
    /// it back at the next synchronization, and an algorithm that waits for a number would allocate anew each
    /// time.
    ///
    /// # Errors
    /// `Driver`.
    pub(super) fn keep_freed_memory(&self) -> Result<()> {
        self.set_pool(
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            u64::MAX,
        )
    }

    /// Lets a stream that allocates take new memory instead of waiting for another stream to free some.
    fn let_streams_allocate_apart(&self) -> Result<()> {
        self.set_pool(
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES,
            0_i32,
        )
    }

    /// Sets an attribute of the device's memory pool, if it has one; T is the attribute's type.
    fn set_pool<T>(&self, attribute: sys::CUmemPool_attribute, mut value: T) -> Result<()> {
        let pools = self
            .context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)
            .during("reading a device attribute")?;
        if pools == 0 {
            return Ok(());
        }
        let mut pool = std::ptr::null_mut();
        // SAFETY: the device exists, both places outlive the calls, and the callers pass the attribute's
        // type.
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, self.context.cu_device())
                .result()
                .during("finding the memory pool")?;
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut value).cast())
                .result()
                .during("setting the memory pool")
        }
    }

    /// Records the start of a kernel, for messages about writes outside a buffer.
    pub(super) fn note_start(&self, kernel: &str) {
        if let Some(guards) = &self.guards {
            guards.started(kernel);
        }
    }

    /// At least `bytes` of memory, zero at first, which all launches on this device's stream share in turn. A
    /// buffer in common use stays in L2. Separate buffers for each matrix would be evicted and written back.
    ///
    /// # Errors
    /// `Driver`, for example when memory runs out.
    pub(super) fn scratch(&self, bytes: usize) -> Result<Arc<Buffer<u8>>> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = scratch.as_ref().filter(|there| there.len() >= bytes) {
            return Ok(Arc::clone(there));
        }
        // Matrices that hold the smaller one keep it.
        let larger = Arc::new(self.zeros(bytes)?.named("the scratch that matrices share"));
        *scratch = Some(Arc::clone(&larger));
        Ok(larger)
    }

    /// Bytes of free device memory, with those that freed buffers have left for the next ones.
    ///
    /// # Errors
    /// `Driver`.
    pub fn free_bytes(&self) -> Result<usize> {
        let free = self.context.mem_get_info().during("reading free memory")?.0;
        Ok(free + self.pooled_bytes()?)
    }

    /// Bytes that freed buffers have left in the device's memory pool.
    fn pooled_bytes(&self) -> Result<usize> {
        let pools = self
            .context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)
            .during("reading a device attribute")?;
        if pools == 0 {
            return Ok(0);
        }
        let mut pool = std::ptr::null_mut();
        let [mut reserved, mut used] = [0_u64; 2];
        // SAFETY: the device exists, all places outlive the calls, and both attributes are u64.
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, self.context.cu_device())
                .result()
                .during("finding the memory pool")?;
            for (attribute, value) in [
                (
                    sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
                    &mut reserved,
                ),
                (
                    sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
                    &mut used,
                ),
            ] {
                sys::cuMemPoolGetAttribute(pool, attribute, std::ptr::from_mut(value).cast())
                    .result()
                    .during("reading the memory pool")?;
            }
        }
        Ok(reserved.saturating_sub(used) as usize)
    }

    /// The compiled kernel `id` with these compile-time constants, ready to launch with `shared_bytes` of
    /// dynamic shared memory.
    ///
    /// # Errors
    /// `Source`, `Compile` with the compiler's messages, `Driver`.
    pub fn function(&self, id: &str, defines: &[(&str, usize)], shared_bytes: usize) -> Result<CudaFunction> {
        let key = (
            id.to_owned(),
            defines
                .iter()
                .map(|&(name, value)| (name.to_owned(), value))
                .collect(),
        );
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&key) {
            allow_shared(function, shared_bytes)?;
            return Ok(function.clone());
        }
        let kernel = aqlm_kernels::kernel(id)?;
        let function = if self.compiler {
            let source = kernel.source(self.kernel_folder.as_deref())?;
            self.compile_text(id, &source, &kernel.op, defines)?
        } else {
            let image = aqlm_kernels::embedded(id, defines).ok_or_else(|| {
                CudaError::Aqlm(AqlmError::Unsupported(format!(
                    "{id} with {} is not among the compiled kernels of this program, and NVRTC is not there to compile it",
                    aqlm_kernels::constants(defines)
                )))
            })?;
            self.context
                .load_module(Ptx::from_binary(image.to_vec()))
                .during("loading an embedded kernel")?
                .load_function(&kernel.op)
                .during("finding the kernel's entry")?
        };
        allow_shared(&function, shared_bytes)?;
        functions.insert(key, function.clone());
        Ok(function)
    }

    /// [`Device::function`] for a source of the user's own, compiled anew at each call.
    ///
    /// # Errors
    /// As [`Device::function`].
    pub fn function_of_source(
        &self,
        name: &str,
        source: &str,
        entry: &str,
        defines: &[(&str, usize)],
        shared_bytes: usize,
    ) -> Result<CudaFunction> {
        let function = self.compile_text(name, source, entry, defines)?;
        allow_shared(&function, shared_bytes)?;
        Ok(function)
    }

    fn compile_text(
        &self,
        name: &str,
        source: &str,
        entry: &str,
        defines: &[(&str, usize)],
    ) -> Result<CudaFunction> {
        if !self.compiler {
            return Err(CudaError::Absent(format!(
                "the run-time compiler libnvrtc.so is not there, which {name} needs"
            )));
        }
        let image = image::image(name, source, defines, self.machine, self.cache.as_deref())?;
        let module = match self.context.load_module(Ptx::from_binary(image.bytes)) {
            Ok(module) => module,
            // If the driver refuses a cached image, compile it once more.
            Err(_) if image.found.is_some() => {
                let fresh = image::image(name, source, defines, self.machine, None)?;
                self.context
                    .load_module(Ptx::from_binary(fresh.bytes))
                    .during("loading a compiled kernel")?
            }
            Err(error) => return Err(error).during("loading a compiled kernel"),
        };
        module.load_function(entry).during("finding the kernel's entry")
    }
}

fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: `version` is a valid place.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .during("reading the driver's version")?;
    Ok(version)
}

/// The launch attribute for clusters of `size` blocks along the first axis.
pub(crate) fn cluster_attribute(size: u32) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: size, y: 1, z: 1 },
        },
    }
}

/// Clusters of more than eight blocks need a permission: not every device of an architecture can place them.
pub(crate) fn allow_large_clusters(function: &CudaFunction) -> Result<()> {
    let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
    function
        .set_attribute(which, 1)
        .during("asking for large clusters")
}

fn allow_shared(function: &CudaFunction, bytes: usize) -> Result<()> {
    // 48 KiB need no permission. A function serves matrices of several shapes, so a smaller request must not
    // revoke what a larger one was granted.
    let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let granted = || {
        function
            .get_attribute(which)
            .during("reading a function's shared memory")
    };
    if bytes > 49_152 && granted()? < bytes as i32 {
        function
            .set_attribute(which, bytes as i32)
            .during("asking for shared memory")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CudaError, Device};

    #[test]
    fn a_missing_device_is_an_error_and_not_a_panic() {
        // No machine has this many GPUs. Without any device or driver the answer is the same.
        match Device::open(10_000, None) {
            Err(CudaError::Absent(reason)) => assert!(!reason.is_empty()),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("device 10000 exists"),
        }
    }
}
