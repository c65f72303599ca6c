use ndarray::{Array, Dimension};

/// Adam (Kingma and Ba 2015, algorithm 1) with PyTorch's details: epsilon is added to the root of the
/// corrected second moment, and amsgrad keeps the largest second moment from before that correction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Adam {
    /// learning rate
    pub(crate) lr: f64,
    /// decay of the first moment
    pub(crate) beta1: f64,
    /// decay of the second moment
    pub(crate) beta2: f64,
    /// added to the denominator
    pub(crate) eps: f64,
    /// divide by the largest second moment seen instead of the present one
    pub(crate) amsgrad: bool,
}

/// What Adam remembers about one array of parameters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Moments {
    steps: i32,
    first: Vec<f64>,
    second: Vec<f64>,
    /// the second moment that divides: with amsgrad the largest so far
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

    /// The state after `steps` steps without amsgrad that left these moments.
    pub(crate) fn resumed(steps: u32, first: Vec<f64>, second: Vec<f64>) -> Self {
        Self {
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
}

impl Adam {
    /// One step: moves the parameters against their gradient.
    ///
    /// # Panics
    /// When the three arrays differ in length.
    pub(crate) fn step<D: Dimension>(
        &self,
        moments: &mut Moments,
        parameters: &mut Array<f64, D>,
        gradient: &Array<f64, D>,
    ) {
        assert_eq!(
            parameters.shape(),
            gradient.shape(),
            "a gradient for each parameter"
        );
        assert_eq!(
            parameters.len(),
            moments.first.len(),
            "a moment for each parameter"
        );
        moments.steps = moments.steps.saturating_add(1);
        let correction1 = 1.0 - self.beta1.powi(moments.steps);
        let correction2 = 1.0 - self.beta2.powi(moments.steps);
        for (i, (parameter, gradient)) in parameters.iter_mut().zip(gradient).enumerate() {
            let (first, second) = (&mut moments.first[i], &mut moments.second[i]);
            *first = self.beta1 * *first + (1.0 - self.beta1) * gradient;
            *second = self.beta2 * *second + (1.0 - self.beta2) * gradient * gradient;
            let divisor = &mut moments.divisor[i];
            *divisor = if self.amsgrad {
                divisor.max(*second)
            } else {
                *second
            };
            *parameter -= self.lr * (*first / correction1) / ((*divisor / correction2).sqrt() + self.eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, arr1};

    use super::*;

    const ADAM: Adam = Adam {
        lr: 0.1,
        beta1: 0.5,
        beta2: 0.75,
        eps: 0.0,
        amsgrad: false,
    };

    /// Positions after each of the gradients, from zero.
    fn path(adam: Adam, gradients: &[f64]) -> Vec<f64> {
        let mut parameter: Array1<f64> = arr1(&[0.0]);
        let mut moments = Moments::new(1);
        let step = |&gradient: &f64| {
            adam.step(&mut moments, &mut parameter, &arr1(&[gradient]));
            parameter[0]
        };
        gradients.iter().map(step).collect()
    }

    /// A few roundings a step, on positions below one.
    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 16.0 * f64::EPSILON
    }

    #[test]
    fn the_first_step_is_the_learning_rate() {
        for gradient in [1e-9, 3.0, 1e9] {
            assert!(close(path(ADAM, &[gradient])[0], -0.1));
            assert!(close(path(ADAM, &[-gradient])[0], 0.1));
        }
        // epsilon counts beside the gradient itself, not beside its uncorrected share
        let adam = Adam { eps: 3.0, ..ADAM };
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
            Adam {
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
        assert_eq!(path(Adam { eps: 1e-8, ..ADAM }, &[0.0, 0.0]), [0.0, 0.0]);
    }
}
