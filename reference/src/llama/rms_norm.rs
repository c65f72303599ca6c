use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Zip};

/// RMSNorm: each row of x divided by its root mean square, times the weight.
///
/// x and the result are [tokens, hidden]; y = w x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019, equation
/// 4).
pub fn rms_norm(x: ArrayView2<f64>, weight: ArrayView1<f64>, eps: f64) -> Array2<f64> {
    let mut y = x.to_owned();
    for mut row in y.rows_mut() {
        let factor = reciprocal_root(row.view(), eps);
        Zip::from(&mut row).and(weight).for_each(|y, &w| *y *= factor * w);
    }
    y
}

/// Gradients of [`rms_norm`] with respect to x and the weight, given the gradient with respect to its result.
///
/// With r the reciprocal root and u = w * grad_y: grad_x = r u - x r^3 <u, x> / hidden, grad_w = sum over
/// tokens of grad_y r x.
pub fn rms_norm_backward(
    x: ArrayView2<f64>,
    weight: ArrayView1<f64>,
    eps: f64,
    grad_y: ArrayView2<f64>,
) -> (Array2<f64>, Array1<f64>) {
    let hidden = x.ncols() as f64;
    let mut grad_x = &grad_y * &weight;
    let mut grad_weight = Array1::zeros(weight.len());
    for ((x, grad_y), mut grad_x) in x.rows().into_iter().zip(grad_y.rows()).zip(grad_x.rows_mut()) {
        let factor = reciprocal_root(x, eps);
        let along = grad_x.dot(&x) * factor.powi(3) / hidden;
        Zip::from(&mut grad_x)
            .and(x)
            .for_each(|g, &x| *g = factor * *g - along * x);
        Zip::from(&mut grad_weight)
            .and(x)
            .and(grad_y)
            .for_each(|sum, &x, &g| *sum += factor * x * g);
    }
    (grad_x, grad_weight)
}

/// 1 / sqrt(mean(x^2) + eps).
fn reciprocal_root(x: ArrayView1<f64>, eps: f64) -> f64 {
    1.0 / (x.dot(&x) / x.len() as f64 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{inner, normal, random};

    #[test]
    fn rows_have_unit_mean_square() {
        let x = 5.0 * normal(&mut random(1), (3, 8));
        let y = rms_norm(x.view(), Array1::ones(8).view(), 0.0);
        for row in y.rows() {
            // a sum of 8 squares and its root: each rounding contributes at most half an epsilon
            assert!((row.dot(&row) / 8.0 - 1.0).abs() < 16.0 * f64::EPSILON);
        }
    }

    #[test]
    fn a_zero_row_stays_zero() {
        assert_eq!(
            rms_norm(Array2::zeros((1, 4)).view(), Array1::ones(4).view(), 1e-5),
            Array2::zeros((1, 4))
        );
    }

    #[test]
    fn gradients_match_finite_differences() {
        let mut rng = random(2);
        let (x, w, direction) = (
            normal(&mut rng, (3, 5)),
            normal(&mut rng, 5),
            normal(&mut rng, (3, 5)),
        );
        // an epsilon as large as the mean square, so that its effect on the gradient is visible
        let eps = 0.3;
        let loss = |x: &Array2<f64>, w: &Array1<f64>| inner(&rms_norm(x.view(), w.view(), eps), &direction);
        let (grad_x, grad_w) = rms_norm_backward(x.view(), w.view(), eps, direction.view());
        assert_gradient("x", &grad_x, &x, 15, |x| loss(x, &w));
        assert_gradient("weight", &grad_w, &w, 15, |w| loss(&x, w));
    }
}
