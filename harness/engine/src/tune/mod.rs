//! Training: a block on target outputs (paper section 3.4), and a whole model end to end against its dense
//! original (appendix A), with fixed codes or together with its codes (PV-Tuning).

mod block;
mod epochs;
mod event;
mod keepers;
mod objective;
mod preflight;
mod report;
mod settings;
mod teacher;
mod top_tokens;
mod train;
mod watch;

pub use block::tune_block;
pub use event::EndToEndEvent;
pub use preflight::{Difference, check_student, check_teacher, differences};
pub use report::EndToEndReport;
pub use settings::{CodePreset, EndToEndSettings, Schedule, TeacherUse};
pub use train::{Divergence, EndToEndRun, Tuning, end_to_end, publish_tuned};
pub use watch::Watch;
