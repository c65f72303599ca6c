use aqlm_vocabulary::{AqlmError, CodeMetric, CodeSettings, QuantizedMatrix, Result};
use ndarray::Array2;

use super::{GradientProducts, Recoded, code_step, delta_decay, group_norms, refit};
use crate::decode::decode;
use crate::optimizer::Stepper;

/// The straight-through buffer of one matrix, with its moments and the gradient summed so far.
#[derive(Debug, Clone)]
pub struct TunedCodes {
    settings: CodeSettings,
    buffer: Array2<f64>,
    gradient: Array2<f64>,
    stepper: Stepper,
    /// where they make the metric
    products: Option<GradientProducts>,
}

impl TunedCodes {
    /// Before the first step: the buffer is the decoded weight.
    pub fn new(matrix: &QuantizedMatrix, settings: CodeSettings) -> Self {
        let buffer = decode(matrix);
        Self {
            settings,
            gradient: Array2::zeros(buffer.raw_dim()),
            stepper: Stepper::new(settings.optimizer, buffer.len()),
            products: (settings.metric == CodeMetric::Gradients).then(|| {
                let (_, in_groups) = matrix.groups();
                GradientProducts::new(matrix.scheme(), in_groups, settings.optimizer.decay.beta2)
            }),
            buffer,
        }
    }

    /// The buffer, [out_features, in_features].
    pub fn buffer(&self) -> &Array2<f64> {
        &self.buffer
    }

    /// The gradient with respect to the decoded weight, summed so far.
    pub fn gradient_mut(&mut self) -> &mut Array2<f64> {
        &mut self.gradient
    }

    /// First and second moments, row-major. The first are empty if their decay is 0, for then they are the
    /// gradient.
    pub fn moments(&self) -> (&[f64], &[f64]) {
        let (first, second) = self.stepper.moments();
        let kept = if self.settings.optimizer.decay.beta1 == 0.0 {
            &first[..0]
        } else {
            first
        };
        (kept, second)
    }

    /// The averages of the gradients' products, [in_groups, in_group, in_group]; empty where the metric needs
    /// none.
    pub fn products(&self) -> &[f64] {
        self.products.as_ref().map_or(&[], GradientProducts::values)
    }

    /// The buffer and moments after `steps` steps and the averages of the gradients' products, as row-major
    /// lists; a gradient that was not used is discarded.
    ///
    /// # Errors
    /// `Shape` when a list has another length than the weight; then nothing is changed.
    pub fn restore(&mut self, steps: u32, [buffer, first, second, products]: [&[f64]; 4]) -> Result<()> {
        let len = self.buffer.len();
        let firsts = if self.settings.optimizer.decay.beta1 == 0.0 {
            0
        } else {
            len
        };
        for (what, expected, found) in [
            ("buffer", len, buffer.len()),
            ("first moments of a buffer", firsts, first.len()),
            ("second moments of a buffer", len, second.len()),
        ] {
            if expected != found {
                return Err(AqlmError::Shape {
                    what: what.into(),
                    expected: vec![expected],
                    found: vec![found],
                });
            }
        }
        match &mut self.products {
            Some(own) => own.restore(products)?,
            None if products.is_empty() => {}
            None => {
                return Err(AqlmError::Shape {
                    what: "gradient products of a matrix".into(),
                    expected: vec![0],
                    found: vec![products.len()],
                });
            }
        }
        let mut first = first.to_vec();
        first.resize(len, 0.0);
        self.stepper = Stepper::resumed(self.settings.optimizer, steps, first, second.to_vec());
        self.buffer
            .iter_mut()
            .zip(buffer)
            .for_each(|(to, &value)| *to = value);
        self.gradient.fill(0.0);
        Ok(())
    }

    /// Moves the buffer along the gradient, which is then reset.
    pub fn move_buffer(&mut self, lr: f64) {
        if let Some(products) = &mut self.products {
            products.add(&self.gradient);
        }
        self.stepper.step(lr, self.buffer.view_mut(), &self.gradient);
        self.gradient.fill(0.0);
    }

    /// The squared norms of the groups of the buffer's difference from the decoded weight, [out_groups,
    /// in_groups].
    pub fn differences(&self, matrix: &QuantizedMatrix) -> Array2<f64> {
        group_norms(&(&self.buffer - &decode(matrix)), matrix.scheme())
    }

    /// New codes for at most `count` groups of the matrix, whose codebooks and scales are those after the
    /// step; `order` is that in which codebooks are visited.
    pub fn recode(&self, matrix: &QuantizedMatrix, count: usize, order: &[usize]) -> Recoded {
        let products = self.products.as_ref();
        code_step(matrix, &self.buffer, count, &self.settings, products, order)
    }

    /// The matrix with codebooks on their way to the fit of the buffer, if the settings say so.
    ///
    /// # Errors
    /// Those of [`refit()`].
    pub fn refitted(&self, mut matrix: QuantizedMatrix) -> Result<QuantizedMatrix> {
        if self.settings.refit > 0.0 {
            let codebooks = refit(&matrix, &self.buffer, self.settings.refit)?;
            matrix.tune(|mut to, _| to.assign(&codebooks));
        }
        Ok(matrix)
    }

    /// What remains of the buffer, given the matrix with its new codes.
    pub fn decay(&mut self, matrix: &QuantizedMatrix) {
        if self.settings.delta_decay != 0.0 {
            delta_decay(&mut self.buffer, &decode(matrix), self.settings.delta_decay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::problem;

    #[test]
    fn differences_are_those_from_the_decoded_weight() {
        let p = problem(4, "2x3g4", 6, 3);
        let mut codes = TunedCodes::new(&p.matrix, CodeSettings::README);
        assert!(codes.differences(&p.matrix).iter().all(|&norm| norm == 0.0));
        codes.buffer = decode(&p.matrix);
        codes.buffer[[2, 5]] += 3.0;
        let found = codes.differences(&p.matrix);
        for ((row, group), &norm) in found.indexed_iter() {
            let expected = if (row, group) == (2, 1) { 9.0 } else { 0.0 };
            // the sum 3 + w loses some last digits of w, of size 1, and taking w away does not bring them
            // back
            assert!(
                (norm - expected).abs() < 100.0 * f64::EPSILON,
                "{row} {group} {norm}"
            );
        }
    }
}
