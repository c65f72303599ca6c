use aqlm_vocabulary::{Optimizer, StepRule};
use ndarray::{Array, ArrayViewMut, Dimension};

use crate::adam::Moments;
use crate::official_adam::OfficialMoments;

/// An optimizer at work on one array of parameters: the rule, and the moments of the gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Stepper {
    optimizer: Optimizer,
    moments: Either,
}

#[derive(Debug, Clone, PartialEq)]
enum Either {
    Adam(Moments),
    Official(OfficialMoments),
}

impl Stepper {
    /// The state before the first step, for `len` parameters.
    pub fn new(optimizer: Optimizer, len: usize) -> Self {
        Self::resumed(optimizer, 0, vec![0.0; len], vec![0.0; len])
    }

    /// The state after `steps` steps, with these moments.
    pub fn resumed(optimizer: Optimizer, steps: u32, first: Vec<f64>, second: Vec<f64>) -> Self {
        Self {
            moments: match optimizer.rule {
                StepRule::Adam => Either::Adam(Moments::resumed(steps, first, second)),
                StepRule::Official { .. } => Either::Official(OfficialMoments::resumed(steps, first, second)),
            },
            optimizer,
        }
    }

    /// First and second moments.
    pub fn moments(&self) -> (&[f64], &[f64]) {
        match &self.moments {
            Either::Adam(moments) => moments.moments(),
            Either::Official(moments) => moments.moments(),
        }
    }

    /// One step with learning rate `lr`: moves the parameters against their gradient.
    ///
    /// # Panics
    /// When parameters, gradient and moments differ in length.
    pub fn step<D: Dimension>(
        &mut self,
        lr: f64,
        parameters: ArrayViewMut<'_, f64, D>,
        gradient: &Array<f64, D>,
    ) {
        let decay = self.optimizer.decay;
        match (&mut self.moments, self.optimizer.rule) {
            (Either::Official(moments), StepRule::Official { lamb, debias }) => {
                moments.step(&decay, [lamb, debias], lr, parameters, gradient);
            }
            (Either::Adam(moments), _) => moments.step(&decay.at(lr), parameters, gradient),
            (Either::Official(_), StepRule::Adam) => unreachable!("the rule decided on the moments"),
        }
    }
}
