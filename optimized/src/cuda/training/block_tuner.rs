use std::sync::{Arc, OnceLock};

use aqlm_vocabulary::{AdamDecay, AqlmError, BlockTraining, LayerId, Parameter, PartSums, Tuned};

use super::super::{Buffer, Result};
use super::block::{Block, Decoded};
use super::machine::Machine;
use super::trained::{Trained, widened};
use crate::cpu::llama::Wanted;

/// A block whose codebooks, scales and norms are trained to reproduce target outputs. Codes, biases and dense
/// layers stay fixed (paper section 3.4, algorithm 1 lines 15 to 22).
///
/// Activations and their gradients are f32; parameters, the sums of their gradients, moments and losses are
/// f64. A failure of the device in a method that returns no error is kept and returned by the next loss.
pub struct BlockTuner {
    machine: Arc<Machine>,
    block: Block,
    /// of the current parameters; made on first use
    decoded: OnceLock<Decoded>,
    trained: std::result::Result<Trained, AqlmError>,
    wanted: Wanted,
}

impl BlockTuner {
    /// The state before the first step. Of `tuned`, only the parameters that a block has are trained.
    pub fn new(machine: &Arc<Machine>, block: &Block, tuned: Tuned, decay: AdamDecay) -> Self {
        let tuned = Tuned {
            embedding: false,
            head: false,
            ..tuned
        };
        let is_quantized = |layer: LayerId| block.quantized(layer).is_some();
        let layers = || block.spec.layers();
        let quantized: Vec<LayerId> = layers().filter(|&layer| is_quantized(layer)).collect();
        let mut parameters =
            Parameter::selected(std::slice::from_ref(&*block.spec), &[quantized], false, tuned);
        parameters.retain(|&parameter| parameter != Parameter::FinalNorm);
        let trained = parameters
            .into_iter()
            .map(|parameter| {
                Ok((
                    parameter,
                    block_values(machine, std::slice::from_ref(block), parameter)?,
                ))
            })
            .collect::<Result<Vec<_>>>()
            .and_then(|parameters| Trained::new(machine, parameters, tuned, decay.into()));
        Self {
            machine: Arc::clone(machine),
            decoded: OnceLock::new(),
            trained: trained.map_err(AqlmError::from),
            wanted: Wanted {
                x: false,
                weights: layers()
                    .map(|layer| is_quantized(layer) && (tuned.codebooks || tuned.scales))
                    .collect(),
                biases: false,
                norms: tuned.norms,
            },
            block: block.clone(),
        }
    }

    /// The squared error of each sequence, summed over its output elements, for inputs and targets [rows,
    /// hidden] that hold sequences of `tokens` rows.
    ///
    /// # Errors
    /// A failure that was kept; `Length`, `Memory`, `Driver`, `Library`.
    pub fn losses(&self, x: Buffer<f32>, targets: &Buffer<f32>, tokens: usize) -> Result<Vec<f64>> {
        self.trained()?;
        let machine = &*self.machine;
        let (y, _) = machine.forward(machine.precision(), &self.block, self.decoded()?, x, tokens)?;
        let (squares, _) = machine.squares(&y, targets, self.block.spec.hidden_size(), None)?;
        Ok(of_sequences(&squares, tokens))
    }

    /// Adds `scale` times the gradients of [`BlockTuner::losses`] and returns those losses. Each call adds
    /// one number to each sum.
    ///
    /// # Errors
    /// As [`BlockTuner::losses`]; gradients added before an error stay.
    pub fn accumulate(
        &mut self,
        x: Buffer<f32>,
        targets: &Buffer<f32>,
        tokens: usize,
        scale: f64,
    ) -> Result<Vec<f64>> {
        let trained = self.trained()?;
        let machine = &*self.machine;
        let (precision, decoded) = (machine.precision(), self.decoded()?);
        let (y, trace) = machine.forward(precision, &self.block, decoded, x, tokens)?;
        let factor = (2.0 * scale) as f32;
        let (squares, _) = machine.squares(&y, targets, self.block.spec.hidden_size(), Some(factor))?;
        machine.backward(
            precision,
            &self.block,
            decoded,
            &trace,
            y,
            &self.wanted,
            &mut |gradient| trained.add(0, &self.block, &gradient),
        )?;
        Ok(of_sequences(&squares, tokens))
    }

    fn decoded(&self) -> Result<&Decoded> {
        if let Some(decoded) = self.decoded.get() {
            return Ok(decoded);
        }
        let decoded = self.block.decoded(&self.machine)?;
        Ok(self.decoded.get_or_init(|| decoded))
    }

    fn trained(&self) -> Result<&Trained> {
        match &self.trained {
            Ok(trained) => Ok(trained),
            Err(error) => Err(AqlmError::Device(error.to_string()).into()),
        }
    }

    /// Keeps a failure for the next loss.
    fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.trained = Err(error.into())).ok()
    }
}

/// Sums over each sequence, in the order of its rows.
fn of_sequences(rows: &[f64], tokens: usize) -> Vec<f64> {
    rows.chunks(tokens.max(1)).map(|rows| rows.iter().sum()).collect()
}

/// A block parameter's values, row-major; none for a parameter that belongs to no block.
pub(super) fn block_values(machine: &Machine, blocks: &[Block], parameter: Parameter) -> Result<Vec<f64>> {
    let device = machine.device();
    match parameter {
        Parameter::Codebooks(block, layer) => match blocks[block].quantized(layer) {
            Some(quantized) => device.download(&*quantized.codebooks),
            None => Ok(Vec::new()),
        },
        Parameter::Scales(block, layer) => match blocks[block].quantized(layer) {
            Some(quantized) => device.download(&*quantized.scales),
            None => Ok(Vec::new()),
        },
        Parameter::Norm(block, place) => match blocks[block].norm(place) {
            Some(norm) => Ok(widened(&device.download(norm.weight)?)),
            None => Ok(Vec::new()),
        },
        Parameter::FinalNorm | Parameter::Embedding | Parameter::Head => Ok(Vec::new()),
    }
}

impl PartSums for BlockTuner {
    /// Nothing if the device fails: no other rank accepts that.
    fn take(&mut self) -> Vec<f64> {
        match &mut self.trained {
            Ok(trained) => {
                let taken = trained.take_gradients();
                self.keep(taken).unwrap_or_default()
            }
            Err(_) => Vec::new(),
        }
    }

    fn add(&mut self, sums: &[f64]) -> aqlm_vocabulary::Result<()> {
        self.trained()?;
        match &mut self.trained {
            Ok(trained) => Ok(trained.add_gradients(sums)?),
            Err(_) => Ok(()),
        }
    }
}

impl BlockTraining for BlockTuner {
    type Block = Block;

    fn is_idle(&self) -> bool {
        self.trained
            .as_ref()
            .is_ok_and(|trained| trained.parameters.is_empty())
    }

    fn block(&self) -> &Block {
        &self.block
    }

    fn step(&mut self, lr: f64) {
        let Ok(trained) = &mut self.trained else {
            return;
        };
        let stepped = trained
            .step(lr)
            .and_then(|()| trained.write_back(std::slice::from_mut(&mut self.block)));
        self.decoded = OnceLock::new();
        self.keep(stepped);
    }
}
