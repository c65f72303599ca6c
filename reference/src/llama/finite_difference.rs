//! Numerical gradients, against which the tests compare the hand-written ones.

use ndarray::{Array, Dimension};

/// The gradient of `f` at `at` by the four-point stencil (8 (f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12h,
/// element by element.
pub(super) fn gradient<D: Dimension>(at: &Array<f64, D>, f: impl Fn(&Array<f64, D>) -> f64) -> Array<f64, D> {
    // The truncation error is of order h^4 and the rounding error of order eps / h; they balance at
    // eps^(1/5).
    let h = f64::EPSILON.powf(0.2);
    let mut moved = at.clone();
    let mut slopes = Vec::with_capacity(at.len());
    for i in 0..at.len() {
        let original = *at.iter().nth(i).expect("i counts the elements");
        let mut value = |steps: f64| {
            if let Some(element) = moved.iter_mut().nth(i) {
                *element = original + steps * h;
            }
            f(&moved)
        };
        let slope = (8.0 * (value(1.0) - value(-1.0)) - (value(2.0) - value(-2.0))) / (12.0 * h);
        value(0.0);
        slopes.push(slope);
    }
    Array::from_shape_vec(at.raw_dim(), slopes).expect("as many slopes as elements")
}

/// Asserts that a hand-written gradient agrees with [`gradient`] of a loss that sums `terms` terms of order
/// one.
///
/// Such a sum has an error of up to `terms` eps, which the stencil divides by h = eps^(1/5). Its truncation
/// error is of the same order. Each element may therefore differ by 2 `terms` eps^(4/5).
pub(super) fn assert_gradient<D: Dimension>(
    what: &str,
    ours: &Array<f64, D>,
    at: &Array<f64, D>,
    terms: usize,
    f: impl Fn(&Array<f64, D>) -> f64,
) {
    let limit = 2.0 * terms as f64 * f64::EPSILON.powf(0.8);
    let numeric = gradient(at, f);
    assert_eq!(ours.shape(), numeric.shape(), "{what}");
    let largest = numeric.iter().fold(0.0, |most: f64, slope| most.max(slope.abs()));
    assert!(
        largest > 1e4 * limit,
        "{what}: the gradient is too small ({largest:e}) to show an error"
    );
    for (index, (ours, numeric)) in ours.iter().zip(&numeric).enumerate() {
        assert!(
            (ours - numeric).abs() <= limit,
            "{what}, element {index}: ours {ours:e}, numeric {numeric:e}, limit {limit:e}"
        );
    }
}
