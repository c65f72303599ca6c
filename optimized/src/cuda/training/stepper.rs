use std::sync::Arc;

use aqlm_vocabulary::Optimizer;
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::machine::Machine;
use super::plan::steps::{Kept, Step, step};

/// The type in which parameters and moments are kept. Steps are computed in f64.
pub(super) trait Number: DeviceRepr + ValidAsZeroBits + Copy {
    /// whether it is f64
    const WIDE: bool;
    /// the number in f64, exactly
    fn wide(self) -> f64;
    /// the nearest number of this type
    fn rounded(value: f64) -> Self;
}

impl Number for f64 {
    const WIDE: bool = true;

    fn wide(self) -> f64 {
        self
    }

    fn rounded(value: f64) -> Self {
        value
    }
}

impl Number for f32 {
    const WIDE: bool = false;

    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn rounded(value: f64) -> Self {
        value as f32
    }
}

/// An optimizer at work on one array of parameters, with the moments of the gradient.
pub(super) struct Stepper<T> {
    machine: Arc<Machine>,
    optimizer: Optimizer,
    /// `None` if they are the gradient itself
    first: Option<Buffer<T>>,
    second: Buffer<T>,
}

impl<T: Number> Stepper<T> {
    /// Before the first step, for `count` parameters.
    pub(super) fn new(machine: &Arc<Machine>, optimizer: Optimizer, count: usize) -> Result<Self> {
        Ok(Self {
            machine: Arc::clone(machine),
            optimizer,
            first: Some(machine.zeros(count, "first moments")?),
            second: machine.zeros(count, "second moments")?,
        })
    }

    /// Before the first step, without first moments where their decay is 0.
    pub(super) fn lean(machine: &Arc<Machine>, optimizer: Optimizer, count: usize) -> Result<Self> {
        let lean = optimizer.decay.beta1 == 0.0;
        Ok(Self {
            machine: Arc::clone(machine),
            optimizer,
            first: (!lean)
                .then(|| machine.zeros(count, "first moments"))
                .transpose()?,
            second: machine.zeros(count, "second moments")?,
        })
    }

    /// Lengths of the first and second moments.
    pub(super) fn lens(&self) -> [usize; 2] {
        [self.first.as_ref().map_or(0, Buffer::len), self.second.len()]
    }

    /// First and second moments on the host; no first ones if they are the gradient.
    pub(super) fn moments(&self) -> Result<[Vec<f64>; 2]> {
        let wide = |buffer: &Buffer<T>| -> Result<Vec<f64>> {
            let values = self.machine.device().download(buffer)?;
            Ok(values.into_iter().map(T::wide).collect())
        };
        let first = self.first.as_ref().map(wide).transpose()?;
        Ok([first.unwrap_or_default(), wide(&self.second)?])
    }

    /// Replaces the moments by lists of [`Stepper::lens`].
    pub(super) fn restore(&mut self, first: &[f64], second: &[f64]) -> Result<()> {
        let narrowed = |values: &[f64]| -> Vec<T> { values.iter().map(|&value| T::rounded(value)).collect() };
        if let Some(to) = &mut self.first {
            to.write(0, &narrowed(first))?;
        }
        self.second.write(0, &narrowed(second))
    }

    /// The `number`th step, from 1, along a gradient that is then zero.
    pub(super) fn step(&self, lr: f64, number: u32, values: &Buffer<T>, gradient: &Buffer<T>) -> Result<()> {
        let (machine, device) = (&*self.machine, self.machine.device());
        let kept = Kept {
            wide: T::WIDE,
            lean: self.first.is_none(),
        };
        let first = self.first.as_ref().map_or(0, |first| address(device, first));
        let pointers = [
            address(device, values),
            address(device, gradient),
            first,
            address(device, &self.second),
        ];
        match step(values.len(), &self.optimizer, lr, number, kept) {
            Step::Adam(plan) => machine.run(&plan, &pointers),
            Step::Lamb {
                moments,
                ratio,
                update,
                squares,
            } => {
                let squares: Buffer<f64> = machine.space(squares, "squares of a step")?;
                let factor: Buffer<f64> = machine.zeros(1, "the factor of a step")?;
                let [squares_there, factor_there] = [&squares, &factor].map(|buffer| address(device, buffer));
                let with = |last: u64| pointers.iter().copied().chain([last]).collect::<Vec<_>>();
                machine.run(&moments, &with(squares_there))?;
                machine.run(&ratio, &[squares_there, factor_there])?;
                machine.run(&update, &with(factor_there))
            }
        }
    }
}
