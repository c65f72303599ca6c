use serde::{Deserialize, Serialize};

use super::{Outcome, Worst};

/// Microseconds a call.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// half of the samples were faster
    pub median: f64,
    /// a tenth was
    pub p10: f64,
    /// nine tenths were
    pub p90: f64,
}

/// One kernel on one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelRow {
    /// the kernel's id, or the user's file
    pub kernel: String,
    /// how it divides the work, where there is a choice
    pub config: Option<String>,
    /// whether the table of measurements (kernels/dispatch.json) chooses this launch for the case
    pub dispatched: bool,
    /// how the check ended
    pub outcome: Outcome,
    /// why it is not a pass
    pub reason: Option<String>,
    /// normalised squared error on realistic inputs
    pub nmse: Option<f64>,
    /// the elements that are furthest off, when the check failed
    pub worst: Vec<Worst>,
    /// time of a call
    pub us: Option<Times>,
    /// median when a call may set itself up while the one before it ends
    pub us_overlapped: Option<f64>,
    /// bytes of the matrix as this kernel stores it
    pub bytes: Option<usize>,
    /// registers of a thread, and bytes of local memory
    pub registers: Option<(i32, i32)>,
}

impl KernelRow {
    /// A kernel that was not tried yet.
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

    /// The same with how it ended and why.
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
    /// the dense product of the same shape through the library
    pub dense: Option<Times>,
    /// fewest bytes that must move: codes at their own width, codebooks, scales, x and y
    pub least_bytes: usize,
    /// those bytes at the rate of a copy, microseconds
    pub roofline_us: Option<f64>,
    /// the kernels
    pub kernels: Vec<KernelRow>,
}

/// What `aqlm bench` found.
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
    /// what it ran on; `None` when there was nothing to run on
    pub device: Option<String>,
    /// bytes a second of a copy, read and written together
    pub copy_bytes_per_second: Option<f64>,
    /// the name of the dense product
    pub dense: String,
    /// one for each batch
    pub cases: Vec<BenchCase>,
    /// why nothing was tried
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
