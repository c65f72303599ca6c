use clap::Args;

use aqlm_engine::backends::{BackendKind, TrainingPrecision};
use aqlm_formats::{Error, Result};

/// The precision of training on a GPU.
#[derive(Debug, Args)]
pub(super) struct PrecisionArgs {
    /// How products of training round their factors on a GPU [default: mixed for blocks, tf32 end to end]
    #[arg(long, value_enum)]
    precision: Option<TrainingPrecision>,
}

impl PrecisionArgs {
    /// The precision, if one is chosen.
    ///
    /// # Errors
    /// `Argument` for a backend that always computes in one way.
    pub(super) fn chosen(&self, backend: BackendKind) -> Result<Option<TrainingPrecision>> {
        match self.precision {
            Some(_) if backend != BackendKind::Cuda => Err(Error::argument(
                "--precision",
                "--backend cuda beside it",
                format!("--backend {backend}"),
            )),
            chosen => Ok(chosen),
        }
    }
}
