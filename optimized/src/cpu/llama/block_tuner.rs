use aqlm_vocabulary::{AdamDecay, AqlmError, BlockTraining, LayerId, Parameter, PartSums, Result, Tuned};
use ndarray::{Array3, ArrayView3, Zip};
use rayon::prelude::*;

use super::sequences::parts;
use super::trained::Trained;
use super::{Block, BlockGradients, Rotary, Sequences, Wanted, block_backward, block_forward_traced};
use crate::cpu::row_major::elements;
use crate::cpu::vectorize::squared_distance;

/// A block whose codebooks, scales and norms are trained to reproduce target outputs. Codes, biases and dense
/// layers stay fixed (paper section 3.4, algorithm 1 lines 15 to 22).
///
/// [`BlockTuner::accumulate`] sums gradients until [`BlockTraining::step`] uses them. Activations and their
/// gradients are f32; parameters, the sums of their gradients, moments and losses are f64.
#[derive(Debug, Clone)]
pub struct BlockTuner {
    block: Block,
    trained: Trained,
    wanted: Wanted,
}

impl BlockTuner {
    /// The state before the first step. Of `tuned`, only the parameters that a block has are trained.
    pub fn new(block: &Block, tuned: Tuned, decay: AdamDecay) -> Self {
        let tuned = Tuned {
            embedding: false,
            head: false,
            ..tuned
        };
        let is_quantized = |layer: LayerId| block.quantized(layer).is_some();
        let quantized: Vec<LayerId> = block
            .spec()
            .layers()
            .filter(|&layer| is_quantized(layer))
            .collect();
        let mut parameters =
            Parameter::selected(std::slice::from_ref(block.spec()), &[quantized], false, tuned);
        parameters.retain(|&parameter| parameter != Parameter::FinalNorm);
        let blocks = std::slice::from_ref(block);
        Self {
            // The remaining parameters all belong to the block.
            trained: Trained::new(parameters, blocks, |_| Vec::new(), tuned, decay.into()),
            block: block.clone(),
            wanted: Wanted {
                x: false,
                weights: block
                    .spec()
                    .layers()
                    .map(|layer| is_quantized(layer) && (tuned.codebooks || tuned.scales))
                    .collect(),
                biases: false,
                norms: tuned.norms,
            },
        }
    }

    /// The squared error of each of these sequences, summed over its output elements.
    ///
    /// # Errors
    /// `Shape` when inputs and targets do not match each other, the block or the rotary tables; errors of
    /// reading the sequences.
    pub fn losses<S: Sequences>(
        &self,
        rotary: &Rotary,
        inputs: &S,
        targets: &S,
        sequences: &[usize],
    ) -> std::result::Result<Vec<f64>, S::Error> {
        let mut losses = Vec::with_capacity(sequences.len());
        for part in parts(&check(&self.block, rotary, inputs, targets, sequences)?) {
            let part = &sequences[part];
            let x = inputs.read(part)?;
            let (y, _) = block_forward_traced(&self.block, rotary, x.view());
            drop(x);
            losses.extend(squares(&y, targets.read(part)?.view()));
        }
        Ok(losses)
    }

    /// Adds `scale` times the gradients of [`BlockTuner::losses`] and returns those losses. Sequences go
    /// through the block in parts, and each part adds one number to each sum.
    ///
    /// # Errors
    /// As [`BlockTuner::losses`]; gradients added before an error stay.
    pub fn accumulate<S: Sequences>(
        &mut self,
        rotary: &Rotary,
        inputs: &S,
        targets: &S,
        sequences: &[usize],
        scale: f64,
    ) -> std::result::Result<Vec<f64>, S::Error> {
        let mut losses = Vec::with_capacity(sequences.len());
        let factor = (2.0 * scale) as f32;
        for part in parts(&check(&self.block, rotary, inputs, targets, sequences)?) {
            let part = &sequences[part];
            let x = inputs.read(part)?;
            let (mut y, trace) = block_forward_traced(&self.block, rotary, x.view());
            drop(x);
            let targets = targets.read(part)?;
            losses.extend(squares(&y, targets.view()));
            Zip::from(&mut y)
                .and(&targets)
                .par_for_each(|y, target| *y = factor * (*y - target));
            drop(targets);
            let mut gradients = BlockGradients::zeros(&self.block, &self.wanted);
            block_backward(
                &self.block,
                rotary,
                &trace,
                y.view(),
                &self.wanted,
                &mut gradients,
            );
            for (id, gradient) in self.block.spec().layers().zip(&gradients.weights) {
                if let (Some(layer), Some(gradient)) = (self.block.quantized(id), gradient) {
                    self.trained.add_weight(0, id, layer, gradient);
                }
            }
            self.trained.add_norms(0, self.block.spec(), &gradients.norms);
        }
        Ok(losses)
    }
}

impl PartSums for BlockTuner {
    fn take(&mut self) -> Vec<f64> {
        self.trained.take_gradients()
    }

    fn add(&mut self, sums: &[f64]) -> Result<()> {
        self.trained.add_gradients(sums)
    }
}

impl BlockTraining for BlockTuner {
    type Block = Block;

    fn is_idle(&self) -> bool {
        self.trained.parameters.is_empty()
    }

    fn block(&self) -> &Block {
        &self.block
    }

    fn step(&mut self, lr: f64) {
        self.trained.step(lr);
        self.trained.write_back(std::slice::from_mut(&mut self.block));
    }
}

/// The lengths of these sequences, if inputs, targets and rotary tables match.
fn check<S: Sequences>(
    block: &Block,
    rotary: &Rotary,
    inputs: &S,
    targets: &S,
    sequences: &[usize],
) -> Result<Vec<usize>> {
    let (lengths, goals) = (inputs.lengths(), targets.lengths());
    let hidden_size = block.spec().hidden_size();
    let expected: Vec<usize> = lengths.iter().map(|&n| n.min(rotary.positions())).collect();
    for (what, found, width) in [
        ("fine-tuning inputs", &lengths, inputs.width()),
        ("fine-tuning targets", &goals, targets.width()),
    ] {
        if *found != expected || width != hidden_size {
            let shape = |lengths: &[usize], width| vec![lengths.len(), lengths.iter().sum(), width];
            return Err(AqlmError::Shape {
                what: what.into(),
                expected: shape(&expected, hidden_size),
                found: shape(found, width),
            });
        }
    }
    Ok(sequences.iter().map(|&sequence| lengths[sequence]).collect())
}

/// The squared differences of outputs and targets, summed over each sequence.
fn squares(y: &Array3<f32>, targets: ArrayView3<'_, f32>) -> Vec<f64> {
    y.outer_iter()
        .into_par_iter()
        .zip(targets.outer_iter())
        .map(|(y, target)| {
            let target = target.as_standard_layout();
            squared_distance(elements(&y), elements(&target))
        })
        .collect()
}
