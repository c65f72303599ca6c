//! What a report shows of runs: finished ones, unfinished ones, and evaluations of the dense model. This
//! module reads and computes; the program draws (docs/report.md).
//!
//! A part that a run folder does not hold is `None` or empty. The report then says so.

mod codebooks;
mod differences;
mod pareto;
mod progress;
mod read;

pub use codebooks::{CodebookUsage, Codebooks, Codeword, LayerUsage, SCATTER_CODEWORDS, codebooks};
pub use differences::{Setting, settings};
pub use pareto::{PaperPoint, front, paper_points};
pub use progress::{Progress, progress};
pub use read::{EndToEndLosses, Named, ReportedRun, RunKind, RunState, read_runs};
