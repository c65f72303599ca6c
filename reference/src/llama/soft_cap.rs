/// A soft cap of absolute values: cap tanh(x / cap), which is nearly x for small x and stays below the cap
/// (Gemma 2, section 2).
pub fn soft_cap(x: f64, cap: f64) -> f64 {
    cap * (x / cap).tanh()
}

/// The slope of [`soft_cap`] at the point where its value is `y`: 1 - (y / cap)^2.
pub fn soft_cap_slope(y: f64, cap: f64) -> f64 {
    1.0 - (y / cap).powi(2)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, arr1};

    use super::*;
    use crate::llama::finite_difference::assert_gradient;

    #[test]
    fn small_values_stay_and_large_ones_end_at_the_cap() {
        assert!((soft_cap(1e-4, 5.0) - 1e-4).abs() <= 1e-12 / 25.0);
        assert_eq!((soft_cap(1e6, 5.0), soft_cap(-1e6, 5.0)), (5.0, -5.0));
    }

    #[test]
    fn slope_matches_finite_differences() {
        let x = arr1(&[-3.0, -0.5, 0.0, 0.7, 2.0]);
        let slope = x.mapv(|x| soft_cap_slope(soft_cap(x, 1.5), 1.5));
        let sum = |x: &Array1<f64>| x.mapv(|x| soft_cap(x, 1.5)).sum();
        assert_gradient("x", &slope, &x, 5, sum);
    }
}
