//! The machines: thin adapters from the crates that compute to the traits of [`ops`](crate::ops).

mod cpu;
pub mod cuda;
mod hidden_states;
mod reference;
mod resident;
mod shared_beginnings;

use aqlm_optimized::cuda::llama::require_decodable;
use aqlm_vocabulary::{AqlmError, ArchSpec};

pub use cpu::{CpuBackend, CpuLayers};
pub use cuda::{CudaBackend, CudaHidden, CudaLayers, CudaMachine};
pub use hidden_states::HiddenStates;
pub use reference::{ReferenceBackend, ReferenceLayers};

pub use crate::backend_kind::BackendKind;
pub use crate::memory::Memory;
pub use crate::training_precision::{CalibrationPrecision, TrainingPrecision};

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

    /// The precision of calibration on a GPU.
    fn activations(&self) -> CalibrationPrecision {
        CalibrationPrecision::default()
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

/// Refuses, with or without a GPU, a model with parts that the cuda backend lacks where it passes blocks
/// forward and back.
fn require_computed_on_cuda(config: &ArchSpec) -> Result<()> {
    Ok(config.require_rms_norms_and_halves().map_err(refused_on_cuda)?)
}

/// Refuses a model with parts that generating on the cuda backend lacks, with or without a GPU.
fn require_decoded_on_cuda(config: &ArchSpec) -> Result<()> {
    Ok(require_decodable(config).map_err(refused_on_cuda)?)
}

fn refused_on_cuda(error: AqlmError) -> AqlmError {
    match error {
        AqlmError::Unsupported(part) => AqlmError::Unsupported(format!(
            "{part} on the cuda backend; cpu and reference compute it"
        )),
        other => other,
    }
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
                let (device, precision, activations) = (job.device(), job.precision(), job.activations());
                job.on(CudaMachine::new(
                    config,
                    positions,
                    device,
                    precision,
                    activations,
                )?)
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
                require_decoded_on_cuda(config)?;
                Box::new(CudaBackend::new(positions)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use aqlm_formats::model::Model;
    use aqlm_vocabulary::llama::LlamaBlock;
    use aqlm_vocabulary::{Activation, BlockSpec, Rope, RopeScaling};

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
    fn cuda_refuses_by_name_what_it_does_not_compute() {
        let mut arch = Model::embedded().unwrap().config().clone();
        arch.blocks[1].mlp.set_activation(Activation::GeluTanh);
        let refused = |result: Result<()>| matches!(&result, Err(Error::Aqlm(AqlmError::Unsupported(part))) if part.contains("neighbouring"));
        arch.blocks[1].attention.neighbours = true;
        assert!(refused(BackendKind::Cuda.run(&arch, 4, Nothing)));
        assert!(refused(BackendKind::Cuda.models(&arch, 4).map(|_| ())));
        arch.blocks[1].attention.neighbours = false;
        // this part is known, so at most the GPU is missing
        assert!(!refused(BackendKind::Cuda.run(&arch, 4, Nothing)));
        assert!(!refused(BackendKind::Cuda.models(&arch, 4).map(|_| ())));
        for kind in [BackendKind::Cpu, BackendKind::Reference] {
            kind.run(&arch, 4, Nothing).unwrap();
            kind.models(&arch, 4).unwrap();
        }
    }

    #[test]
    fn heads_too_wide_to_decode_on_cuda_are_refused_with_or_without_a_gpu() {
        let block = BlockSpec::llama(LlamaBlock {
            hidden_size: 8,
            intermediate_size: 8,
            heads: 1,
            kv_heads: 1,
            head_dim: 258,
            epsilon: 1e-5,
            rotary: Rope {
                theta: 1e4,
                scaling: RopeScaling::None,
            },
            window: None,
        });
        let refused = BackendKind::Cuda
            .models(&ArchSpec::llama(10, 64, 1, block), 4)
            .map(|_| ());
        assert!(
            matches!(&refused, Err(Error::Aqlm(AqlmError::Unsupported(part))) if part.contains("258 numbers")),
            "{refused:?}"
        );
    }
}
