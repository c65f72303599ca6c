use aqlm_vocabulary::{
    AqlmError, ArchSpec, BlockSpec, LayerId, NormPlace, Optimizer, Parameter, ParameterState, PartOutline,
    QuantizedMatrix, Result, Tuned,
};
use ndarray::{Array1, Array2};
use rayon::prelude::*;

use super::{Block, QuantizedLayer};
use crate::cpu::quantizer::{Places, quantized_gradients};
use crate::cpu::row_major::elements;
use crate::cpu::stepper::Stepper;

/// Why training codebooks or scales implies a quantized layer.
const QUANTIZED_ONLY: &str = "codebooks and scales are selected of quantized layers only";

/// The continuous parameters that are trained, the sums of their gradients and moments, all in f64.
#[derive(Debug, Clone)]
pub(super) struct Trained {
    optimizer: Optimizer,
    steps: u32,
    /// in the order of [`Parameter::selected`], which is sorted by block
    pub(super) parameters: Vec<TrainedParameter>,
    /// of each block's quantized layers whose codebooks or scales are trained
    places: Vec<Vec<Option<Places>>>,
}

#[derive(Debug, Clone)]
pub(super) struct TrainedParameter {
    pub(super) parameter: Parameter,
    pub(super) values: Vec<f64>,
    pub(super) gradient: Vec<f64>,
    stepper: Stepper<f64>,
}

impl Trained {
    /// These parameters, before the first step, of a model with these blocks. `outer` supplies those that
    /// belong to no block.
    pub(super) fn new(
        parameters: Vec<Parameter>,
        blocks: &[Block],
        outer: impl Fn(Parameter) -> Vec<f64>,
        tuned: Tuned,
        optimizer: Optimizer,
    ) -> Self {
        let parameters = parameters
            .into_iter()
            .map(|parameter| {
                let values = values_of_block(blocks, parameter).unwrap_or_else(|| outer(parameter));
                TrainedParameter {
                    parameter,
                    gradient: vec![0.0; values.len()],
                    stepper: Stepper::new(optimizer, values.len()),
                    values,
                }
            })
            .collect();
        let places_of = |block: &Block| {
            let of_layer = |layer: LayerId| {
                let layer = block.quantized(layer)?;
                (tuned.codebooks || tuned.scales).then(|| Places::of(layer.matrix()))
            };
            block.spec().layers().map(of_layer).collect()
        };
        Self {
            optimizer,
            steps: 0,
            parameters,
            places: blocks.iter().map(places_of).collect(),
        }
    }

    /// Adds to the gradient of a parameter, if that parameter is trained.
    pub(super) fn add(&mut self, parameter: Parameter, part: impl Iterator<Item = f64>) {
        let mut parameters = self.parameters.iter_mut();
        if let Some(trained) = parameters.find(|trained| trained.parameter == parameter) {
            for (sum, part) in trained.gradient.iter_mut().zip(part) {
                *sum += part;
            }
        }
    }

    /// Adds to the gradients of codebooks and scales, given the gradient of the decoded weight,
    /// [out_features, in_features].
    pub(super) fn add_weight(
        &mut self,
        block: usize,
        id: LayerId,
        layer: &QuantizedLayer,
        weight: &Array2<f32>,
    ) {
        if let Some(places) = &self.places[block][id.index()] {
            let (codebooks, scales) = quantized_gradients(layer.matrix(), places, layer.decoded(), weight);
            self.add(Parameter::Codebooks(block, id), codebooks.into_iter());
            self.add(Parameter::Scales(block, id), scales.into_iter());
        }
    }

    /// Adds to the gradients of a block's norms, in the order of its spec.
    pub(super) fn add_norms(&mut self, block: usize, spec: &BlockSpec, norms: &[Array1<f64>]) {
        for (place, norm) in spec.norm_places().into_iter().zip(norms) {
            self.add(Parameter::Norm(block, place), norm.iter().copied());
        }
    }

    /// Takes out the sums of the gradients, one parameter after the other, and restarts them at zero.
    pub(super) fn take_gradients(&mut self) -> Vec<f64> {
        let mut taken = Vec::new();
        for trained in &mut self.parameters {
            taken.append(&mut trained.gradient);
            trained.gradient.resize(trained.values.len(), 0.0);
        }
        taken
    }

    /// Adds sums taken by [`Trained::take_gradients`] from another tuner of the same parameters.
    ///
    /// # Errors
    /// `Shape` when their number differs; then nothing was added.
    pub(super) fn add_gradients(&mut self, sums: &[f64]) -> Result<()> {
        let expected: usize = self.parameters.iter().map(|trained| trained.values.len()).sum();
        if sums.len() != expected {
            return Err(AqlmError::Shape {
                what: "sums of gradients".into(),
                expected: vec![expected],
                found: vec![sums.len()],
            });
        }
        let mut rest = sums.iter();
        for trained in &mut self.parameters {
            for (sum, part) in trained.gradient.iter_mut().zip(&mut rest) {
                *sum += part;
            }
        }
        Ok(())
    }

    /// One step of the optimizer along the gradients summed so far, which are then reset.
    pub(super) fn step(&mut self, lr: f64) {
        self.steps = self.steps.saturating_add(1);
        self.parameters.par_iter_mut().for_each(|trained| {
            trained.stepper.step(lr, &mut trained.values, &trained.gradient);
            trained.gradient.fill(0.0);
        });
    }

    /// Steps taken.
    pub(super) fn steps(&self) -> u32 {
        self.steps
    }

    /// Takes note of a matrix's new codes.
    pub(super) fn codes_changed(&mut self, block: usize, id: LayerId, matrix: &QuantizedMatrix) {
        if let Some(places) = &mut self.places[block][id.index()] {
            *places = Places::of(matrix);
        }
    }

    /// Takes over codebooks that were fitted, where they are trained.
    pub(super) fn codebooks_changed(&mut self, block: usize, id: LayerId, matrix: &QuantizedMatrix) {
        let parameter = Parameter::Codebooks(block, id);
        let mut parameters = self.parameters.iter_mut();
        if let Some(trained) = parameters.find(|trained| trained.parameter == parameter) {
            fill(trained.values.iter_mut(), elements(matrix.codebooks()));
        }
    }

    /// Writes the values of the blocks' parameters into the blocks.
    pub(super) fn write_back(&self, blocks: &mut [Block]) {
        // Codebooks and scales of a layer are adjacent and are decoded together.
        let of_layer = |parameter| match parameter {
            Parameter::Codebooks(block, kind) | Parameter::Scales(block, kind) => Some((block, kind)),
            _ => None,
        };
        let parts = self.parameters.chunk_by(|a, b| {
            of_layer(a.parameter).is_some() && of_layer(a.parameter) == of_layer(b.parameter)
        });
        for part in parts {
            if let Some((block, kind)) = of_layer(part[0].parameter) {
                let layer = blocks[block].quantized_mut(kind).expect(QUANTIZED_ONLY);
                layer.tune(|mut codebooks, mut scales| {
                    for trained in part {
                        if let Parameter::Codebooks(..) = trained.parameter {
                            fill(codebooks.iter_mut(), &trained.values);
                        } else {
                            fill(scales.iter_mut(), &trained.values);
                        }
                    }
                });
                continue;
            }
            // the others belong to no block
            if let Parameter::Norm(block, place) = part[0].parameter {
                let index = norm_index(blocks, block, place);
                narrow(blocks[block].norms[index].iter_mut(), &part[0].values);
            }
        }
    }

    /// What [`Trained::part`] gives, without numbers.
    pub(super) fn outline(&self, arch: &ArchSpec) -> impl Iterator<Item = PartOutline> {
        self.parameters.iter().map(|trained| PartOutline::Parameter {
            parameter: trained.parameter,
            name: trained.parameter.name(arch),
            len: trained.values.len(),
        })
    }

    /// The state of one parameter; `None` beyond the last.
    pub(super) fn part(&self, arch: &ArchSpec, number: usize) -> Option<ParameterState> {
        let trained = self.parameters.get(number)?;
        let (first, second) = trained.stepper.moments();
        Some(ParameterState {
            parameter: trained.parameter,
            name: trained.parameter.name(arch),
            values: trained.values.clone(),
            first: first.to_vec(),
            second: second.to_vec(),
        })
    }

    /// Takes over the state of one parameter after `steps` steps, and discards a gradient not used yet.
    pub(super) fn restore(&mut self, steps: u32, number: usize, part: ParameterState) {
        let trained = &mut self.parameters[number];
        trained.values = part.values;
        trained.stepper = Stepper::resumed(self.optimizer, steps, part.first, part.second);
        trained.gradient.fill(0.0);
    }

    /// Goes on after this many steps.
    pub(super) fn set_steps(&mut self, steps: u32) {
        self.steps = steps;
    }

    /// The first parameter that is not finite, by its name in the checkpoint.
    pub(super) fn first_not_finite(&self, arch: &ArchSpec) -> Option<String> {
        let broken = |trained: &&TrainedParameter| trained.values.iter().any(|value| !value.is_finite());
        self.parameters
            .iter()
            .find(broken)
            .map(|trained| trained.parameter.name(arch))
    }
}

/// Replaces all values.
fn fill<'a>(to: impl Iterator<Item = &'a mut f64>, values: &[f64]) {
    to.zip(values).for_each(|(to, &value)| *to = value);
}

/// Replaces all values by others rounded to f32.
pub(super) fn narrow<'a>(to: impl Iterator<Item = &'a mut f32>, values: &[f64]) {
    to.zip(values).for_each(|(to, &value)| *to = value as f32);
}

/// f32 values as f64.
pub(super) fn widened<'a>(values: impl Iterator<Item = &'a f32>) -> Vec<f64> {
    values.map(|&value| f64::from(value)).collect()
}

/// The index of the norm at this place among the block's norms.
fn norm_index(blocks: &[Block], block: usize, place: NormPlace) -> usize {
    let norm = blocks[block].spec().norm(place);
    norm.expect("norms are selected of the block's own").0
}

/// A parameter's values, row-major; `None` if it belongs to no block.
fn values_of_block(blocks: &[Block], parameter: Parameter) -> Option<Vec<f64>> {
    let matrix = |block: usize, kind| blocks[block].quantized(kind).expect(QUANTIZED_ONLY).matrix();
    match parameter {
        Parameter::Codebooks(block, kind) => Some(matrix(block, kind).codebooks().iter().copied().collect()),
        Parameter::Scales(block, kind) => Some(matrix(block, kind).scales().to_vec()),
        Parameter::Norm(block, place) => Some(widened(
            blocks[block].norms[norm_index(blocks, block, place)].iter(),
        )),
        Parameter::FinalNorm | Parameter::Embedding | Parameter::Head => None,
    }
}
