use ndarray::{Array1, Array2, Axis};

use crate::linalg::product;
use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};

/// The layer error of each output row: (w - q) H (w - q)T, `[out_features]`.
///
/// # Panics
/// When the shapes of weights and H do not fit; ndarray panics.
pub fn row_errors(weight: &Array2<f64>, quantized: &Array2<f64>, hessian: &Array2<f64>) -> Array1<f64> {
    let difference = weight - quantized;
    (product(difference.view(), hessian.view()) * &difference).sum_axis(Axis(1))
}

/// The layer error tr((W - Q) H (W - Q)T): the mean squared error of the layer's outputs over the calibration
/// samples, summed over the outputs (paper section 3.2, equation 3).
///
/// # Panics
/// As [`row_errors`].
pub fn layer_error(weight: &Array2<f64>, quantized: &Array2<f64>, hessian: &Array2<f64>) -> f64 {
    row_errors(weight, quantized, hessian).sum()
}

/// The layer error divided by tr(W H WT), the mean square of the outputs themselves; 0 when both are zero.
///
/// # Panics
/// As [`row_errors`].
pub fn relative_layer_error(weight: &Array2<f64>, quantized: &Array2<f64>, hessian: &Array2<f64>) -> f64 {
    let error = layer_error(weight, quantized, hessian);
    let whole = (product(weight.view(), hessian.view()) * weight).sum();
    if error == 0.0 { 0.0 } else { error / whole }
}

/// # Errors
/// `Shape` when the weight's shape is not the matrix's, or H's side is not its number of inputs.
pub(crate) fn check_shapes(
    weight: &Array2<f64>,
    hessian: &Array2<f64>,
    matrix: &QuantizedMatrix,
) -> Result<()> {
    let expected = [matrix.out_features(), matrix.in_features()];
    if weight.shape() != expected {
        return Err(AqlmError::Shape {
            what: "weight".into(),
            expected: expected.to_vec(),
            found: weight.shape().to_vec(),
        });
    }
    check_hessian(hessian, matrix.in_features())
}

/// # Errors
/// `Shape` when H is not [in_features, in_features].
pub(crate) fn check_hessian(hessian: &Array2<f64>, in_features: usize) -> Result<()> {
    if hessian.dim() == (in_features, in_features) {
        return Ok(());
    }
    Err(AqlmError::Shape {
        what: "hessian".into(),
        expected: vec![in_features, in_features],
        found: hessian.shape().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::decode;
    use crate::hessian::Hessian;
    use crate::problem::{gaussian, problem};

    #[test]
    fn it_is_the_squared_error_of_the_outputs() {
        let p = problem(3, "2x3g4", 5, 3);
        let x = gaussian(4, 50, 12);
        let mut hessian = Hessian::new(12);
        hessian.add(x.view()).unwrap();
        let q = decode(&p.matrix);
        let outputs = x.dot(&(&p.weight - &q).t());
        let expected = outputs.iter().map(|v| v * v).sum::<f64>() / 50.0;
        // sums of 12 x 50 products
        let max_relative = 600.0 * f64::EPSILON;
        assert_relative_eq!(
            layer_error(&p.weight, &q, &hessian.mean()),
            expected,
            max_relative = max_relative
        );
        let reference = x.dot(&p.weight.t()).iter().map(|v| v * v).sum::<f64>() / 50.0;
        assert_relative_eq!(
            relative_layer_error(&p.weight, &q, &hessian.mean()),
            expected / reference,
            max_relative = 2.0 * max_relative
        );
    }

    #[test]
    fn nothing_out_of_nothing_is_no_error() {
        let zero = Array2::zeros((2, 4));
        assert_eq!(relative_layer_error(&zero, &zero, &Array2::eye(4)), 0.0);
    }
}
