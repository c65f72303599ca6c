//! The machines: thin adapters from the crates that compute to the traits of [`ops`](crate::ops).

mod cpu;
pub mod cuda;
mod cuda_layers;
mod hidden_states;
mod reference;
mod resident;

use aqlm_vocabulary::{AqlmError, ArchSpec};

pub use cpu::{CpuBackend, CpuLayers};
pub use cuda::CudaBackend;
pub use cuda_layers::CudaLayers;
pub use hidden_states::HiddenStates;
pub use reference::{ReferenceBackend, ReferenceLayers};

pub use crate::backend_kind::BackendKind;
pub use crate::memory::Memory;

use crate::ops::{ModelOps, TrainOps};
use aqlm_formats::{Error, Result};

/// A job that needs a machine with the operations of quantizing and training.
pub trait OnMachine {
    /// the job's result
    type Output;

    /// Does the job.
    ///
    /// # Errors
    /// Those of the job.
    fn on<M: TrainOps>(self, machine: M) -> Result<Self::Output>;
}

impl BackendKind {
    /// Checks before any work that [`BackendKind::run`] has a machine.
    ///
    /// # Errors
    /// `Unsupported` for a GPU.
    pub fn check_runs(self) -> Result<()> {
        match self {
            Self::Reference | Self::Cpu => Ok(()),
            Self::Cuda => Err(no_training(self)),
        }
    }

    /// Runs a job on the machine of this kind, built for the model's shape and sequences of at most
    /// `positions` tokens.
    ///
    /// # Errors
    /// `Unsupported` for a GPU, which neither quantizes nor trains; errors of the job.
    pub fn run<J: OnMachine>(self, config: &ArchSpec, positions: usize, job: J) -> Result<J::Output> {
        match self {
            Self::Reference => job.on(ReferenceBackend::new(config, positions)?),
            Self::Cpu => job.on(CpuBackend::new(config, positions)?),
            Self::Cuda => Err(no_training(self)),
        }
    }

    /// The machine of this kind for whole resident models of this shape, and sequences of at most `positions`
    /// tokens.
    ///
    /// # Errors
    /// `Device`, with a message that names what the GPU lacks.
    pub fn models(self, config: &ArchSpec, positions: usize) -> Result<Box<dyn ModelOps>> {
        Ok(match self {
            Self::Reference => Box::new(ReferenceBackend::new(config, positions)?),
            Self::Cpu => Box::new(CpuBackend::new(config, positions)?),
            Self::Cuda => Box::new(CudaBackend::new(positions)?),
        })
    }
}

fn no_training(kind: BackendKind) -> Error {
    AqlmError::Unsupported(format!(
        "the {kind} backend evaluates and generates; reference and cpu quantize and train"
    ))
    .into()
}
