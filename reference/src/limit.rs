/// The least relative layer error, tr(E H E^T) / tr(W H W^T), with which any code of `bits` bits a weight can
/// describe independent Gaussian weights of equal variance under the metric H (Shannon's rate-distortion
/// function, by reverse water-filling). `spectrum` holds H's eigenvalues in any order; negative ones
/// (rounding) count as 0.
///
/// In H's eigenvectors the weights are independent components whose variances are H's eigenvalues. Every
/// component gets the same distortion, the water level, except those whose whole variance is below that
/// level: they get no bits and cost their variance. Where no eigenvalue is below the level, the limit is
/// 2^(-2 bits) x geometric mean / arithmetic mean of the eigenvalues.
///
/// A Gaussian is the hardest source of its variance, so other weights may fall below this limit. The limit of
/// an H of zeros is 0.
pub fn rate_distortion_limit(spectrum: &[f64], bits: f64) -> f64 {
    let mut variances: Vec<f64> = spectrum.iter().map(|variance| variance.max(0.0)).collect();
    variances.sort_by(|a, b| f64::total_cmp(b, a));
    distortion(&variances, bits)
}

/// A relative layer error's distance from its limit in dB, 10 log10(error / limit). NaN when both are zero.
pub fn limit_db(relative_error: f64, limit: f64) -> f64 {
    10.0 * (relative_error / limit).log10()
}

/// Reverse water-filling over `variances`, largest first: the distortion at `bits` bits for each component on
/// average, as a share of the sum of the variances.
fn distortion(variances: &[f64], bits: f64) -> f64 {
    let total: f64 = variances.iter().sum();
    if total <= 0.0 {
        return 0.0;
    }
    // With the k largest components above the level: n bits = sum over them of log2(variance / level) / 2.
    let mut logarithms = 0.0;
    let mut level = variances[0];
    let mut active = 0;
    for (k, &variance) in variances.iter().enumerate() {
        if variance <= 0.0 {
            break;
        }
        logarithms += variance.log2();
        let count = (k + 1) as f64;
        let candidate = ((logarithms - 2.0 * bits * variances.len() as f64) / count).exp2();
        if candidate > variance {
            break;
        }
        (level, active) = (candidate, k + 1);
    }
    let below: f64 = variances[active..].iter().sum();
    (level * active as f64 + below) / total
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use ndarray::Array2;
    use proptest::prelude::*;

    use super::*;
    use crate::linalg::eigenvalues;
    use crate::problem::{config, spd};

    /// A sum of this many logarithms, divided by their number.
    const ROUNDING: f64 = 64.0 * f64::EPSILON;

    #[test]
    fn a_white_source_halves_its_error_with_every_half_bit() {
        for bits in [0.0f64, 0.5, 2.0, 3.25] {
            let limit = rate_distortion_limit(&[3.0; 12], bits);
            assert_relative_eq!(limit, (-2.0 * bits).exp2(), max_relative = ROUNDING);
        }
        assert_relative_eq!(
            limit_db(0.125, 0.0625),
            10.0 * 2f64.log10(),
            max_relative = ROUNDING
        );
    }

    #[test]
    fn with_enough_bits_it_is_the_ratio_of_the_means() {
        let variances = [8.0, 4.0, 2.0, 1.0];
        // geometric mean 2^1.5, arithmetic mean 15 / 4; level 2^1.5 / 16 is below 1
        let expected = 1.5f64.exp2() / 16.0 / (15.0 / 4.0);
        assert_relative_eq!(
            rate_distortion_limit(&variances, 2.0),
            expected,
            max_relative = ROUNDING
        );
    }

    #[test]
    fn the_lower_of_two_levels_is_flooded_first() {
        // n = 4, two components of 16 and two of 1. Up to 1 bit for each component on average, all 4 bits go
        // to the two large ones: level 16 x 2^(-2 x 4 bits / 2), and the small ones cost their variance.
        let variances = [16.0, 1.0, 16.0, 1.0];
        for bits in [0.0f64, 0.25, 0.5, 1.0] {
            let level = 16.0 * (-4.0 * bits).exp2();
            let expected = (2.0 * level + 2.0) / 34.0;
            assert_relative_eq!(
                rate_distortion_limit(&variances, bits),
                expected,
                max_relative = ROUNDING
            );
        }
        // Above that, all four share one level: 4 x 2^(-2 bits), the geometric mean being 4.
        for bits in [1.0f64, 1.5, 3.0] {
            let expected = 4.0 * 4.0 * (-2.0 * bits).exp2() / 34.0;
            assert_relative_eq!(
                rate_distortion_limit(&variances, bits),
                expected,
                max_relative = ROUNDING
            );
        }
    }

    #[test]
    fn dead_inputs_cost_nothing() {
        // two live components share the bits of four
        let expected = (-2.0f64 * 2.0 * 2.0).exp2();
        assert_relative_eq!(
            rate_distortion_limit(&[5.0, 0.0, 5.0, 0.0], 2.0),
            expected,
            max_relative = ROUNDING
        );
        assert_eq!(rate_distortion_limit(&[0.0; 3], 2.0), 0.0);
    }

    proptest! {
        #![proptest_config(config(32))]
        #[test]
        fn the_level_spends_the_bits(variances in prop::collection::vec(1e-6f64..10.0, 1..20), bits in 0.0f64..5.0) {
            let mut sorted = variances.clone();
            sorted.sort_by(|a, b| f64::total_cmp(b, a));
            let share = distortion(&sorted, bits);
            // Bisection for the level, from the definition.
            let n = sorted.len() as f64;
            let rate = |level: f64| sorted.iter().map(|v| (v / level).log2().max(0.0) / 2.0).sum::<f64>() / n;
            let (mut low, mut high) = (-200f64, 10f64);
            for _ in 0..200 {
                let middle = f64::midpoint(low, high);
                if rate(middle.exp2()) > bits { low = middle } else { high = middle }
            }
            let expected: f64 = sorted.iter().map(|v| v.min(high.exp2())).sum::<f64>() / sorted.iter().sum::<f64>();
            prop_assert!((share - expected).abs() <= 1e-9 * expected, "{} {}", share, expected);
        }

        #[test]
        fn it_does_not_depend_on_the_basis(seed: u64, bits in 0.0f64..4.0) {
            // A rotation of the inputs leaves the limit; here of two of them by the angle of 3, 4, 5.
            let hessian = spd(seed, 6);
            let mut turn = Array2::eye(6);
            for (at, value) in [((0, 0), 0.6), ((0, 3), 0.8), ((3, 0), -0.8), ((3, 3), 0.6)] {
                turn[at] = value;
            }
            let turned = turn.dot(&hessian).dot(&turn.t());
            let [a, b] = [&hessian, &turned].map(|h| rate_distortion_limit(&eigenvalues(h.view(), "hessian").unwrap(), bits));
            // The smallest eigenvalue is known to epsilon of the largest, three orders above it.
            prop_assert!((a - b).abs() <= 1e5 * f64::EPSILON * a);
        }
    }
}
