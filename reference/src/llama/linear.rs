use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

use crate::linalg::product;

/// A linear layer: x W^T + b, for x of shape [tokens, in] and W of shape [out, in].
pub fn linear(x: ArrayView2<f64>, weight: ArrayView2<f64>, bias: Option<ArrayView1<f64>>) -> Array2<f64> {
    let mut y = product(x, weight.t());
    if let Some(bias) = bias {
        y += &bias;
    }
    y
}

/// Gradients of [`linear`], given the gradient with respect to its result.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearGradients {
    /// grad_y W, [tokens, in]
    pub x: Array2<f64>,
    /// grad_y^T x, [out, in]
    pub weight: Array2<f64>,
    /// grad_y summed over tokens, `[out]`
    pub bias: Array1<f64>,
}

/// Gradients of [`linear`] with respect to x, the weight and the bias.
pub fn linear_backward(
    x: ArrayView2<f64>,
    weight: ArrayView2<f64>,
    grad_y: ArrayView2<f64>,
) -> LinearGradients {
    LinearGradients {
        x: product(grad_y, weight),
        weight: product(grad_y.t(), x),
        bias: grad_y.sum_axis(Axis(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{inner, normal, random};

    #[test]
    fn gradients_match_finite_differences() {
        let mut rng = random(1);
        let (x, w, b) = (
            normal(&mut rng, (3, 4)),
            normal(&mut rng, (5, 4)),
            normal(&mut rng, 5),
        );
        let direction = normal(&mut rng, (3, 5));
        let loss = |x: &Array2<f64>, w: &Array2<f64>, b: &Array1<f64>| {
            inner(&linear(x.view(), w.view(), Some(b.view())), &direction)
        };
        let ours = linear_backward(x.view(), w.view(), direction.view());
        let terms = 5 * direction.len();
        assert_gradient("x", &ours.x, &x, terms, |x| loss(x, &w, &b));
        assert_gradient("weight", &ours.weight, &w, terms, |w| loss(&x, w, &b));
        assert_gradient("bias", &ours.bias, &b, terms, |b| loss(&x, &w, b));
    }
}
