use serde::{Deserialize, Serialize};

use super::{Outcome, Times};

/// One kind of launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRow {
    /// which
    pub stage: String,
    /// launches a token
    pub launches: usize,
    /// median of all of them in a graph of their own, one after the other, microseconds
    pub us: f64,
    /// bytes that all of them read
    pub bytes: usize,
    /// those bytes at the rate of a copy, microseconds
    pub roofline_us: f64,
}

/// What decoding a model of random weights took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecodeReport {
    /// the model whose shapes were used
    pub model: String,
    /// the scheme
    pub scheme: String,
    /// positions that each token attended to
    pub context: usize,
    /// what it ran on; `None` when there was nothing to run on
    pub device: Option<String>,
    /// whether results were right
    pub outcome: Outcome,
    /// why that is not a pass
    pub reason: Option<String>,
    /// normalised squared error of one block's logits between the chosen rung and the plain one, and its
    /// limit
    pub nmse: Option<[f64; 2]>,
    /// bytes a second of a copy, read and written together
    pub copy_bytes_per_second: Option<f64>,
    /// fewest bytes that a token reads: codes at their own width, codebooks, scales, norms, cache, head
    pub least_bytes: usize,
    /// those bytes at the rate of a copy, microseconds
    pub roofline_us: Option<f64>,
    /// one token, microseconds
    pub us: Option<Times>,
    /// tokens a second by the median
    pub tokens_per_second: Option<f64>,
    /// what the token's time is made of
    pub stages: Vec<StageRow>,
}

impl DecodeReport {
    /// Whether something was compared and timed and nothing failed.
    pub fn holds(&self) -> bool {
        self.outcome == Outcome::Pass
    }
}
