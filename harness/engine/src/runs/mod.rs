//! Run folders: the files in one, and how a run continues after an interruption (docs/resume.md).

pub(crate) mod block_journal;
mod folder;
pub(crate) mod json_lines;
pub(crate) mod lock;
mod metrics;
pub(crate) mod phases;
pub mod records;
mod resident;
pub(crate) mod tuning_journal;
mod tuning_state;

use std::path::Path;

pub use folder::{RunDescription, RunFolder};
pub use metrics::{METRICS_FILE, Metric, MetricEvent, parse_metrics, read_metrics};
pub use phases::PhaseSeconds;

/// Number of finished blocks that the journal of a run folder lists.
///
/// # Errors
/// `Error::Field` naming the line when a complete line does not parse or the blocks are not 0, 1, 2, ...;
/// `Error::Io`.
pub fn finished_blocks(folder: &Path) -> crate::Result<usize> {
    Ok(block_journal::Journal::open(folder)?.entries().len())
}
