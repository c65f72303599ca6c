use aqlm_vocabulary::AqlmError;
use cudarc::driver::result::DriverError;
use thiserror::Error;

use super::Activations;

/// Why something could not be done on a GPU.
#[derive(Debug, Error)]
pub enum CudaError {
    /// There is nothing to run on; the reason says what is missing. Checks report this as `waived`.
    #[error("no CUDA device: {0}")]
    Absent(String),
    /// The CUDA driver refused a call.
    #[error("CUDA driver, {during}: {error}")]
    Driver {
        /// what was being done
        during: &'static str,
        /// the driver's answer
        error: DriverError,
    },
    /// Device memory is too small.
    #[error("device memory: {what} does not fit, {free} bytes are free")]
    Memory {
        /// what was to be put there
        what: String,
        /// bytes that were free then
        free: usize,
    },
    /// A kernel wrote outside a buffer of a device that keeps guard bytes.
    #[error(
        "a write outside a buffer: guard bytes {side} {buffer} changed; started since they were whole: {started}"
    )]
    Outside {
        /// whose guard bytes were written to
        buffer: String,
        /// `before` or `after` it
        side: &'static str,
        /// kernels, one of which did it
        started: String,
    },
    /// A library of the CUDA toolkit refused a call.
    #[error("{library}: {error}")]
    Library {
        /// which library
        library: &'static str,
        /// its answer
        error: String,
    },
    /// A timed run gave another result than the checked one.
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
    /// A buffer has another length than the matrix implies.
    #[error("{what}: expected {expected} elements, found {found}")]
    Length {
        /// which buffer
        what: &'static str,
        /// elements needed
        expected: usize,
        /// elements given
        found: usize,
    },
    /// x and y are in another format than the matrix was packed for.
    #[error("expected x and y in {expected:?}, found {found:?}")]
    Format {
        /// what the matrix was packed for
        expected: Activations,
        /// what was given
        found: Activations,
    },
    /// A kernel's source cannot be read.
    #[error(transparent)]
    Source(#[from] aqlm_kernels::SourceError),
    /// The kernel cannot do this matrix.
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

/// Compares the lengths of buffers, (which, expected, found) each.
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

/// Names what was being done when the driver failed.
pub(crate) trait During<T> {
    fn during(self, what: &'static str) -> Result<T>;
}

impl<T> During<T> for std::result::Result<T, DriverError> {
    fn during(self, what: &'static str) -> Result<T> {
        self.map_err(|error| CudaError::Driver { during: what, error })
    }
}
