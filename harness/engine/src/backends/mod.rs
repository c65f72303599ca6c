//! The machines: thin adapters from the crates that compute to the traits of [`ops`](crate::ops).

mod cpu;
pub mod cuda;
mod hidden_states;
mod reference;
mod resident;
mod shared_beginnings;

use aqlm_vocabulary::{AqlmError, ArchSpec};

pub use cpu::{CpuBackend, CpuLayers};
pub use cuda::{CudaBackend, CudaHidden, CudaLayers, CudaMachine};
pub use hidden_states::HiddenStates;
pub use reference::{ReferenceBackend, ReferenceLayers};

pub use crate::backend_kind::BackendKind;
pub use crate::memory::Memory;
pub use crate::training_precision::TrainingPrecision;

use crate::ops::{ModelOps, TrainOps};
use aqlm_formats::Result;

/// A job that needs a machine with the operations of quantizing and training.
pub trait OnMachine {
    /// the job's result
    type Output;

    /// The precision of products of training on a GPU.
    fn precision(&self) -> TrainingPrecision {
        TrainingPrecision::default()
    }

    /// The number of the device on which the job runs, where there are several.
    fn device(&self) -> usize {
        0
    }

    /// Does the job.
    ///
    /// # Errors
    /// Those of the job.
    fn on<M: TrainOps>(self, machine: M) -> Result<Self::Output>;
}

/// Refuses a model with parts that the cuda backend lacks, with or without a GPU.
fn require_computed_on_cuda(config: &ArchSpec) -> Result<()> {
    let refused = |error| match error {
        AqlmError::Unsupported(part) => AqlmError::Unsupported(format!(
            "{part} on the cuda backend; cpu and reference compute it"
        )),
        other => other,
    };
    Ok(config.require_plain().map_err(refused)?)
}

impl BackendKind {
    /// Runs a job on the machine of this kind, built for the model's shape and sequences of at most
    /// `positions` tokens.
    ///
    /// # Errors
    /// `Unsupported` for a part of the model that the kind does not compute; `Device`, with a message that
    /// names what the GPU lacks; errors of the job.
    pub fn run<J: OnMachine>(self, config: &ArchSpec, positions: usize, job: J) -> Result<J::Output> {
        match self {
            Self::Reference => job.on(ReferenceBackend::new(config, positions)?),
            Self::Cpu => job.on(CpuBackend::new(config, positions)?),
            Self::Cuda => {
                require_computed_on_cuda(config)?;
                let (device, precision) = (job.device(), job.precision());
                job.on(CudaMachine::new(config, positions, device, precision)?)
            }
        }
    }

    /// The machine of this kind for whole resident models of this shape, and sequences of at most `positions`
    /// tokens.
    ///
    /// # Errors
    /// `Unsupported` for a part of the model that the kind does not compute; `Device`, with a message that
    /// names what the GPU lacks.
    pub fn models(self, config: &ArchSpec, positions: usize) -> Result<Box<dyn ModelOps>> {
        Ok(match self {
            Self::Reference => Box::new(ReferenceBackend::new(config, positions)?),
            Self::Cpu => Box::new(CpuBackend::new(config, positions)?),
            Self::Cuda => {
                require_computed_on_cuda(config)?;
                Box::new(CudaBackend::new(positions)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use aqlm_formats::model::Model;
    use aqlm_vocabulary::Activation;

    use super::*;
    use aqlm_formats::Error;

    /// A job that computes nothing.
    struct Nothing;

    impl OnMachine for Nothing {
        type Output = ();

        fn on<M: TrainOps>(self, _machine: M) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn cuda_refuses_by_name_what_it_does_not_compute_with_or_without_a_gpu() {
        let mut arch = Model::embedded().unwrap().config().clone();
        arch.blocks[1].mlp.set_activation(Activation::GeluTanh);
        let refused = |result: Result<()>| matches!(&result, Err(Error::Aqlm(AqlmError::Unsupported(part))) if part.contains("GELU"));
        assert!(refused(BackendKind::Cuda.models(&arch, 4).map(|_| ())));
        assert!(refused(BackendKind::Cuda.run(&arch, 4, Nothing)));
        for kind in [BackendKind::Cpu, BackendKind::Reference] {
            kind.run(&arch, 4, Nothing).unwrap();
            kind.models(&arch, 4).unwrap();
        }
    }
}
