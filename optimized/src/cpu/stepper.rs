use aqlm_vocabulary::{Optimizer, StepRule};
use rayon::prelude::*;

/// Numbers of one task. Norms are sums over tasks, in order.
const LEN: usize = 4096;

/// The type in which parameters and moments are kept. Steps are computed in f64.
pub(crate) trait Kept: Copy + Send + Sync {
    /// the number in f64, exactly
    fn wide(self) -> f64;
    /// the nearest number of this type
    fn rounded(value: f64) -> Self;
}

impl Kept for f64 {
    fn wide(self) -> f64 {
        self
    }

    fn rounded(value: f64) -> Self {
        value
    }
}

impl Kept for f32 {
    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn rounded(value: f64) -> Self {
        value as f32
    }
}

/// An optimizer at work on one array of parameters, with the moments of the gradient.
#[derive(Debug, Clone)]
pub(crate) struct Stepper<T> {
    optimizer: Optimizer,
    steps: i32,
    /// empty if it is the gradient itself
    first: Vec<T>,
    second: Vec<T>,
}

impl<T: Kept> Stepper<T> {
    /// Before the first step, for `len` parameters.
    pub(crate) fn new(optimizer: Optimizer, len: usize) -> Self {
        Self::resumed(
            optimizer,
            0,
            vec![T::rounded(0.0); len],
            vec![T::rounded(0.0); len],
        )
    }

    /// Before the first step, without first moments where their decay is 0.
    pub(crate) fn lean(optimizer: Optimizer, len: usize) -> Self {
        let mut stepper = Self::new(optimizer, len);
        if optimizer.decay.beta1 == 0.0 {
            stepper.first = Vec::new();
        }
        stepper
    }

    /// After `steps` steps that ended with these moments.
    pub(crate) fn resumed(optimizer: Optimizer, steps: u32, first: Vec<T>, second: Vec<T>) -> Self {
        Self {
            optimizer,
            // past this many steps a decay's power is 0, and more steps change nothing
            steps: i32::try_from(steps).unwrap_or(i32::MAX),
            first,
            second,
        }
    }

    /// First and second moments; no first ones if they are the gradient.
    pub(crate) fn moments(&self) -> (&[T], &[T]) {
        (&self.first, &self.second)
    }

    /// One step with learning rate `lr`. Both rules have the form p -= c m / (sqrt(a v) + eps): PyTorch's
    /// Adam with a = 1 / (1 - beta2^t) and c = lr / (1 - beta1^t); the official one with a = 1 and c as
    /// [`StepRule`] says.
    pub(crate) fn step(&mut self, lr: f64, parameters: &mut [T], gradient: &[T]) {
        self.steps = self.steps.saturating_add(1);
        let decay = self.optimizer.decay;
        let [rest1, rest2] = [decay.beta1, decay.beta2].map(|beta| 1.0 - beta.powi(self.steps));
        let (correction, mut rate, lamb) = match self.optimizer.rule {
            StepRule::Adam => (1.0 / rest2, lr / rest1, false),
            StepRule::Official { lamb, debias } => {
                (1.0, if debias { lr * rest2.sqrt() / rest1 } else { lr }, lamb)
            }
        };
        let moments = |first: &[T], second: &[T], gradient: &[T], i: usize| {
            let first = first.get(i).unwrap_or(&gradient[i]).wide();
            (first, (second[i].wide() * correction).sqrt() + decay.eps)
        };
        let squares: Vec<[f64; 2]> = pieces(&mut self.first, gradient.len())
            .into_par_iter()
            .zip(self.second.par_chunks_mut(LEN))
            .zip(gradient.par_chunks(LEN))
            .zip(parameters.par_chunks(LEN))
            .map(|(((first, second), gradient), parameters)| {
                for (first, gradient) in first.iter_mut().zip(gradient) {
                    let old = first.wide();
                    *first = T::rounded(old + (1.0 - decay.beta1) * (gradient.wide() - old));
                }
                for (second, gradient) in second.iter_mut().zip(gradient) {
                    let (old, gradient) = (second.wide(), gradient.wide());
                    *second = T::rounded(old + (1.0 - decay.beta2) * (gradient * gradient - old));
                }
                let mut squares = [0.0; 2];
                if lamb {
                    for (i, parameter) in parameters.iter().enumerate() {
                        let (first, root) = moments(first, second, gradient, i);
                        squares[0] += parameter.wide() * parameter.wide();
                        squares[1] += (first / root) * (first / root);
                    }
                }
                squares
            })
            .collect();
        if lamb {
            let norm = |which: usize| squares.iter().map(|squares| squares[which]).sum::<f64>().sqrt();
            let (of_parameters, of_update) = (norm(0), norm(1));
            if of_parameters != 0.0 && of_update != 0.0 {
                rate *= of_parameters / of_update;
            }
        }
        pieces(&mut self.first, gradient.len())
            .into_par_iter()
            .zip(self.second.par_chunks(LEN))
            .zip(gradient.par_chunks(LEN))
            .zip(parameters.par_chunks_mut(LEN))
            .for_each(|(((first, second), gradient), parameters)| {
                for (i, parameter) in parameters.iter_mut().enumerate() {
                    let (first, root) = moments(first, second, gradient, i);
                    *parameter = T::rounded(parameter.wide() - rate * first / root);
                }
            });
    }
}

/// The parts of an array for each task; empty ones for an array that is left out.
fn pieces<T>(values: &mut [T], len: usize) -> Vec<&mut [T]> {
    let tasks = len.div_ceil(LEN);
    if values.is_empty() {
        (0..tasks).map(|_| Default::default()).collect()
    } else {
        values.chunks_mut(LEN).collect()
    }
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::AdamDecay;

    use super::*;

    const OFFICIAL: StepRule = StepRule::Official {
        lamb: true,
        debias: true,
    };

    #[test]
    fn lamb_moves_an_array_of_many_tasks_by_a_share_of_its_norm() {
        for beta1 in [0.0, 0.5] {
            let decay = AdamDecay {
                beta1,
                beta2: 0.75,
                eps: 0.0,
            };
            let optimizer = Optimizer {
                decay,
                rule: OFFICIAL,
            };
            let len = 3 * LEN + 5;
            let mut parameters: Vec<f32> = (0..len).map(|i| (i % 7) as f32 - 3.0).collect();
            let before = parameters.clone();
            let gradient: Vec<f32> = (0..len).map(|i| 0.01 * ((i % 5) as f32 + 1.0)).collect();
            let mut stepper = Stepper::lean(optimizer, len);
            assert_eq!(stepper.moments().0.is_empty(), beta1 == 0.0);
            stepper.step(0.1, &mut parameters, &gradient);
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let moved = norm(&mut parameters.iter().zip(&before).map(|(a, b)| f64::from(a - b)));
            let factor = 0.1 * (0.25f64).sqrt() / (1.0 - beta1);
            let expected = factor * norm(&mut before.iter().map(|&b| f64::from(b)));
            assert!((moved / expected - 1.0).abs() < 1e-5, "{moved} {expected}");
        }
    }

    #[test]
    fn first_moments_left_out_are_the_gradient() {
        let decay = AdamDecay {
            beta1: 0.0,
            ..AdamDecay::PAPER
        };
        for rule in [StepRule::Adam, OFFICIAL] {
            let optimizer = Optimizer { decay, rule };
            let run = |mut stepper: Stepper<f64>| {
                let mut parameters = [1.0, -2.0, 0.5];
                for step in 1..4 {
                    stepper.step(0.1, &mut parameters, &[f64::from(step), -1.0, 0.25]);
                }
                parameters
            };
            assert_eq!(run(Stepper::lean(optimizer, 3)), run(Stepper::new(optimizer, 3)));
        }
    }
}
