use std::f64::consts::FRAC_2_PI;

use ndarray::{Array2, ArrayView2, Zip};

/// The cubic term of GELU's approximation.
const CUBIC: f64 = 0.044715;

/// GeGLU: gelu(gate) * up, all [tokens, intermediate] (Shazeer 2020), with GELU in its tanh approximation
/// (Hendrycks and Gimpel 2016): gelu(g) = g/2 (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))).
pub fn geglu(gate: ArrayView2<f64>, up: ArrayView2<f64>) -> Array2<f64> {
    Zip::from(gate)
        .and(up)
        .map_collect(|&g, &u| 0.5 * g * (1.0 + inner(g).tanh()) * u)
}

/// Gradients of [`geglu`] with respect to gate and up, given the gradient with respect to its result.
///
/// With t = tanh(z): d gelu/dg = (1 + t)/2 + g/2 (1 - t^2) dz/dg, dz/dg = sqrt(2/pi) (1 + 3 x 0.044715 g^2).
pub fn geglu_backward(
    gate: ArrayView2<f64>,
    up: ArrayView2<f64>,
    grad_y: ArrayView2<f64>,
) -> (Array2<f64>, Array2<f64>) {
    let mut grad_gate = Array2::zeros(gate.dim());
    let mut grad_up = Array2::zeros(gate.dim());
    Zip::from(&mut grad_gate)
        .and(&mut grad_up)
        .and(gate)
        .and(up)
        .and(grad_y)
        .for_each(|grad_gate, grad_up, &g, &u, &grad| {
            let t = inner(g).tanh();
            let rise = FRAC_2_PI.sqrt() * (1.0 + 3.0 * CUBIC * g * g);
            *grad_gate = grad * u * 0.5 * (1.0 + t + g * (1.0 - t * t) * rise);
            *grad_up = grad * 0.5 * g * (1.0 + t);
        });
    (grad_gate, grad_up)
}

/// The argument of tanh.
fn inner(g: f64) -> f64 {
    FRAC_2_PI.sqrt() * (g + CUBIC * g * g * g)
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{inner, normal, random};

    #[test]
    fn extreme_gates_open_and_close() {
        let y = geglu(
            arr2(&[[800.0, -800.0, 0.0]]).view(),
            arr2(&[[2.0, 2.0, 2.0]]).view(),
        );
        assert_eq!(y, arr2(&[[1600.0, 0.0, 0.0]]));
    }

    #[test]
    fn close_to_the_exact_gelu() {
        // g Phi(g), with Phi(1) = 0.841345 and Phi(-2) = 0.022750; the approximation is off by at most 5e-4
        let y = geglu(arr2(&[[1.0, -2.0]]).view(), arr2(&[[1.0, 1.0]]).view());
        assert!((y[[0, 0]] - 0.841_345).abs() < 5e-4 && (y[[0, 1]] + 0.045_500).abs() < 5e-4);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let mut rng = random(1);
        let [gate, up, direction] = [(); 3].map(|()| normal(&mut rng, (3, 4)));
        let loss = |gate: &Array2<f64>, up: &Array2<f64>| inner(&geglu(gate.view(), up.view()), &direction);
        let (grad_gate, grad_up) = geglu_backward(gate.view(), up.view(), direction.view());
        assert_gradient("gate", &grad_gate, &gate, 12, |gate| loss(gate, &up));
        assert_gradient("up", &grad_up, &up, 12, |up| loss(&gate, up));
    }
}
