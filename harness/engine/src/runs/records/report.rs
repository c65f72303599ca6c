use serde::{Deserialize, Serialize};

/// What `aqlm report` wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportRecord {
    /// the page; `None` when only event files were written
    pub out: Option<String>,
    /// its bytes
    pub bytes: Option<u64>,
    /// folder of TensorBoard's event files, if any were asked for
    pub tensorboard: Option<String>,
    /// names of the runs
    pub runs: Vec<String>,
    /// seconds it took
    pub seconds: f64,
}
