//! Quantizing a whole model, block after block, and training the result end to end, in run folders that can be resumed.

mod end_to_end;
mod journal;
mod json_lines;
mod lock;
mod preflight;
mod presets;
mod publish;
mod quantize;
mod run_folder;

pub use end_to_end::{
    Difference, Divergence, EndToEndEvent, EndToEndReport, EndToEndRun, EndToEndSettings, Schedule,
    TeacherUse, Tuning, check_student, check_teacher, differences, end_to_end, publish_tuned,
};
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
