//! The machines: thin adapters from what computes to the traits of [`ops`](crate::ops).

mod cpu;
pub mod cuda;
mod hidden_states;
mod memory;
mod reference;
mod resident;

use std::fmt;

use aqlm_vocabulary::{AqlmError, ArchSpec};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use cpu::{CpuBackend, CpuLayers};
pub use cuda::CudaBackend;
pub use hidden_states::HiddenStates;
pub use memory::Memory;
pub use reference::{ReferenceBackend, ReferenceLayers};

use crate::ops::{ModelOps, TrainOps};
use aqlm_formats::{Error, Result};

/// The machines that can run operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// f64 on ndarray: slow, readable, the ground truth
    Reference,
    /// f32 on all cores, with the vector instructions at hand
    Cpu,
    /// the first NVIDIA GPU: products in f16, the rest in f32
    Cuda,
}

/// A job that asks a machine for the operations of quantizing and training.
pub trait OnMachine {
    /// what comes of it
    type Output;

    /// Does the job.
    ///
    /// # Errors
    /// Those of the job.
    fn on<M: TrainOps>(self, machine: M) -> Result<Self::Output>;
}

impl BackendKind {
    /// All, in the order in which they are checked.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Cpu, Self::Cuda];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }

    /// Says before any work whether [`BackendKind::run`] has a machine.
    ///
    /// # Errors
    /// `Unsupported` for a GPU.
    pub fn check_runs(self) -> Result<()> {
        match self {
            Self::Reference | Self::Cpu => Ok(()),
            Self::Cuda => Err(no_training(self)),
        }
    }

    /// Does a job on the machine of this kind, made for a model's shape and sequences of at most `positions`
    /// tokens.
    ///
    /// # Errors
    /// `Unsupported` for a GPU, which does not quantize or train; those of the job.
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
    /// `Device` that says what a GPU lacks.
    pub fn models(self, config: &ArchSpec, positions: usize) -> Result<Box<dyn ModelOps>> {
        Ok(match self {
            Self::Reference => Box::new(ReferenceBackend::new(config, positions)?),
            Self::Cpu => Box::new(CpuBackend::new(config, positions)?),
            Self::Cuda => Box::new(CudaBackend::new(positions)?),
        })
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn no_training(kind: BackendKind) -> Error {
    AqlmError::Unsupported(format!(
        "the {kind} backend evaluates and generates; reference and cpu quantize and train"
    ))
    .into()
}
