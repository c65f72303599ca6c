use serde::{Deserialize, Serialize};

use super::{MemoryRate, Outcome, Times};

/// One kind of launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRow {
    /// the kind
    pub stage: String,
    /// launches per token
    pub launches: usize,
    /// median of all launches of this kind, in sequence in their own graph, microseconds
    pub us: f64,
    /// bytes that all of them read
    pub bytes: usize,
    /// time to move `bytes` at the rate of a copy, microseconds
    pub roofline_us: f64,
}

/// Time of decoding with a model of random weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecodeReport {
    /// the model whose shapes were used
    pub model: String,
    /// the scheme
    pub scheme: String,
    /// positions to which each token attended
    pub context: usize,
    /// the device; `None` when there was none
    pub device: Option<String>,
    /// outcome of the comparison
    pub outcome: Outcome,
    /// why the outcome is not a pass
    pub reason: Option<String>,
    /// normalised squared error of one block's logits between the chosen rung and the plain rung, and its
    /// limit
    pub nmse: Option<[f64; 2]>,
    /// rates of the device's memory; `None` when nothing was timed
    pub memory: Option<MemoryRate>,
    /// fewest bytes that a token reads: codes at their own width, codebooks, scales, norms, cache, head
    pub least_bytes: usize,
    /// time to move `least_bytes` at the memory's best rate, microseconds
    pub roofline_us: Option<f64>,
    /// time per token, microseconds
    pub us: Option<Times>,
    /// tokens per second, from the median
    pub tokens_per_second: Option<f64>,
    /// parts of the token's time
    pub stages: Vec<StageRow>,
}

impl DecodeReport {
    /// Whether the comparison and the timing ran and nothing failed.
    pub fn holds(&self) -> bool {
        self.outcome == Outcome::Pass
    }
}
