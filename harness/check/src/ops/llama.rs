//! Shared by the operations on blocks and models.

use std::sync::Arc;

use aqlm_engine::backends::cuda::table;
use aqlm_engine::backends::{CalibrationPrecision, CpuBackend, CudaMachine};
use aqlm_engine::ops::Weights;
use aqlm_optimized::cuda::CudaError;
use aqlm_optimized::cuda::llama::{Builder, Model, Options, Rung};
use aqlm_optimized::cuda::training::Precision;
use aqlm_reference::llama::{Block, Rotary};
use aqlm_vocabulary::{ArchSpec, BlockWeights, Input, RoutedMlp, StreamKey};
use ndarray::{Array1, Array2};

use super::{CaseData, Cost};
use crate::cases::{Case, LlamaCase, LlamaData};
use crate::keep::{Operands, Tensors};
use crate::subject::{Cuda, Subject};
use aqlm_formats::Result;

/// A small Llama.
#[derive(Debug, Clone)]
pub(crate) struct Llama {
    pub(super) problem: LlamaCase,
    pub(super) data: LlamaData,
    /// the operation's own random streams
    pub(super) key: StreamKey,
}

impl Operands for Llama {
    fn add_to(&self, tensors: &mut Tensors) {
        tensors.llama(&self.data);
    }
}

impl CaseData for Llama {
    fn new(case: &Case) -> Result<Self> {
        let problem = case.llama()?;
        Ok(Self {
            problem,
            data: problem.data(case.seed),
            key: problem.key(case.seed),
        })
    }

    /// Hidden states, their gradients and a block's weights, and its linear layers over all tokens.
    fn cost(&self) -> Cost {
        let spec = &self.data.config.blocks[0];
        let rows = self.problem.sequences * self.problem.tokens;
        // the rows of one expert, if all have the same
        let routed = |mlp: &RoutedMlp| (rows * mlp.used).div_ceil(mlp.experts.len());
        let of_expert = spec.mlp.routed().map_or(rows, routed);
        let product = |layer| {
            let (out, inputs) = spec.shape(layer);
            match spec.linear(layer).reads {
                Input::Expert(_) | Input::ExpertActivated(_) => [of_expert, inputs, out],
                _ => [rows, inputs, out],
            }
        };
        Cost {
            bytes: (2 * self.data.x.len() + spec.parameters()) * size_of::<f32>(),
            products: spec.layers().map(product).collect(),
        }
    }
}

impl Llama {
    /// The first block and its rotary tables, as reference types.
    pub(super) fn exact(&self) -> (Block, Rotary) {
        let rotary = Rotary::of_model(&self.data.config, self.problem.tokens);
        (self.data.block(0), rotary)
    }

    /// A CPU backend for this model.
    pub(super) fn on_cpu(&self) -> Result<CpuBackend> {
        CpuBackend::new(&self.data.config, self.problem.tokens)
    }

    /// A GPU's machine for quantizing and training this model.
    pub(super) fn on_machine(&self, cuda: &Cuda) -> Result<CudaMachine> {
        let device = Arc::clone(&cuda.device);
        let precision = cuda.training.unwrap_or_default();
        let activations = match precision {
            Precision::Bf16 => CalibrationPrecision::Bf16,
            _ => CalibrationPrecision::F32,
        };
        let (config, tokens) = (&self.data.config, self.problem.tokens);
        CudaMachine::calibrating(device, config, tokens, precision, activations)
    }

    pub(super) fn sequences(&self) -> Vec<&[u32]> {
        self.data.tokens.iter().map(Vec::as_slice).collect()
    }

    /// The whole model on a GPU.
    pub(super) fn on_gpu<'d>(&self, cuda: &'d Cuda) -> std::result::Result<Model<'d>, CudaError> {
        let rung = RUNGS.iter().find(|(name, _)| *name == cuda.kernel);
        let options = Options {
            positions: self.problem.tokens,
            prompts: true,
            rung: rung.map_or(Rung::Plain, |&(_, rung)| rung),
        };
        let data = &self.data;
        let mut builder = Builder::new(&cuda.device, &data.config, options)?;
        for block in &data.blocks {
            builder.push(block)?;
        }
        builder.finish(
            &table(&data.embedding, "the embedding")?,
            &data.norm.to_vec(),
            Some(&table(&data.lm_head, "lm_head")?),
        )
    }
}

impl Weights for LlamaData {
    fn config(&self) -> &ArchSpec {
        &self.config
    }

    fn embedding(&self) -> Result<Array2<f32>> {
        Ok(self.embedding.clone())
    }

    fn block(&self, index: usize) -> Result<BlockWeights> {
        Ok(self.blocks[index].clone())
    }

    fn final_norm(&self) -> Result<Array1<f32>> {
        Ok(self.norm.clone())
    }

    fn lm_head(&self) -> Result<Array2<f32>> {
        Ok(self.lm_head.clone())
    }
}

/// The ways in which a GPU computes a model.
const RUNGS: [(&str, Rung); 2] = [("plain", Rung::Plain), ("joined", Rung::Joined)];

/// Each of these ways on a GPU.
pub(super) fn rungs(machine: &Subject) -> Vec<Subject> {
    match machine {
        Subject::Cuda(cuda) => RUNGS
            .iter()
            .map(|&(kernel, _)| {
                Subject::Cuda(Cuda {
                    kernel,
                    ..cuda.clone()
                })
            })
            .collect(),
        other => vec![other.clone()],
    }
}

/// Each of these ways on a GPU, and the f32 of quantizing and training.
pub(super) fn rungs_and_single(machine: &Subject) -> Vec<Subject> {
    let mut ways = rungs(machine);
    if let Subject::Cuda(_) = machine {
        ways.push(machine.with(Precision::Single));
    }
    ways
}
