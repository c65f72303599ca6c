//! The first GPU: whole resident models, and the machine that quantizes and trains.

mod hidden;
mod layers;
mod machine;
mod models;

pub use hidden::CudaHidden;
pub use layers::CudaLayers;
pub use machine::CudaMachine;
pub use models::{CudaBackend, losses, table};
