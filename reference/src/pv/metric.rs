use aqlm_vocabulary::{AqlmError, CodeMetric, Result, Scheme};
use ndarray::{Array2, Array3, ArrayView2, Axis, s};

/// Averages of the products of a matrix's gradients, from which the metric of its groups follows
/// ([`CodeMetric::Gradients`]).
#[derive(Debug, Clone, PartialEq)]
pub struct GradientProducts {
    decay: f64,
    /// [in_groups, in_group, in_group]
    products: Array3<f64>,
}

impl GradientProducts {
    /// Before the first gradient, for a matrix with this many groups in a row. `decay` is what a step leaves
    /// of the averages before it.
    pub fn new(scheme: Scheme, in_groups: usize, decay: f64) -> Self {
        let width = scheme.in_group_size;
        Self {
            decay,
            products: Array3::zeros((in_groups, width, width)),
        }
    }

    /// The averages, row-major.
    #[expect(clippy::missing_panics_doc, reason = "the layout is this type's own")]
    pub fn values(&self) -> &[f64] {
        let values = self.products.as_slice();
        values.expect("it is made in standard layout and changed in place")
    }

    /// Averages that [`GradientProducts::values`] gave.
    ///
    /// # Errors
    /// `Shape` when their number differs; then nothing is changed.
    pub fn restore(&mut self, values: &[f64]) -> Result<()> {
        if values.len() != self.products.len() {
            return Err(AqlmError::Shape {
                what: "gradient products of a matrix".into(),
                expected: vec![self.products.len()],
                found: vec![values.len()],
            });
        }
        self.products
            .iter_mut()
            .zip(values)
            .for_each(|(to, &value)| *to = value);
        Ok(())
    }

    /// Takes a gradient, [out_features, in_features], into the averages.
    pub fn add(&mut self, gradient: &Array2<f64>) {
        let (width, rows) = (self.products.len_of(Axis(1)), gradient.nrows());
        for (j, mut products) in self.products.outer_iter_mut().enumerate() {
            let part = gradient.slice(s![.., j * width..(j + 1) * width]);
            let mean = part.t().dot(&part) / rows.max(1) as f64;
            products.zip_mut_with(&mean, |average, &new| {
                *average = self.decay * *average + (1.0 - self.decay) * new;
            });
        }
    }

    /// For each place of a group in the row an upper triangular U with U^T U the metric, so that distances in
    /// it are those of vectors U e.
    pub fn roots(&self) -> Vec<Array2<f64>> {
        self.products.outer_iter().map(root).collect()
    }
}

/// The root of the damped metric of one place.
fn root(products: ArrayView2<'_, f64>) -> Array2<f64> {
    let width = products.nrows();
    let mean = products.diag().sum() / width as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return Array2::eye(width);
    }
    let mut metric = &products * ((1.0 - CodeMetric::DAMPING) / mean);
    metric
        .diag_mut()
        .mapv_inplace(|value| value + CodeMetric::DAMPING);
    // Cholesky: row i of the root from the rows before it.
    let mut root = Array2::<f64>::zeros((width, width));
    for i in 0..width {
        let before: f64 = (0..i).map(|k| root[[k, i]].powi(2)).sum();
        let pivot = (metric[[i, i]] - before).max(0.0).sqrt();
        root[[i, i]] = pivot;
        for j in i + 1..width {
            let before: f64 = (0..i).map(|k| root[[k, i]] * root[[k, j]]).sum();
            root[[i, j]] = (metric[[i, j]] - before) / pivot;
        }
    }
    if root.iter().all(|value| value.is_finite()) {
        root
    } else {
        Array2::eye(width)
    }
}

/// Groups [.., out_group, in_group] with every row e replaced by U e.
pub(super) fn transformed(groups: ArrayView2<'_, f64>, root: &Array2<f64>) -> Array2<f64> {
    groups.dot(&root.t())
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::{Purpose, Stream, stream};
    use rand::RngExt;

    use super::*;

    /// Numbers from -1 to 1.
    fn uniform(rng: &mut Stream, rows: usize, columns: usize) -> Array2<f64> {
        Array2::from_shape_simple_fn((rows, columns), || rng.random_range(-1.0..1.0))
    }

    #[test]
    fn distances_are_those_of_the_damped_products() {
        let mut rng = stream(31, 0, None, Purpose::TestData);
        let scheme = Scheme::with_out_group(2, 3, 4, 2).unwrap();
        let mut products = GradientProducts::new(scheme, 3, 0.75);
        let [first, second] = [uniform(&mut rng, 10, 12), uniform(&mut rng, 10, 12)];
        products.add(&first);
        products.add(&second);
        for (j, root) in products.roots().iter().enumerate() {
            let part = |gradient: &Array2<f64>| {
                let part = gradient.slice(s![.., 4 * j..4 * j + 4]);
                part.t().dot(&part) / 10.0
            };
            let average = (part(&first) * 0.75 + part(&second)) * 0.25;
            let mean = average.diag().sum() / 4.0;
            let metric = average * (0.99 / mean) + Array2::<f64>::eye(4) * 0.01;
            let e = uniform(&mut rng, 1, 4);
            let expected = e.dot(&metric).dot(&e.t())[[0, 0]];
            let found = transformed(e.view(), root).mapv(|x| x * x).sum();
            assert!((found - expected).abs() < 1e-12 * expected, "{found} {expected}");
        }
    }

    #[test]
    fn without_a_gradient_the_metric_is_euclid() {
        let mut products = GradientProducts::new(Scheme::new(1, 3, 2).unwrap(), 1, 0.5);
        assert_eq!(products.roots(), [Array2::<f64>::eye(2)]);
        products.add(&Array2::from_elem((3, 2), f64::NAN));
        assert_eq!(products.roots(), [Array2::<f64>::eye(2)]);
        assert!(products.restore(&[0.0; 3]).is_err());
    }
}
