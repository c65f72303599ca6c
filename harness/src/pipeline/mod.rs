//! Quantizing a whole model, block after block, into a run folder that can be resumed.

mod journal;
mod lock;
mod preflight;
mod presets;
mod publish;
mod quantize;
mod run_folder;

pub use preflight::check_scheme;
pub use presets::{Preset, QuantizeSettings};
pub use publish::publish;
pub use quantize::{BlockReport, LayerSummary, PipelineEvent, QuantizeReport, quantize};
pub use run_folder::{RunDescription, RunFolder};

/// How many finished blocks the journal of a run folder records.
///
/// # Errors
/// `Error::Field` naming the line when a whole line does not parse or the blocks are not 0, 1, 2, ...; `Error::Io`.
pub fn finished_blocks(folder: &std::path::Path) -> crate::Result<usize> {
    Ok(journal::Journal::open(folder)?.entries().len())
}
