use aqlm_vocabulary::{AqlmError, CodeSettings, ModelTuning, QuantizedMatrix, Rates, Result, Tuned};
use ndarray::{Array1, Array2};

use crate::cpu::quantizer::{CodeBuffer, Places, allowances, decode, quantized_gradients};
use crate::cpu::row_major::{elements, elements_mut};
use crate::cpu::stepper::Stepper;

/// One matrix under PV-Tuning: the step of [`ModelTuner`](super::ModelTuner) for a model of a single matrix.
#[derive(Debug, Clone)]
pub struct PvMatrix {
    tuned: Tuned,
    settings: CodeSettings,
    matrix: QuantizedMatrix,
    codebooks: Stepper<f64>,
    scales: Stepper<f64>,
    codes: CodeBuffer,
}

impl PvMatrix {
    /// The matrix before the first step.
    ///
    /// # Errors
    /// `Argument` when the settings tune no codes or are out of their range.
    pub fn new(matrix: QuantizedMatrix, tuning: ModelTuning) -> Result<Self> {
        let settings = tuning
            .codes
            .ok_or_else(|| AqlmError::argument("settings of codes", "some", "none"))?;
        tuning.check_codes()?;
        Ok(Self {
            codebooks: Stepper::new(tuning.optimizer, matrix.codebooks().len()),
            scales: Stepper::new(tuning.optimizer, matrix.scales().len()),
            codes: CodeBuffer::new(&matrix, settings),
            tuned: tuning.tuned,
            settings,
            matrix,
        })
    }

    /// The matrix as it is now.
    pub fn matrix(&self) -> &QuantizedMatrix {
        &self.matrix
    }

    /// Its buffer, [out_features, in_features].
    pub fn buffer(&self) -> &Array2<f32> {
        self.codes.buffer()
    }

    /// One step, given the gradient with respect to the decoded weight, [out_features, in_features], and the
    /// order in which codebooks are visited. Returns the number of groups whose codes changed.
    ///
    /// # Errors
    /// Those of [`QuantizedMatrix::with_codes`], which the choice of codes does not cause.
    pub fn step(&mut self, gradient: &Array2<f32>, rates: Rates, order: &[usize]) -> Result<usize> {
        let places = Places::of(&self.matrix);
        let (of_codebooks, of_scales) =
            quantized_gradients(&self.matrix, &places, &decode(&self.matrix), gradient);
        let tuned = self.tuned;
        let (codebooks, scales) = (&mut self.codebooks, &mut self.scales);
        self.matrix.tune(|mut to_codebooks, mut to_scales| {
            if tuned.codebooks {
                codebooks.step(rates.lr, elements_mut(&mut to_codebooks), elements(&of_codebooks));
            }
            if tuned.scales {
                scales.step(rates.lr, elements_mut(&mut to_scales), elements(&of_scales));
            }
        });
        self.codes.add(gradient);
        self.codes.move_buffer(rates.code_lr);
        let settings = self.settings;
        let differences = self.codes.differences(&self.matrix);
        let sizes = [(self.matrix.groups().0, differences.norms.as_slice())];
        let count = allowances(&sizes, settings.max_change, settings.budget)[0];
        let recoded = self.codes.recode(&self.matrix, &differences, count, order);
        self.matrix = self
            .codes
            .refitted(self.matrix.clone().with_codes(recoded.codes)?);
        self.codes.decay(&self.matrix);
        Ok(recoded.changed)
    }
}

/// One step of an optimizer for parameters that are not quantized, `steps` steps after the first, from zero
/// moments when that is 0: what [`ModelTuner`](super::ModelTuner) does to a norm.
#[derive(Debug, Clone)]
pub struct PlainParameter {
    values: Array1<f64>,
    stepper: Stepper<f64>,
}

impl PlainParameter {
    /// Before the first step.
    pub fn new(values: Array1<f64>, tuning: &ModelTuning) -> Self {
        Self {
            stepper: Stepper::new(tuning.optimizer, values.len()),
            values,
        }
    }

    /// The values now.
    pub fn values(&self) -> &Array1<f64> {
        &self.values
    }

    /// One step along the gradient.
    pub fn step(&mut self, gradient: &Array1<f64>, lr: f64) {
        let gradient = gradient.as_standard_layout();
        if let Some(values) = self.values.as_slice_mut() {
            self.stepper.step(lr, values, elements(&gradient));
        }
    }
}
