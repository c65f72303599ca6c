//! The first GPU: whole resident models, and the machine that quantizes and trains.

mod hidden;
mod machine;
mod models;

pub use hidden::CudaHidden;
pub use machine::CudaMachine;
pub use models::{CudaBackend, losses, table};
