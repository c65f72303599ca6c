use ndarray::{Array2, ArrayView2};

use crate::linalg::product;
use aqlm_vocabulary::{AqlmError, PartSums, Result};

/// H of a layer: the mean of x xT over the samples that reached it, [in_features, in_features] in f64.
///
/// H contains everything that the calibration data determine about a layer's loss (paper section 3.2: <A,
/// B>_H = <A H, B>_F).
#[derive(Debug, Clone, PartialEq)]
pub struct Hessian {
    sum: Array2<f64>,
    samples: usize,
}

impl Hessian {
    /// An accumulator without samples.
    pub fn new(in_features: usize) -> Self {
        Self {
            sum: Array2::zeros((in_features, in_features)),
            samples: 0,
        }
    }

    /// Adds inputs, [samples, in_features].
    ///
    /// # Errors
    /// `Shape` for another number of columns, `NotFinite` for NaN or infinite inputs; after an error nothing
    /// has been added.
    pub fn add(&mut self, x: ArrayView2<'_, f64>) -> Result<()> {
        if x.ncols() != self.sum.ncols() {
            return Err(AqlmError::Shape {
                what: "inputs of a layer".into(),
                expected: vec![x.nrows(), self.sum.ncols()],
                found: x.shape().to_vec(),
            });
        }
        check_finite("inputs of a layer", x)?;
        self.sum += &product(x.t(), x);
        self.samples += x.nrows();
        Ok(())
    }

    /// Adds the samples of another accumulator.
    ///
    /// # Errors
    /// `Shape` when the other accumulator has another number of inputs.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.sum.dim() != self.sum.dim() {
            return Err(AqlmError::Shape {
                what: "hessian".into(),
                expected: self.sum.shape().to_vec(),
                found: other.sum.shape().to_vec(),
            });
        }
        self.sum += &other.sum;
        self.samples += other.samples;
        Ok(())
    }

    /// Adds as many samples as if the outer product of each were the mean of another accumulator's.
    ///
    /// # Errors
    /// `Shape` when the other accumulator has another number of inputs.
    pub fn add_mean_of(&mut self, other: &Self, samples: usize) -> Result<()> {
        if other.sum.dim() != self.sum.dim() {
            return Err(AqlmError::Shape {
                what: "hessian".into(),
                expected: self.sum.shape().to_vec(),
                found: other.sum.shape().to_vec(),
            });
        }
        let factor = samples as f64 / other.samples.max(1) as f64;
        self.sum.scaled_add(factor, &other.sum);
        self.samples += samples;
        Ok(())
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The mean of x xT; zero before the first sample.
    pub fn mean(&self) -> Array2<f64> {
        &self.sum / self.samples.max(1) as f64
    }

    /// Number of inputs that were zero in every sample.
    pub fn dead_inputs(&self) -> usize {
        dead_inputs(&self.sum)
    }
}

impl PartSums for Hessian {
    /// The elements, then the number of samples.
    fn take(&mut self) -> Vec<f64> {
        let samples = std::mem::take(&mut self.samples) as f64;
        let zeros = Array2::zeros(self.sum.dim());
        let sum = std::mem::replace(&mut self.sum, zeros);
        sum.into_iter().chain([samples]).collect()
    }

    fn add(&mut self, sum: &[f64]) -> Result<()> {
        match sum.split_last() {
            Some((samples, sum)) if sum.len() == self.sum.len() => {
                self.sum.iter_mut().zip(sum).for_each(|(to, part)| *to += part);
                self.samples += *samples as usize;
                Ok(())
            }
            _ => Err(AqlmError::Shape {
                what: "the sum of a Hessian".into(),
                expected: vec![self.sum.len() + 1],
                found: vec![sum.len()],
            }),
        }
    }
}

/// Number of zero diagonal entries of H: inputs that are zero in all calibration data.
pub fn dead_inputs(hessian: &Array2<f64>) -> usize {
    hessian.diag().iter().filter(|&&x| x == 0.0).count()
}

/// H + `damping` x mean(diag H) x I, which makes it positive definite when some inputs are dead.
pub fn damped(hessian: &Array2<f64>, damping: f64) -> Array2<f64> {
    let mut result = hessian.clone();
    let ridge = damping * hessian.diag().sum() / hessian.nrows().max(1) as f64;
    result.diag_mut().mapv_inplace(|x| x + ridge);
    result
}

/// # Errors
/// `NotFinite` at the first NaN or infinity.
pub(crate) fn check_finite(what: &str, array: ArrayView2<'_, f64>) -> Result<()> {
    match array.indexed_iter().find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some(((row, column), &value)) => Err(AqlmError::NotFinite {
            what: what.into(),
            index: vec![row, column],
            value,
        }),
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    use super::*;
    use crate::problem::{config, gaussian};

    proptest! {
        #![proptest_config(config(32))]
        #[test]
        fn batches_and_merging_do_not_matter(seed: u64, cut in 0usize..40) {
            let x = gaussian(seed, 40, 6);
            let mut whole = Hessian::new(6);
            whole.add(x.view()).unwrap();
            let (mut head, mut tail) = (Hessian::new(6), Hessian::new(6));
            head.add(x.slice(ndarray::s![..cut, ..])).unwrap();
            tail.add(x.slice(ndarray::s![cut.., ..])).unwrap();
            let mut by_sums = head.clone();
            let sums = tail.clone().take();
            PartSums::add(&mut by_sums, &sums).unwrap();
            prop_assert!(PartSums::add(&mut by_sums, &sums[1..]).is_err());
            head.merge(&tail).unwrap();
            prop_assert_eq!(&by_sums, &head);
            prop_assert_eq!(head.samples(), 40);
            // sums of 40 terms of size about 1, divided by 40
            prop_assert!(approx::abs_diff_eq!(head.mean(), whole.mean(), epsilon = 40.0 * f64::EPSILON));
        }
    }

    #[test]
    fn missing_samples_come_from_another_mean() {
        let (own, all) = (gaussian(1, 3, 4), gaussian(2, 50, 4));
        let (mut hessian, mut pool) = (Hessian::new(4), Hessian::new(4));
        hessian.add(own.view()).unwrap();
        pool.add(all.view()).unwrap();
        let expected = (3.0 * hessian.mean() + 5.0 * pool.mean()) / 8.0;
        hessian.add_mean_of(&pool, 5).unwrap();
        assert_eq!(hessian.samples(), 8);
        assert!(approx::abs_diff_eq!(
            hessian.mean(),
            expected,
            epsilon = 50.0 * f64::EPSILON
        ));
        assert!(hessian.add_mean_of(&Hessian::new(3), 5).is_err());
    }

    #[test]
    fn it_is_the_mean_of_outer_products() {
        let mut hessian = Hessian::new(2);
        assert_eq!(hessian.mean(), Array2::<f64>::zeros((2, 2)));
        hessian
            .add(ndarray::array![[1.0, 0.0], [3.0, 0.0]].view())
            .unwrap();
        assert_eq!(hessian.mean(), ndarray::array![[5.0, 0.0], [0.0, 0.0]]);
        assert_eq!(hessian.dead_inputs(), 1);
        assert_relative_eq!(
            damped(&hessian.mean(), 0.1),
            ndarray::array![[5.25, 0.0], [0.0, 0.25]]
        );
    }

    #[test]
    fn bad_inputs_are_refused_and_not_counted() {
        let mut hessian = Hessian::new(2);
        assert!(matches!(
            hessian.add(Array2::zeros((3, 4)).view()),
            Err(AqlmError::Shape { .. })
        ));
        assert!(matches!(
            hessian.add(ndarray::array![[0.0, f64::NAN]].view()),
            Err(AqlmError::NotFinite { .. })
        ));
        assert!(hessian.merge(&Hessian::new(3)).is_err());
        assert_eq!(hessian, Hessian::new(2));
    }

    #[test]
    fn dead_inputs_are_counted() {
        for dead in [0, 2, 5] {
            let mut x = gaussian(3, 20, 6);
            x.slice_mut(ndarray::s![.., ..dead]).fill(0.0);
            let mut hessian = Hessian::new(6);
            hessian.add(x.view()).unwrap();
            assert_eq!(
                (hessian.dead_inputs(), dead_inputs(&hessian.mean())),
                (dead, dead)
            );
        }
    }
}
