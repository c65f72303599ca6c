/// Adam (Kingma and Ba 2015, algorithm 1) in f64, with PyTorch's details: epsilon is added to the root of the
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

/// What Adam remembers about one array of parameters: (first, second, dividing moment) of each.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    steps: i32,
    moments: Vec<[f64; 3]>,
}

impl Moments {
    /// The state before the first step, for `len` parameters.
    pub(crate) fn new(len: usize) -> Self {
        Self {
            steps: 0,
            moments: vec![[0.0; 3]; len],
        }
    }

    /// The state after `steps` steps without amsgrad that left these moments.
    pub(crate) fn resumed(steps: u32, first: &[f64], second: &[f64]) -> Self {
        Self {
            steps: i32::try_from(steps).unwrap_or(i32::MAX),
            moments: first
                .iter()
                .zip(second)
                .map(|(&first, &second)| [first, second, second])
                .collect(),
        }
    }

    /// First and second moments.
    pub(crate) fn first_and_second(&self) -> (Vec<f64>, Vec<f64>) {
        self.moments
            .iter()
            .map(|&[first, second, _]| (first, second))
            .unzip()
    }
}

impl Adam {
    /// One step: moves the parameters against their gradient, both in the same order in every call.
    pub(crate) fn step<'a>(
        &self,
        state: &mut Moments,
        parameters: impl Iterator<Item = &'a mut f64>,
        gradient: impl Iterator<Item = &'a f64>,
    ) {
        state.steps = state.steps.saturating_add(1);
        let rate = self.lr / (1.0 - self.beta1.powi(state.steps));
        let correction = 1.0 / (1.0 - self.beta2.powi(state.steps));
        for (([first, second, dividing], parameter), gradient) in
            state.moments.iter_mut().zip(parameters).zip(gradient)
        {
            *first += (1.0 - self.beta1) * (gradient - *first);
            *second += (1.0 - self.beta2) * (gradient * gradient - *second);
            *dividing = if self.amsgrad {
                dividing.max(*second)
            } else {
                *second
            };
            *parameter -= rate * *first / ((*dividing * correction).sqrt() + self.eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epsilon_is_added_to_the_root_of_the_second_moment() {
        // The first step: both moments, corrected, are the gradient and its square.
        for (gradient, eps) in [(0.5, 0.25), (-1e-8, 1e-8), (0.0, 1e-8)] {
            for amsgrad in [false, true] {
                let adam = Adam {
                    lr: 0.1,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps,
                    amsgrad,
                };
                let mut parameter = 1.0;
                adam.step(
                    &mut Moments::new(1),
                    std::iter::once(&mut parameter),
                    std::iter::once(&gradient),
                );
                let expected = 1.0 - 0.1 * gradient / (f64::abs(gradient) + eps);
                assert!((parameter - expected).abs() < 1e-12, "{parameter} {expected}");
            }
        }
    }
}
