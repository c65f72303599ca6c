use aqlm_vocabulary::AdamSettings;
use ndarray::{Array, ArrayViewMut, Dimension};

/// Adam (Kingma and Ba 2015, algorithm 1) for one array of parameters, with PyTorch's details: epsilon is
/// added to the root of the bias-corrected second moment, and amsgrad keeps the largest second moment before
/// that correction.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Moments {
    steps: i32,
    first: Vec<f64>,
    second: Vec<f64>,
    /// the second moment used as divisor; with amsgrad the largest so far
    divisor: Vec<f64>,
}

impl Moments {
    /// The state before the first step, for `len` parameters.
    pub(crate) fn new(len: usize) -> Self {
        Self {
            steps: 0,
            first: vec![0.0; len],
            second: vec![0.0; len],
            divisor: vec![0.0; len],
        }
    }

    /// The state after `steps` steps without amsgrad, with these moments.
    pub(crate) fn resumed(steps: u32, first: Vec<f64>, second: Vec<f64>) -> Self {
        Self {
            // beyond this many steps a decay's power is 0, so more steps change nothing
            steps: i32::try_from(steps).unwrap_or(i32::MAX),
            divisor: second.clone(),
            first,
            second,
        }
    }

    /// First and second moments.
    pub(crate) fn moments(&self) -> (&[f64], &[f64]) {
        (&self.first, &self.second)
    }

    /// One step: moves the parameters against their gradient.
    ///
    /// # Panics
    /// When parameters, gradient and moments differ in length.
    pub(crate) fn step<D: Dimension>(
        &mut self,
        adam: &AdamSettings,
        mut parameters: ArrayViewMut<'_, f64, D>,
        gradient: &Array<f64, D>,
    ) {
        assert_eq!(
            parameters.shape(),
            gradient.shape(),
            "a gradient for each parameter"
        );
        assert_eq!(parameters.len(), self.first.len(), "a moment for each parameter");
        self.steps = self.steps.saturating_add(1);
        let correction1 = 1.0 - adam.beta1.powi(self.steps);
        let correction2 = 1.0 - adam.beta2.powi(self.steps);
        for (i, (parameter, gradient)) in parameters.iter_mut().zip(gradient).enumerate() {
            let (first, second) = (&mut self.first[i], &mut self.second[i]);
            *first = adam.beta1 * *first + (1.0 - adam.beta1) * gradient;
            *second = adam.beta2 * *second + (1.0 - adam.beta2) * gradient * gradient;
            let divisor = &mut self.divisor[i];
            *divisor = if adam.amsgrad {
                divisor.max(*second)
            } else {
                *second
            };
            *parameter -= adam.lr * (*first / correction1) / ((*divisor / correction2).sqrt() + adam.eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, arr1};

    use super::*;

    const ADAM: AdamSettings = AdamSettings {
        lr: 0.1,
        beta1: 0.5,
        beta2: 0.75,
        eps: 0.0,
        amsgrad: false,
    };

    /// Positions after each gradient, starting at zero.
    fn path(adam: AdamSettings, gradients: &[f64]) -> Vec<f64> {
        let mut parameter: Array1<f64> = arr1(&[0.0]);
        let mut moments = Moments::new(1);
        let step = |&gradient: &f64| {
            moments.step(&adam, parameter.view_mut(), &arr1(&[gradient]));
            parameter[0]
        };
        gradients.iter().map(step).collect()
    }

    /// Equality up to a few roundings per step, for positions below one.
    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 16.0 * f64::EPSILON
    }

    #[test]
    fn the_first_step_is_the_learning_rate() {
        for gradient in [1e-9, 3.0, 1e9] {
            assert!(close(path(ADAM, &[gradient])[0], -0.1));
            assert!(close(path(ADAM, &[-gradient])[0], 0.1));
        }
        // epsilon is compared with the gradient itself, not with its uncorrected share
        let adam = AdamSettings { eps: 3.0, ..ADAM };
        assert!(close(path(adam, &[1.0])[0], -0.1 / 4.0));
    }

    #[test]
    fn later_steps_divide_the_mean_by_the_root_of_the_mean_square() {
        // gradients 4, 0: moments 2, 1 and 4, 3, corrected by 3/4 and by 7/16
        let path = path(ADAM, &[4.0, 0.0]);
        let second = 0.1 * (1.0 / 0.75) / (3.0_f64 / (7.0 / 16.0)).sqrt();
        assert!(close(path[1], path[0] - second));
    }

    #[test]
    fn amsgrad_divides_by_the_largest() {
        // gradients 4, 0: the second moment falls from 4 to 3, but 4 divides
        let path = path(
            AdamSettings {
                amsgrad: true,
                ..ADAM
            },
            &[4.0, 0.0],
        );
        let second = 0.1 * (1.0 / 0.75) / (4.0_f64 / (7.0 / 16.0)).sqrt();
        assert!(close(path[1], path[0] - second));
    }

    #[test]
    fn a_zero_gradient_from_the_start_moves_nothing() {
        assert_eq!(path(AdamSettings { eps: 1e-8, ..ADAM }, &[0.0, 0.0]), [0.0, 0.0]);
    }
}
