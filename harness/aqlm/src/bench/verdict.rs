use half::{bf16, f16};

use super::Worst;

/// Elements shown of a kernel that is wrong.
const SHOWN: usize = 8;

/// What comparing an output with the reference's came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// right; the normalised squared error (0 where equality was asked for)
    Right(f64),
    /// wrong: why, and the elements furthest off
    Wrong(String, Vec<Worst>),
}

/// A format of outputs.
pub(crate) trait Element: Copy + Sync {
    /// The nearest number of the format.
    fn nearest(value: f64) -> Self;
    /// Exact.
    fn widened(self) -> f64;
}

impl Element for f16 {
    fn nearest(value: f64) -> Self {
        Self::from_f64(value)
    }

    fn widened(self) -> f64 {
        self.to_f64()
    }
}

impl Element for bf16 {
    fn nearest(value: f64) -> Self {
        Self::from_f64(value)
    }

    fn widened(self) -> f64 {
        self.to_f64()
    }
}

impl Element for f32 {
    fn nearest(value: f64) -> Self {
        value as Self
    }

    fn widened(self) -> f64 {
        f64::from(self)
    }
}

impl Verdict {
    /// Every element must be the reference's value rounded once. `columns` is the length of an output row.
    pub(crate) fn exact<T: Element>(found: &[T], expected: &[f64], columns: usize) -> Self {
        let wrong = expected
            .iter()
            .zip(found)
            .filter(|(a, b)| T::nearest(**a).widened() != b.widened())
            .count();
        if let Some(vacuous) = Self::vacuous(found, expected, columns) {
            return vacuous;
        }
        if wrong == 0 {
            return Self::Right(0.0);
        }
        let reason = format!(
            "exact tier: {wrong} of {} elements differ from the reference",
            expected.len()
        );
        Self::Wrong(reason, worst(found, expected, columns))
    }

    /// sum((found - expected)^2) / sum(expected^2) must be at most `limit`.
    pub(crate) fn close<T: Element>(found: &[T], expected: &[f64], columns: usize, limit: f64) -> Self {
        if let Some(vacuous) = Self::vacuous(found, expected, columns) {
            return vacuous;
        }
        let norm: f64 = expected.iter().map(|a| a * a).sum();
        let error: f64 = expected
            .iter()
            .zip(found)
            .map(|(a, b)| (a - b.widened()).powi(2))
            .sum();
        let nmse = error / norm;
        // NaN is not at most anything.
        if nmse <= limit {
            return Self::Right(nmse);
        }
        let reason = format!("random tier: normalised squared error {nmse:.3e}, limit {limit:.1e}");
        Self::Wrong(reason, worst(found, expected, columns))
    }

    fn vacuous<T: Element>(found: &[T], expected: &[f64], columns: usize) -> Option<Self> {
        if found.len() != expected.len() {
            let reason = format!("expected {} elements, found {}", expected.len(), found.len());
            return Some(Self::Wrong(reason, Vec::new()));
        }
        expected.iter().all(|value| *value == 0.0).then(|| {
            let reason = "the reference is zero everywhere, so the comparison would say nothing".to_owned();
            Self::Wrong(reason, worst(found, expected, columns))
        })
    }
}

/// The elements with the largest difference, NaN first.
fn worst<T: Element>(found: &[T], expected: &[f64], columns: usize) -> Vec<Worst> {
    let off = |i: usize| {
        let difference = (found[i].widened() - expected[i]).abs();
        if difference.is_nan() {
            f64::INFINITY
        } else {
            difference
        }
    };
    let mut order: Vec<usize> = (0..expected.len().min(found.len())).collect();
    order.sort_by(|&a, &b| off(b).total_cmp(&off(a)).then(a.cmp(&b)));
    order
        .into_iter()
        .take(SHOWN)
        .map(|i| Worst {
            row: i / columns.max(1),
            column: i % columns.max(1),
            expected: expected[i],
            found: found[i].widened(),
        })
        .collect()
}

/// The limit on the normalised squared error of f16 outputs.
///
/// f16 rounds with a relative error of at most u = 2^-11: once for the output, and in a kernel that adds up a
/// group in f16 once for each of the M G / 2 terms of a half group (a kernel that adds codewords in f16
/// rounds M - 1 times). Errors of different terms are independent, so their squares add up. A decode rounds
/// each codeword's addition and the output: M + 1 times at most.
pub(super) fn limit(op: super::BenchOp, num_codebooks: usize, in_group_size: usize) -> f64 {
    let roundings = match op {
        super::BenchOp::Decode => num_codebooks + 1,
        super::BenchOp::Matvec | super::BenchOp::Matmul => 1 + num_codebooks * in_group_size / 2,
    };
    2f64.powi(-22) * roundings as f64
}

/// The same for bf16, u = 2^-8: once for the output and for each addition of codewords, which some kernels
/// make in bf16; all other sums are f32's. A weight that is decoded first is rounded once more.
pub(super) fn limit_bf16(op: super::BenchOp, num_codebooks: usize) -> f64 {
    let roundings = match op {
        super::BenchOp::Decode | super::BenchOp::Matvec => num_codebooks + 1,
        super::BenchOp::Matmul => num_codebooks + 2,
    };
    2f64.powi(-16) * roundings as f64
}

/// The same for f32 outputs and sums, u = 2^-24: a product rounds each of its `in_features` terms' additions,
/// the codewords' and the scale.
pub(super) fn limit_f32(op: super::BenchOp, num_codebooks: usize, in_features: usize) -> f64 {
    let terms = match op {
        super::BenchOp::Decode => 0,
        super::BenchOp::Matvec | super::BenchOp::Matmul => in_features,
    };
    2f64.powi(-48) * (terms + num_codebooks + 4) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halves(values: &[f64]) -> Vec<f16> {
        values.iter().map(|&value| f16::from_f64(value)).collect()
    }

    #[test]
    fn one_wrong_element_is_found_and_shown_first() {
        let expected = [1.0, 2.0, -3.0, 0.5];
        assert_eq!(
            Verdict::exact(&halves(&expected), &expected, 2),
            Verdict::Right(0.0)
        );
        let found = halves(&[1.0, 2.0, 3.0, 0.5]);
        let Verdict::Wrong(_, worst) = Verdict::exact(&found, &expected, 2) else {
            panic!("a wrong sign passed")
        };
        assert_eq!((worst[0].row, worst[0].column, worst[0].found), (1, 0, 3.0));
    }

    #[test]
    fn what_was_never_written_fails_both_tiers() {
        let expected = [1.0, 2.0];
        let found = [f16::ONE, f16::NAN];
        for verdict in [
            Verdict::exact(&found, &expected, 2),
            Verdict::close(&found, &expected, 2, 1.0),
        ] {
            let Verdict::Wrong(_, worst) = verdict else {
                panic!("NaN passed")
            };
            assert_eq!(worst[0].column, 1);
        }
    }

    #[test]
    fn a_reference_of_zeros_and_a_wrong_length_prove_nothing() {
        let zeros = halves(&[0.0, 0.0]);
        assert!(matches!(
            Verdict::exact(&zeros, &[0.0, 0.0], 2),
            Verdict::Wrong(..)
        ));
        assert!(matches!(
            Verdict::close(&zeros, &[1.0], 1, 1.0),
            Verdict::Wrong(..)
        ));
    }

    #[test]
    fn errors_above_the_limit_fail() {
        let expected = [1.0, 1.0];
        let found = halves(&[1.0, 1.25]);
        assert!(matches!(
            Verdict::close(&found, &expected, 2, 0.04),
            Verdict::Right(_)
        ));
        assert!(matches!(
            Verdict::close(&found, &expected, 2, 0.03),
            Verdict::Wrong(..)
        ));
    }
}
