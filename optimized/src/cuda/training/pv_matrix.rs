use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, ModelTuning, QuantizedMatrix, Rates, Tuned};

use super::super::error::check_lengths;
use super::super::llama::address;
use super::super::{Buffer, Result};
use super::code_buffer::CodeBuffer;
use super::machine::Machine;
use super::quantized::Quantized;
use super::stepper::Stepper;

/// One matrix under PV-Tuning on the device: the step of [`ModelTuner`](super::ModelTuner) for a model of a
/// single matrix.
pub struct PvMatrix {
    machine: Arc<Machine>,
    tuning: ModelTuning,
    quantized: Quantized,
    codebooks: PlainParameter,
    scales: PlainParameter,
    codes: CodeBuffer,
    steps: u32,
}

impl PvMatrix {
    /// The matrix before the first step.
    ///
    /// # Errors
    /// `Aqlm` with `Argument` when the settings tune no codes or are out of their range, with `Unsupported`
    /// for a beam that is too wide; `Memory`, `Driver`.
    pub fn new(machine: &Arc<Machine>, matrix: &QuantizedMatrix, tuning: ModelTuning) -> Result<Self> {
        let settings = tuning
            .codes
            .ok_or_else(|| AqlmError::argument("settings of codes", "some", "none"))?;
        settings.check()?;
        let quantized = Quantized::new(machine, matrix)?;
        let values = |values: Vec<f64>| PlainParameter::new(machine, &values, &tuning);
        Ok(Self {
            machine: Arc::clone(machine),
            codebooks: values(matrix.codebooks().iter().copied().collect())?,
            scales: values(matrix.scales().to_vec())?,
            codes: CodeBuffer::new(machine, &quantized, settings)?,
            tuning,
            quantized,
            steps: 0,
        })
    }

    /// The matrix as it is now.
    ///
    /// # Errors
    /// `Driver`.
    pub fn matrix(&self) -> Result<QuantizedMatrix> {
        self.quantized.matrix(&self.machine)
    }

    /// Its buffer, row-major [out_features, in_features].
    ///
    /// # Errors
    /// `Driver`.
    pub fn buffer(&self) -> Result<Vec<f32>> {
        self.codes.on_host()
    }

    /// One step, given the gradient with respect to the decoded weight, row-major [out_features,
    /// in_features], and the order in which codebooks are visited. Returns the number of groups whose codes
    /// changed.
    ///
    /// # Errors
    /// `Length` for a gradient of another length; `Memory`, `Driver`.
    pub fn step(&mut self, gradient: &[f32], rates: Rates, order: &[usize]) -> Result<usize> {
        check_lengths(&[("a weight's gradient", self.codes.len(), gradient.len())])?;
        let machine = &*self.machine;
        let gradient = machine.upload(gradient, "the gradient of a weight")?;
        let Tuned {
            codebooks, scales, ..
        } = self.tuning.tuned;
        self.quantized.add_gradients(
            machine,
            &gradient,
            codebooks.then_some(&self.codebooks.gradient),
            scales.then_some(&self.scales.gradient),
        )?;
        self.codes.add(&gradient)?;
        if codebooks {
            self.codebooks.move_along(rates.lr)?;
            self.quantized.codebooks = Arc::new(self.codebooks.values.try_clone()?);
        }
        if scales {
            self.scales.move_along(rates.lr)?;
            self.quantized.scales = Arc::new(self.scales.values.try_clone()?);
        }
        self.steps += 1;
        self.codes.move_buffer(rates.code_lr, self.steps)?;
        let visits: Vec<u32> = order.iter().map(|&book| book as u32).collect();
        let visits = machine.upload(&visits, "the order of codebooks")?;
        let changed = machine.zeros::<u32>(1, "the number of changed groups")?;
        let (differences, chosen) = self.codes.of_matrix(&self.quantized)?;
        let [visits_there, changed_there] =
            [&visits, &changed].map(|buffer| address(machine.device(), buffer));
        let quantized = &mut self.quantized;
        self.codes
            .recode(quantized, &differences, &chosen, visits_there, changed_there)?;
        self.codes.decay(quantized)?;
        quantized.codes_changed();
        let changed = machine.device().download(&changed)?;
        Ok(changed.into_iter().sum::<u32>() as usize)
    }
}

/// Parameters that are not codes, with their optimizer: what [`ModelTuner`](super::ModelTuner) does to a
/// norm.
pub struct PlainParameter {
    machine: Arc<Machine>,
    values: Buffer<f64>,
    gradient: Buffer<f64>,
    stepper: Stepper<f64>,
    steps: u32,
}

impl PlainParameter {
    /// Before the first step.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn new(machine: &Arc<Machine>, values: &[f64], tuning: &ModelTuning) -> Result<Self> {
        Ok(Self {
            machine: Arc::clone(machine),
            values: machine.upload(values, "parameters")?,
            gradient: machine.zeros(values.len(), "gradients")?,
            stepper: Stepper::new(machine, tuning.optimizer, values.len())?,
            steps: 0,
        })
    }

    /// The values now.
    ///
    /// # Errors
    /// `Driver`.
    pub fn values(&self) -> Result<Vec<f64>> {
        self.machine.device().download(&self.values)
    }

    /// One step along the gradient.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    ///
    /// # Panics
    /// When there are more numbers of the gradient than parameters.
    pub fn step(&mut self, gradient: &[f64], lr: f64) -> Result<()> {
        self.gradient.write(0, gradient)?;
        self.move_along(lr)
    }

    fn move_along(&mut self, lr: f64) -> Result<()> {
        self.steps += 1;
        self.stepper.step(lr, self.steps, &self.values, &self.gradient)
    }
}
