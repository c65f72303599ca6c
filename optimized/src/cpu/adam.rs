use aqlm_vocabulary::AdamSettings;

/// Adam (Kingma and Ba 2015, algorithm 1) for one array of parameters in f64, with PyTorch's details: epsilon
/// is added to the root of the corrected second moment, and amsgrad keeps the largest second moment from
/// before that correction.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    steps: i32,
    /// (first, second, dividing moment) of each parameter
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

    /// One step: moves the parameters against their gradient. Every call must give both in the same order.
    pub(crate) fn step<'a>(
        &mut self,
        adam: &AdamSettings,
        parameters: impl Iterator<Item = &'a mut f64>,
        gradient: impl Iterator<Item = &'a f64>,
    ) {
        self.steps = self.steps.saturating_add(1);
        let rate = adam.lr / (1.0 - adam.beta1.powi(self.steps));
        let correction = 1.0 / (1.0 - adam.beta2.powi(self.steps));
        for (([first, second, dividing], parameter), gradient) in
            self.moments.iter_mut().zip(parameters).zip(gradient)
        {
            *first += (1.0 - adam.beta1) * (gradient - *first);
            *second += (1.0 - adam.beta2) * (gradient * gradient - *second);
            *dividing = if adam.amsgrad {
                dividing.max(*second)
            } else {
                *second
            };
            *parameter -= rate * *first / ((*dividing * correction).sqrt() + adam.eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epsilon_is_added_to_the_root_of_the_second_moment() {
        // After the first step the corrected moments are the gradient and its square.
        for (gradient, eps) in [(0.5, 0.25), (-1e-8, 1e-8), (0.0, 1e-8)] {
            for amsgrad in [false, true] {
                let adam = AdamSettings {
                    lr: 0.1,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps,
                    amsgrad,
                };
                let mut parameter = 1.0;
                Moments::new(1).step(&adam, std::iter::once(&mut parameter), std::iter::once(&gradient));
                let expected = 1.0 - 0.1 * gradient / (f64::abs(gradient) + eps);
                assert!((parameter - expected).abs() < 1e-12, "{parameter} {expected}");
            }
        }
    }
}
