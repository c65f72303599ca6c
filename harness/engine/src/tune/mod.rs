//! End-to-end fine-tuning of a quantized model against the dense one it was made from (paper appendix A).

mod preflight;
mod settings;
mod teacher;
mod top_tokens;
mod train;

pub use preflight::{Difference, check_student, check_teacher, differences};
pub use settings::{EndToEndSettings, Schedule, TeacherUse};
pub use train::{Divergence, EndToEndEvent, EndToEndReport, EndToEndRun, Tuning, end_to_end, publish_tuned};
