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
