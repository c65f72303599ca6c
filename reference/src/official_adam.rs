use aqlm_vocabulary::AdamDecay;
use ndarray::{Array, ArrayViewMut, Dimension};

/// The official engine's own Adam and LAMB for one array of parameters (Vahe1994/AQLM at e79a896,
/// `src/configurable_adam.py`).
///
/// It differs from [`adam`](crate::adam) in two ways: epsilon is added to the root of the uncorrected second
/// moment, and the step may be as long as a share of the parameters' own norm.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OfficialMoments {
    steps: i32,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl OfficialMoments {
    /// The state after `steps` steps, with these moments.
    pub(crate) fn resumed(steps: u32, first: Vec<f64>, second: Vec<f64>) -> Self {
        Self {
            // beyond this many steps a decay's power is 0, so more steps change nothing
            steps: i32::try_from(steps).unwrap_or(i32::MAX),
            first,
            second,
        }
    }

    /// First and second moments.
    pub(crate) fn moments(&self) -> (&[f64], &[f64]) {
        (&self.first, &self.second)
    }

    /// One step: p -= c u with u = m / (sqrt(v) + eps) and c = `lr`, multiplied by sqrt(1 - beta2^t) / (1 -
    /// beta1^t) if `debias`, and by |p| / |u| if `lamb` and neither norm is zero.
    ///
    /// # Panics
    /// When parameters, gradient and moments differ in length.
    pub(crate) fn step<D: Dimension>(
        &mut self,
        decay: &AdamDecay,
        [lamb, debias]: [bool; 2],
        lr: f64,
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
        let mut update = Vec::with_capacity(gradient.len());
        for (i, gradient) in gradient.iter().enumerate() {
            let (first, second) = (&mut self.first[i], &mut self.second[i]);
            *first = decay.beta1 * *first + (1.0 - decay.beta1) * gradient;
            *second = decay.beta2 * *second + (1.0 - decay.beta2) * gradient * gradient;
            update.push(*first / (second.sqrt() + decay.eps));
        }
        let mut factor = lr;
        if debias {
            factor *= (1.0 - decay.beta2.powi(self.steps)).sqrt() / (1.0 - decay.beta1.powi(self.steps));
        }
        if lamb {
            let norm = |squares: f64| squares.sqrt();
            let of_parameters = norm(parameters.iter().map(|p| p * p).sum());
            let of_update = norm(update.iter().map(|u| u * u).sum());
            if of_parameters != 0.0 && of_update != 0.0 {
                factor *= of_parameters / of_update;
            }
        }
        for (parameter, update) in parameters.iter_mut().zip(update) {
            *parameter -= factor * update;
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, arr1};

    use super::*;

    const DECAY: AdamDecay = AdamDecay {
        beta1: 0.5,
        beta2: 0.75,
        eps: 0.0,
    };

    /// The parameters (3, 4) after each gradient.
    fn path(decay: AdamDecay, options: [bool; 2], gradients: &[[f64; 2]]) -> Vec<Array1<f64>> {
        let mut parameters = arr1(&[3.0, 4.0]);
        let mut moments = OfficialMoments::resumed(0, vec![0.0; 2], vec![0.0; 2]);
        let step = |gradient: &[f64; 2]| {
            moments.step(&decay, options, 0.1, parameters.view_mut(), &arr1(gradient));
            parameters.clone()
        };
        gradients.iter().map(step).collect()
    }

    fn assert_near(found: &Array1<f64>, expected: [f64; 2]) {
        let off = (found - &arr1(&expected))
            .iter()
            .fold(0.0, |a: f64, b| a.max(b.abs()));
        assert!(off <= 64.0 * f64::EPSILON, "{found} {expected:?}");
    }

    #[test]
    fn without_corrections_the_first_step_is_short() {
        // m = g / 2, v = g^2 / 4: u = sign(g)
        assert_near(&path(DECAY, [false, false], &[[5.0, -7.0]])[0], [2.9, 4.1]);
        // with corrections: sqrt(1/4) / (1/2) = 1
        assert_near(&path(DECAY, [false, true], &[[5.0, -7.0]])[0], [2.9, 4.1]);
        // after the second step of gradients g, 0: m = g/4, v = 3 g^2/16, u = sign(g) / sqrt(3); the
        // correction is sqrt(7/16) / (3/4)
        let second = path(DECAY, [false, true], &[[5.0, -7.0], [0.0, 0.0]]);
        let step = 0.1 / 3f64.sqrt() * (7.0f64 / 16.0).sqrt() / 0.75;
        assert_near(&second[1], [2.9 - step, 4.1 + step]);
    }

    #[test]
    fn epsilon_is_added_to_the_uncorrected_root() {
        let decay = AdamDecay {
            beta1: 0.0,
            eps: 1.0,
            ..DECAY
        };
        // v = g^2 / 4 = 1: u = 2 / (1 + 1)
        assert_near(&path(decay, [false, false], &[[2.0, 2.0]])[0], [2.9, 3.9]);
    }

    #[test]
    fn lamb_moves_a_share_of_the_norm() {
        // |p| = 5, u = (1, 0) x anything
        for gradient in [1e-3, 10.0] {
            assert_near(&path(DECAY, [true, false], &[[gradient, 0.0]])[0], [2.5, 4.0]);
        }
        // no gradient, no step
        let decay = AdamDecay { eps: 1e-6, ..DECAY };
        assert_eq!(path(decay, [true, true], &[[0.0, 0.0]])[0], arr1(&[3.0, 4.0]));
    }
}
