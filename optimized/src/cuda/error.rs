use aqlm_vocabulary::AqlmError;
use cudarc::driver::result::DriverError;
use thiserror::Error;

use super::Activations;

/// Why a GPU operation failed.
#[derive(Debug, Error)]
pub enum CudaError {
    /// There is no device or library to run on; the reason says what is missing. Checks report this as
    /// `waived`.
    #[error("no CUDA device: {0}")]
    Absent(String),
    /// The CUDA driver refused a call.
    #[error("CUDA driver, {during}: {error}")]
    Driver {
        /// the operation
        during: &'static str,
        /// the driver's error
        error: DriverError,
    },
    /// Device memory is too small.
    #[error("device memory: {what} does not fit, {free} bytes are free")]
    Memory {
        /// the data that did not fit
        what: String,
        /// bytes that were free
        free: usize,
    },
    /// A kernel wrote outside a buffer of a device that keeps guard bytes.
    #[error(
        "a write outside a buffer: guard bytes {side} {buffer} changed; started since they were whole: {started}"
    )]
    Outside {
        /// the buffer whose guard bytes were overwritten
        buffer: String,
        /// the side: `before` or `after`
        side: &'static str,
        /// the kernels started since the last check, one of which is at fault
        started: String,
    },
    /// A CUDA toolkit library refused a call.
    #[error("{library}: {error}")]
    Library {
        /// which library
        library: &'static str,
        /// the library's error
        error: String,
    },
    /// A timed run gave a different result from the checked one.
    #[error("an output of a timed run differs from the checked one")]
    Changed,
    /// A kernel does not compile.
    #[error("{kernel} does not compile:\n{log}")]
    Compile {
        /// which kernel
        kernel: String,
        /// the compiler's messages, with file and line
        log: String,
    },
    /// A buffer's length does not match the matrix.
    #[error("{what}: expected {expected} elements, found {found}")]
    Length {
        /// which buffer
        what: &'static str,
        /// elements needed
        expected: usize,
        /// elements given
        found: usize,
    },
    /// The format of x and y differs from the one that the matrix was packed for.
    #[error("expected x and y in {expected:?}, found {found:?}")]
    Format {
        /// format that the matrix was packed for
        expected: Activations,
        /// format that was given
        found: Activations,
    },
    /// A kernel's source cannot be read.
    #[error(transparent)]
    Source(#[from] aqlm_kernels::SourceError),
    /// The kernel cannot handle this matrix.
    #[error(transparent)]
    Aqlm(#[from] AqlmError),
}

impl From<CudaError> for AqlmError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Aqlm(error) => error,
            other => Self::Device(other.to_string()),
        }
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, CudaError>;

/// Checks the lengths of buffers, each as (which, expected, found).
///
/// # Errors
/// `Length` for the first that differs.
pub(crate) fn check_lengths(lengths: &[(&'static str, usize, usize)]) -> Result<()> {
    match lengths.iter().find(|(_, expected, found)| expected != found) {
        None => Ok(()),
        Some(&(what, expected, found)) => Err(CudaError::Length {
            what,
            expected,
            found,
        }),
    }
}

/// Adds the name of the operation to a driver error.
pub(crate) trait During<T> {
    fn during(self, what: &'static str) -> Result<T>;
}

impl<T> During<T> for std::result::Result<T, DriverError> {
    fn during(self, what: &'static str) -> Result<T> {
        self.map_err(|error| CudaError::Driver { during: what, error })
    }
}
