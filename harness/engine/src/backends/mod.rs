//! The machines: thin adapters from the crates that compute to the traits of [`ops`](crate::ops).

mod cpu;
pub mod cuda;
mod hidden_states;
mod reference;
mod resident;
mod shared_beginnings;

use aqlm_vocabulary::ArchSpec;

pub use cpu::{CpuBackend, CpuLayers};
pub use cuda::{CudaBackend, CudaHidden, CudaLayers, CudaMachine};
pub use hidden_states::HiddenStates;
pub use reference::{ReferenceBackend, ReferenceLayers};

pub use crate::backend_kind::BackendKind;
pub use crate::memory::Memory;

use crate::ops::{ModelOps, TrainOps};
use aqlm_formats::Result;

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
    /// Runs a job on the machine of this kind, built for the model's shape and sequences of at most
    /// `positions` tokens.
    ///
    /// # Errors
    /// `Device`, with a message that names what the GPU lacks; errors of the job.
    pub fn run<J: OnMachine>(self, config: &ArchSpec, positions: usize, job: J) -> Result<J::Output> {
        match self {
            Self::Reference => job.on(ReferenceBackend::new(config, positions)?),
            Self::Cpu => job.on(CpuBackend::new(config, positions)?),
            Self::Cuda => job.on(CudaMachine::new(config, positions)?),
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
