use ndarray::ArrayViewMut1;

/// A row of scores as a slice.
///
/// # Panics
/// When its elements are not contiguous. Those of a row of a product are.
pub(crate) fn slice_of<'a>(scores: &'a ArrayViewMut1<'_, f64>) -> &'a [f64] {
    scores.as_slice().expect("a row of a product")
}

/// The minimum of `scores` and its index, the lowest among equals. `None` when no score is below infinity.
/// NaN never wins.
///
/// Every search of this crate ends in this loop. It keeps several minima side by side, so that the compiler
/// can vectorize it.
pub(crate) fn least(scores: &[f64]) -> Option<(usize, f64)> {
    const LANES: usize = 8;
    let smaller = |a: f64, b: f64| if b < a { b } else { a };
    let mut minima = [f64::INFINITY; LANES];
    let chunks = scores.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (minimum, &score) in minima.iter_mut().zip(chunk) {
            *minimum = smaller(*minimum, score);
        }
    }
    let minimum = minima.iter().chain(rest).copied().fold(f64::INFINITY, smaller);
    let index = scores.iter().position(|&score| score == minimum)?;
    (minimum < f64::INFINITY).then_some((index, minimum))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::problem::config;

    proptest! {
        #![proptest_config(config(128))]
        #[test]
        fn it_is_the_first_least(scores in prop::collection::vec(-4i32..4, 0..40)) {
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            let mut expected: Option<(usize, f64)> = None;
            for (i, &score) in scores.iter().enumerate() {
                if expected.is_none_or(|(_, best)| score < best) {
                    expected = Some((i, score));
                }
            }
            prop_assert_eq!(least(&scores), expected);
        }
    }

    #[test]
    fn nan_is_never_chosen() {
        assert_eq!(least(&[f64::NAN, 2.0, f64::NAN, 1.0]), Some((3, 1.0)));
        assert_eq!(least(&[f64::NAN]), None);
        assert_eq!(least(&[f64::INFINITY]), None);
    }
}
