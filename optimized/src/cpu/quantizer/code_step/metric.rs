use aqlm_vocabulary::{AqlmError, CodeMetric, Result};
use rayon::prelude::*;

/// Averages of the products of a matrix's gradients, from which the metric of its groups follows
/// ([`CodeMetric::Gradients`]).
#[derive(Debug, Clone)]
pub(super) struct GradientProducts {
    decay: f64,
    /// length of a group's rows
    width: usize,
    /// for each place of a group in the row [width, width]
    products: Vec<f64>,
}

impl GradientProducts {
    pub(super) fn new(in_groups: usize, width: usize, decay: f64) -> Self {
        Self {
            decay,
            width,
            products: vec![0.0; in_groups * width * width],
        }
    }

    pub(super) fn values(&self) -> &[f64] {
        &self.products
    }

    /// # Errors
    /// `Shape` when their number differs; then nothing is changed.
    pub(super) fn restore(&mut self, values: &[f64]) -> Result<()> {
        if values.len() != self.products.len() {
            return Err(AqlmError::Shape {
                what: "gradient products of a matrix".into(),
                expected: vec![self.products.len()],
                found: vec![values.len()],
            });
        }
        self.products.copy_from_slice(values);
        Ok(())
    }

    /// Takes a gradient, row-major with rows of this length, into the averages.
    pub(super) fn add(&mut self, gradient: &[f32], row: usize) {
        let (width, decay) = (self.width, self.decay);
        let rows = (gradient.len() / row.max(1)).max(1) as f64;
        self.products
            .par_chunks_mut(width * width)
            .enumerate()
            .for_each(|(j, products)| {
                let mut sums = vec![0.0; products.len()];
                for part in gradient.chunks_exact(row) {
                    let part = &part[j * width..][..width];
                    for (sums, &a) in sums.chunks_exact_mut(width).zip(part) {
                        for (sum, &b) in sums.iter_mut().zip(part) {
                            *sum += f64::from(a) * f64::from(b);
                        }
                    }
                }
                for (average, sum) in products.iter_mut().zip(sums) {
                    *average = decay * *average + (1.0 - decay) * (sum / rows);
                }
            });
    }

    /// The change of coordinates at a place under which its metric is Euclid.
    pub(super) fn root(&self, place: usize) -> Root {
        let width = self.width;
        let products = &self.products[place * width * width..][..width * width];
        let mean = (0..width).map(|i| products[i * (width + 1)]).sum::<f64>() / width as f64;
        let identity = || Root {
            width,
            lower: (0..width * width)
                .map(|at| f32::from(u8::from(at % (width + 1) == 0)))
                .collect(),
        };
        if !(mean > 0.0 && mean.is_finite()) {
            return identity();
        }
        // Cholesky, column by column, in place of the lower triangle.
        let mut lower: Vec<f64> = products
            .iter()
            .map(|product| product * (1.0 - CodeMetric::DAMPING) / mean)
            .collect();
        for i in 0..width {
            lower[i * (width + 1)] += CodeMetric::DAMPING;
        }
        for column in 0..width {
            for row in column..width {
                let (of_row, of_column) = (row * width, column * width);
                let before: f64 = (0..column)
                    .map(|k| lower[of_row + k] * lower[of_column + k])
                    .sum();
                let rest = lower[of_row + column] - before;
                lower[of_row + column] = if row == column {
                    rest.max(0.0).sqrt()
                } else {
                    rest / lower[of_column + column]
                };
            }
            for above in 0..column {
                lower[above * width + column] = 0.0;
            }
        }
        if lower.iter().any(|value| !value.is_finite()) {
            return identity();
        }
        Root {
            width,
            lower: lower.into_iter().map(|value| value as f32).collect(),
        }
    }
}

/// A lower triangular L, the metric being L L^T.
pub(super) struct Root {
    width: usize,
    lower: Vec<f32>,
}

impl Root {
    /// Replaces each row e of vectors by e L.
    pub(super) fn transform(&self, vectors: &mut [f32]) {
        for row in vectors.chunks_exact_mut(self.width) {
            // Entry i needs the entries from i on, so going up overwrites nothing that is needed.
            for i in 0..self.width {
                row[i] = (i..self.width)
                    .map(|k| row[k] * self.lower[k * self.width + i])
                    .sum();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_damped_products() {
        let row = 6;
        let gradient: Vec<f32> = (0..8 * row)
            .map(|i| ((i * 37) % 23) as f32 / 23.0 - 0.4)
            .collect();
        let mut products = GradientProducts::new(2, 3, 0.25);
        products.add(&gradient, row);
        for place in 0..2 {
            let product = |a: usize, b: usize| -> f64 {
                gradient
                    .chunks_exact(row)
                    .map(|row| f64::from(row[3 * place + a]) * f64::from(row[3 * place + b]))
                    .sum()
            };
            let mean = (0..3).map(|i| product(i, i)).sum::<f64>() / 3.0;
            let e = [0.3f32, -1.1, 0.7];
            let mut expected = 0.0;
            for a in 0..3 {
                for b in 0..3 {
                    let identity = if a == b { 0.01 } else { 0.0 };
                    let metric = 0.99 * product(a, b) / mean + identity;
                    expected += f64::from(e[a]) * metric * f64::from(e[b]);
                }
            }
            let mut moved = e;
            products.root(place).transform(&mut moved);
            let found: f64 = moved.iter().map(|x| f64::from(x * x)).sum();
            // sums of three products in f32, each step within an epsilon
            let limit = 16.0 * f64::from(f32::EPSILON) * expected.max(1.0);
            assert!((found - expected).abs() < limit, "{found} {expected}");
        }
    }

    #[test]
    fn without_a_gradient_nothing_changes() {
        let mut vector = [1.0, -2.0, 3.0, 4.0];
        GradientProducts::new(1, 2, 0.5).root(0).transform(&mut vector);
        assert_eq!(vector, [1.0, -2.0, 3.0, 4.0]);
    }
}
