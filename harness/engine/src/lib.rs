//! The policies built on operations, each written once: quantizing a model block by block, training it end to
//! end, evaluating it and generating text. Run folders make the long ones resumable.

pub mod alternate;
mod backend_kind;
pub mod backends;
mod block_layers;
pub mod divergence;
pub mod evaluate;
pub mod forecast;
mod gauge;
pub mod generate;
mod held;
mod hessians;
pub mod hostile;
mod layer_jobs;
pub mod likelihood;
mod memory;
pub mod ops;
mod pipeline_event;
pub mod position;
mod preflight;
mod presets;
pub mod protocol;
mod publish;
mod quantize;
pub mod ranks;
pub mod report;
mod rounds;
pub mod runs;
pub mod selfgen;
pub mod sketch;
mod spectrum;
pub mod tables;
mod targets;
pub mod tasks;
mod training_precision;
mod tune;
pub mod two_sided;
mod two_sided_host;
pub mod window_logits;

pub use aqlm_formats::{Error, Result};
pub use hessians::hessians;
pub use pipeline_event::PipelineEvent;
pub use preflight::check_scheme;
pub use presets::{HessianKind, LayerObjective, Preset, QuantizeSettings, SketchSettings};
pub use publish::publish;
pub use quantize::quantize;
pub use runs::records::{BlockReport, LayerSummary, QuantizeReport, Record};
pub use runs::{RunDescription, RunFolder, finished_blocks};
pub use tune::{
    CodePreset, Difference, Divergence, EndToEndEvent, EndToEndReport, EndToEndRun, EndToEndSettings,
    Schedule, TeacherUse, Tuning, Watch, check_student, check_teacher, differences, end_to_end,
    publish_tuned, tune_block,
};
