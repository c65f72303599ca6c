use serde::{Deserialize, Serialize};

use super::{Outcome, Worst};

/// Quantiles of microseconds per call.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// half of the samples were at most this
    pub median: f64,
    /// a tenth of the samples were at most this
    pub p10: f64,
    /// nine tenths of the samples were at most this
    pub p90: f64,
}

/// The rates of memory that times are compared with, in bytes per second. Each is the best of several ways.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MemoryRate {
    /// reading only
    pub read: f64,
    /// copying: bytes read plus bytes written
    pub copy: f64,
}

impl MemoryRate {
    /// Microseconds in which `bytes` move at the higher of the two rates. No kernel that moves as much is
    /// faster.
    pub fn least_us(&self, bytes: usize) -> f64 {
        bytes as f64 / self.read.max(self.copy) * 1e6
    }
}

/// One kernel on one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelRow {
    /// the kernel's id, or the user's file
    pub kernel: String,
    /// how the kernel divides the work, if there is a choice
    pub config: Option<String>,
    /// whether the table of measurements (kernels/dispatch.json) chooses this launch for the case
    pub dispatched: bool,
    /// outcome of the check
    pub outcome: Outcome,
    /// why the outcome is not a pass
    pub reason: Option<String>,
    /// normalised squared error on realistic inputs
    pub nmse: Option<f64>,
    /// the elements with the largest errors, when the check failed
    pub worst: Vec<Worst>,
    /// time per call
    pub us: Option<Times>,
    /// median when a call's setup may overlap the end of the previous call
    pub us_overlapped: Option<f64>,
    /// bytes of the matrix as this kernel stores it
    pub bytes: Option<usize>,
    /// registers per thread, and bytes of local memory
    pub registers: Option<(i32, i32)>,
}

impl KernelRow {
    /// A kernel that has not been tried.
    pub fn new(kernel: &str, config: Option<String>) -> Self {
        Self {
            kernel: kernel.to_owned(),
            config,
            dispatched: false,
            outcome: Outcome::Waived,
            reason: None,
            nmse: None,
            worst: Vec::new(),
            us: None,
            us_overlapped: None,
            bytes: None,
            registers: None,
        }
    }

    /// The same row with an outcome and its reason.
    #[must_use]
    pub fn ended(mut self, outcome: Outcome, reason: &impl ToString) -> Self {
        self.outcome = outcome;
        self.reason = Some(reason.to_string());
        self
    }
}

/// All kernels on one batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchCase {
    /// rows of x
    pub batch: usize,
    /// the library's dense product of the same shape
    pub dense: Option<Times>,
    /// fewest bytes that must move: codes at their own width, codebooks, scales, x and y
    pub least_bytes: usize,
    /// time to move `least_bytes` at the memory's best rate, microseconds
    pub roofline_us: Option<f64>,
    /// the kernels
    pub kernels: Vec<KernelRow>,
}

/// Result of `aqlm bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// the operation
    pub op: String,
    /// the scheme
    pub scheme: String,
    /// the format of x and y
    pub activations: String,
    /// rows of the weight
    pub out_features: usize,
    /// columns of the weight
    pub in_features: usize,
    /// the device; `None` when there was none
    pub device: Option<String>,
    /// rates of the device's memory; `None` when nothing was timed
    pub memory: Option<MemoryRate>,
    /// the name of the dense product
    pub dense: String,
    /// one for each batch
    pub cases: Vec<BenchCase>,
    /// why nothing ran
    pub waived: Option<String>,
}

impl BenchReport {
    /// Kernels that ended in `outcome`.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.cases
            .iter()
            .flat_map(|case| &case.kernels)
            .filter(|row| row.outcome == outcome)
            .count()
    }

    /// Whether something passed and nothing failed.
    pub fn holds(&self) -> bool {
        self.count(Outcome::Fail) == 0 && self.count(Outcome::Pass) > 0
    }
}
