use ndarray::{Array2, ArrayView2, Zip};

/// SwiGLU: silu(gate) * up, all [tokens, intermediate] (Shazeer 2020); silu(g) = g / (1 + e^-g).
pub fn swiglu(gate: ArrayView2<f64>, up: ArrayView2<f64>) -> Array2<f64> {
    Zip::from(gate).and(up).map_collect(|&g, &u| g * sigmoid(g) * u)
}

/// Gradients of [`swiglu`] with respect to gate and up, given the gradient with respect to its result.
///
/// d silu/dg = s (1 + g (1 - s)) with s the sigmoid of g.
pub fn swiglu_backward(
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
            let s = sigmoid(g);
            *grad_gate = grad * u * s * (1.0 + g * (1.0 - s));
            *grad_up = grad * g * s;
        });
    (grad_gate, grad_up)
}

/// 1 / (1 + e^-g); if the exponential overflows, the result is zero, which is the right limit.
fn sigmoid(g: f64) -> f64 {
    1.0 / (1.0 + (-g).exp())
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{inner, normal, random};

    #[test]
    fn extreme_gates_open_and_close() {
        let y = swiglu(
            arr2(&[[800.0, -800.0, 0.0]]).view(),
            arr2(&[[2.0, 2.0, 2.0]]).view(),
        );
        assert_eq!(y, arr2(&[[1600.0, 0.0, 0.0]]));
    }

    #[test]
    fn gradients_match_finite_differences() {
        let mut rng = random(1);
        let [gate, up, direction] = [(); 3].map(|()| normal(&mut rng, (3, 4)));
        let loss = |gate: &Array2<f64>, up: &Array2<f64>| inner(&swiglu(gate.view(), up.view()), &direction);
        let (grad_gate, grad_up) = swiglu_backward(gate.view(), up.view(), direction.view());
        assert_gradient("gate", &grad_gate, &gate, 12, |gate| loss(gate, &up));
        assert_gradient("up", &grad_up, &up, 12, |up| loss(&gate, up));
    }
}
