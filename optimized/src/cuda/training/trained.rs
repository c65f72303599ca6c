use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, ArchSpec, Optimizer, Parameter, ParameterState, PartOutline, Tuned};
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::super::error::During;
use super::super::llama::address;
use super::super::{Buffer, Result};
use super::block::Block;
use super::gradients::BlockGradient;
use super::machine::Machine;
use super::plan;
use super::stepper::Stepper;

/// The parameters that are trained, the sums of their gradients and moments, all in f64 on the device.
pub(super) struct Trained {
    machine: Arc<Machine>,
    tuned: Tuned,
    steps: u32,
    /// in the order of [`Parameter::selected`], which is sorted by block
    pub(super) parameters: Vec<TrainedParameter>,
}

pub(super) struct TrainedParameter {
    pub(super) parameter: Parameter,
    pub(super) values: Buffer<f64>,
    pub(super) gradient: Buffer<f64>,
    stepper: Stepper<f64>,
}

impl Trained {
    /// These parameters with their values, before the first step.
    pub(super) fn new(
        machine: &Arc<Machine>,
        parameters: Vec<(Parameter, Vec<f64>)>,
        tuned: Tuned,
        optimizer: Optimizer,
    ) -> Result<Self> {
        let trained = |(parameter, values): (Parameter, Vec<f64>)| -> Result<_> {
            let count = values.len();
            Ok(TrainedParameter {
                parameter,
                values: machine.upload(&values, "parameters")?,
                gradient: machine.zeros(count, "gradients")?,
                stepper: Stepper::new(machine, optimizer, count)?,
            })
        };
        Ok(Self {
            machine: Arc::clone(machine),
            tuned,
            steps: 0,
            parameters: parameters.into_iter().map(trained).collect::<Result<_>>()?,
        })
    }

    /// The sums of a parameter's gradient, if that parameter is trained.
    pub(super) fn gradient(&self, parameter: Parameter) -> Option<&Buffer<f64>> {
        let mut parameters = self.parameters.iter();
        parameters
            .find(|trained| trained.parameter == parameter)
            .map(|trained| &trained.gradient)
    }

    /// Adds a gradient of block number `index`.
    pub(super) fn add(&self, index: usize, block: &Block, gradient: &BlockGradient) -> Result<()> {
        match gradient {
            BlockGradient::Weight(layer, weight) => {
                let Some(quantized) = block.quantized(*layer) else {
                    return Ok(());
                };
                let codebooks = self.gradient(Parameter::Codebooks(index, *layer));
                let scales = self.gradient(Parameter::Scales(index, *layer));
                quantized.add_gradients(&self.machine, weight, codebooks, scales)
            }
            BlockGradient::Norm(which, sums) => {
                let place = block.spec().norms[*which].place;
                match self.gradient(Parameter::Norm(index, place)) {
                    Some(total) => self.machine.add_chunks(sums, total),
                    None => Ok(()),
                }
            }
            // Biases stay fixed.
            BlockGradient::Bias(..) => Ok(()),
        }
    }

    /// Whether gradients of decoded weights are needed.
    pub(super) fn needs_weights(&self) -> bool {
        self.tuned.codebooks || self.tuned.scales
    }

    /// Takes out the sums of the gradients, one parameter after the other, and restarts them at zero.
    pub(super) fn take_gradients(&mut self) -> Result<Vec<f64>> {
        let device = self.machine.device();
        let mut taken = Vec::new();
        for trained in &mut self.parameters {
            taken.extend(device.download(&trained.gradient)?);
            reset(&self.machine, &mut trained.gradient)?;
        }
        Ok(taken)
    }

    /// Adds sums taken by [`Trained::take_gradients`] from another tuner of the same parameters.
    pub(super) fn add_gradients(&mut self, sums: &[f64]) -> Result<()> {
        if sums.len() != self.len() {
            return Err(shape("sums of gradients".into(), self.len(), sums.len()).into());
        }
        let mut rest = sums;
        for trained in &self.parameters {
            let (own, others) = rest.split_at(trained.gradient.len());
            let part = self.machine.upload(own, "gradients")?;
            self.machine.add_wide(&part, &trained.gradient)?;
            rest = others;
        }
        Ok(())
    }

    /// Number of parameters.
    pub(super) fn len(&self) -> usize {
        self.parameters.iter().map(|trained| trained.values.len()).sum()
    }

    /// Steps taken so far.
    pub(super) fn steps(&self) -> u32 {
        self.steps
    }

    /// One step along the gradients summed so far, which are then reset.
    pub(super) fn step(&mut self, lr: f64) -> Result<()> {
        self.steps = self.steps.saturating_add(1);
        for trained in &self.parameters {
            let (values, gradient) = (&trained.values, &trained.gradient);
            trained.stepper.step(lr, self.steps, values, gradient)?;
        }
        Ok(())
    }

    /// Gives the blocks copies of their parameters' values. Earlier copies of the blocks keep theirs.
    pub(super) fn write_back(&self, blocks: &mut [Block]) -> Result<()> {
        for trained in &self.parameters {
            match trained.parameter {
                Parameter::Codebooks(block, layer) => {
                    if let Some(quantized) = blocks[block].quantized_mut(layer) {
                        quantized.codebooks = Arc::new(trained.values.try_clone()?);
                    }
                }
                Parameter::Scales(block, layer) => {
                    if let Some(quantized) = blocks[block].quantized_mut(layer) {
                        quantized.scales = Arc::new(trained.values.try_clone()?);
                    }
                }
                Parameter::Norm(block, place) => {
                    blocks[block].set_norm(place, self.machine.narrowed(&trained.values)?);
                }
                // These belong to no block.
                Parameter::FinalNorm | Parameter::Embedding | Parameter::Head => {}
            }
        }
        Ok(())
    }

    /// What [`Trained::part`] gives, without numbers.
    pub(super) fn outline(&self, arch: &ArchSpec) -> impl Iterator<Item = PartOutline> {
        self.parameters.iter().map(|trained| PartOutline::Parameter {
            parameter: trained.parameter,
            name: trained.parameter.name(arch),
            len: trained.values.len(),
        })
    }

    /// The state of one parameter, on the host; `None` beyond the last.
    pub(super) fn part(&self, arch: &ArchSpec, number: usize) -> Result<Option<ParameterState>> {
        let Some(trained) = self.parameters.get(number) else {
            return Ok(None);
        };
        let [first, second] = trained.stepper.moments()?;
        Ok(Some(ParameterState {
            parameter: trained.parameter,
            name: trained.parameter.name(arch),
            values: self.machine.device().download(&trained.values)?,
            first,
            second,
        }))
    }

    /// Takes over the state of one parameter, and discards a gradient not used yet.
    pub(super) fn restore(&mut self, number: usize, part: &ParameterState) -> Result<()> {
        let trained = &mut self.parameters[number];
        trained.values.write(0, &part.values)?;
        trained.stepper.restore(&part.first, &part.second)?;
        reset(&self.machine, &mut trained.gradient)
    }

    /// Goes on after this many steps.
    pub(super) fn set_steps(&mut self, steps: u32) {
        self.steps = steps;
    }

    /// The first parameter that is not finite, by its name in the checkpoint.
    pub(super) fn first_not_finite(&self, arch: &ArchSpec) -> Result<Option<String>> {
        for trained in &self.parameters {
            let values = self.machine.device().download(&trained.values)?;
            if values.iter().any(|value| !value.is_finite()) {
                return Ok(Some(trained.parameter.name(arch)));
            }
        }
        Ok(None)
    }
}

/// Writes zeros.
pub(super) fn reset<T: DeviceRepr + ValidAsZeroBits>(
    machine: &Machine,
    buffer: &mut Buffer<T>,
) -> Result<()> {
    let stream = machine.device().stream();
    stream.memset_zeros(buffer).during("writing zeros")
}

pub(super) fn shape(what: String, expected: usize, found: usize) -> AqlmError {
    AqlmError::Shape {
        what,
        expected: vec![expected],
        found: vec![found],
    }
}

/// f32 values as f64.
pub(super) fn widened<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<f64> {
    values.into_iter().map(|&value| f64::from(value)).collect()
}

impl Machine {
    /// f64 values rounded to f32.
    pub(super) fn narrowed(&self, from: &Buffer<f64>) -> Result<Buffer<f32>> {
        let to = self.space(from.len(), "parameters in f32")?;
        let device = self.device();
        self.run(
            &plan::narrow(from.len()),
            &[address(device, from), address(device, &to)],
        )?;
        Ok(to)
    }
}
