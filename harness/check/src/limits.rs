//! Every limit of the cross-check, in one table: what is compared, in which type it was computed, how much it
//! may differ, and why. Nothing else in the check holds a tolerance.

use std::fmt;

use half::{bf16, f16};
use serde::Serialize;

use super::Comparison;
use crate::cases::Operation;
use aqlm_formats::{Error, Result};

/// The arithmetic of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Number {
    /// f64: the reference
    F64,
    /// f32 throughout
    F32,
    /// results, and some partial sums, in f16
    F16,
    /// results, inputs and codewords in bf16
    Bf16,
}

impl Number {
    /// Distance from 1 to the next number.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::F64 => f64::EPSILON,
            Self::F32 => f64::from(f32::EPSILON),
            Self::F16 => 2f64.powi(-10),
            Self::Bf16 => 2f64.powi(-7),
        }
    }

    /// The nearest number of the type; halfway, the even one.
    pub fn nearest(self, value: f64) -> f64 {
        match self {
            Self::F64 => value,
            Self::F32 => f64::from(value as f32),
            Self::F16 => f16::from_f64(value).to_f64(),
            Self::Bf16 => bf16::from_f64(value).to_f64(),
        }
    }

    /// Whether results are in a type of 16 bits.
    pub fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }

    /// Half the distance between denormal numbers: what rounding one of them may lose.
    pub fn denormal_rounding(self) -> f64 {
        match self {
            Self::F64 => 0.0,
            Self::F32 => 2f64.powi(-150),
            Self::F16 => 2f64.powi(-25),
            Self::Bf16 => 2f64.powi(-134),
        }
    }
}

/// How a limit follows from the number of `terms` and the epsilon of the type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// nothing may differ
    Exact,
    /// terms x epsilon / 2, as a share of the sum of magnitudes: Higham's gamma_n to first order, for every
    /// element
    Roundings,
    /// (terms x epsilon)^2 as a share of the squares (NMSE): as if every term were rounded twice, always to
    /// one side
    Squares,
    /// (epsilon / 2)^2 (y^2 + terms x groups' squared magnitudes), summed over rows, with the deviation of
    /// [`chance`], as a share of the squares (NMSE): roundings of different terms are independent, so that
    /// their squares add up, but those of equal rows are equal
    Independent,
    /// a share of the reference's loss that a requirement fixes
    Required(f64),
    /// standard errors of a mean
    StandardErrors(f64),
    /// central differences with the step cbrt(epsilon): terms x epsilon^(2/3)
    Differences,
}

impl Rule {
    /// The limit.
    pub fn limit(self, number: Number, terms: usize) -> f64 {
        let (epsilon, terms) = (number.epsilon(), terms as f64);
        match self {
            Self::Exact => 0.0,
            Self::Roundings => terms * epsilon / 2.0,
            Self::Squares => (terms * epsilon).powi(2),
            // of one unit of squared magnitude
            Self::Independent => terms * epsilon * epsilon / 4.0,
            Self::Required(share) | Self::StandardErrors(share) => share,
            Self::Differences => terms * epsilon.powf(2.0 / 3.0),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("0"),
            Self::Roundings => f.write_str("n eps / 2"),
            Self::Squares => f.write_str("(n eps)^2"),
            Self::Independent => f.write_str("n eps^2 / 4, chance"),
            Self::Required(share) => write!(f, "{share}"),
            Self::StandardErrors(count) => write!(f, "{count} standard errors"),
            Self::Differences => f.write_str("n eps^(2/3)"),
        }
    }
}

/// What is compared. The same word means the same measure for every operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// elements that differ, on inputs whose sums are exact
    Exact,
    /// elements that differ between two runs, or between 1 and 2 threads
    Repeat,
    /// the worst element's error as a share of its sum of magnitudes
    Element,
    /// sum of squared errors over sum of squares
    Nmse,
    /// by how much a choice is worse than the best there, as a share of the magnitudes it was made from
    Choice,
    /// by how much a loss is above the one it must not exceed, as a share of it
    Loss,
    /// mean over cases of ln(loss / the reference's loss)
    Pooled,
    /// a gradient against central differences
    Gradient,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Repeat => "repeat",
            Self::Element => "element",
            Self::Nmse => "nmse",
            Self::Choice => "choice",
            Self::Loss => "loss",
            Self::Pooled => "pooled",
            Self::Gradient => "gradient",
        })
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// the operations it is for
    pub operations: &'static [Operation],
    /// the arithmetic it is for; `None` for any
    pub number: Option<Number>,
    /// what is compared
    pub measure: Measure,
    /// how it is computed
    pub rule: Rule,
    /// what n counts
    pub terms: &'static str,
    /// why it is right
    pub reason: &'static str,
}

use Operation as Op;

/// The share of the reference's loss that another's may be above it: what the CPU backend was asked for.
pub const SAME_LOSS: f64 = 1e-3;

const SEARCHES: &[Op] = &[
    Op::Kmeans,
    Op::ResidualInit,
    Op::EmInit,
    Op::BeamSearch,
    Op::LayerQuantize,
];
const BLOCKS: &[Op] = &[
    Op::BlockForward,
    Op::BlockBackward,
    Op::ModelForward,
    Op::Perplexity,
];

/// The table. The first row that fits counts.
pub const LIMITS: &[Limit] = &[
    Limit {
        operations: Op::ALL,
        number: None,
        measure: Measure::Exact,
        rule: Rule::Exact,
        terms: "-",
        reason: "inputs are multiples of 1/8 or so: every product and sum has a place in the significand, in any order",
    },
    Limit {
        operations: Op::ALL,
        number: None,
        measure: Measure::Repeat,
        rule: Rule::Exact,
        terms: "-",
        reason: "sums have one order, whatever the number of threads (docs/architecture.md)",
    },
    Limit {
        operations: &[Op::Decode],
        number: None,
        measure: Measure::Element,
        rule: Rule::Roundings,
        terms: "codebooks + 1, in bf16 + 2",
        reason: "the sum of codewords and its scaling, each rounded once; in bf16 also the codewords themselves",
    },
    Limit {
        operations: &[Op::Matvec],
        number: None,
        measure: Measure::Element,
        rule: Rule::Roundings,
        terms: "inputs + codebooks + 4",
        reason: "the products along a row, the codewords in each, the scaling, and the sums of a few blocks",
    },
    Limit {
        operations: &[Op::Matmul],
        number: None,
        measure: Measure::Element,
        rule: Rule::Roundings,
        terms: "inputs + 2 codebooks + 5",
        reason: "as matvec, and the weight may have been decoded and rounded before",
    },
    Limit {
        operations: &[Op::Matvec, Op::Matmul],
        number: Some(Number::F16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        terms: "codebooks x group / 2 (matvec), codebooks + 1 (matmul)",
        reason: "the result is rounded to f16; kernels that add up a group in f16 round once a term of half a group, others the sums of \
                 codewords and perhaps the decoded weight",
    },
    Limit {
        operations: &[Op::Matvec, Op::Matmul],
        number: Some(Number::Bf16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        terms: "codebooks + 3",
        reason: "the result is rounded to bf16; x, codewords, their sums and perhaps the decoded weight are rounded on the way, sums are f32's",
    },
    Limit {
        operations: &[Op::Decode, Op::Matvec, Op::Matmul],
        number: None,
        measure: Measure::Nmse,
        rule: Rule::Roundings,
        terms: "those of `element`",
        reason: "what the limits of all elements come to together: the limit of NMSE is its square times the sum of \
                 squared magnitudes over the sum of squares",
    },
    Limit {
        operations: &[Op::Hessian],
        number: None,
        measure: Measure::Nmse,
        rule: Rule::Squares,
        terms: "the smaller of samples and 1024",
        reason: "products are summed in f32 over at most 1024 samples, and in f64 beyond",
    },
    Limit {
        operations: &[Op::Kmeans, Op::ResidualInit],
        number: None,
        measure: Measure::Choice,
        rule: Rule::Roundings,
        terms: "8 x (coordinates + 2 codebooks + 4)",
        reason: "two distances, each |p|^2 - 2<p,c> + |c|^2 of rounded numbers, of at most 4 max(|p|, |c|)^2",
    },
    Limit {
        operations: &[Op::Kmeans],
        number: None,
        measure: Measure::Nmse,
        rule: Rule::Squares,
        terms: "points + 2",
        reason: "means of at most all points, or the mean distance of all",
    },
    Limit {
        operations: &[Op::ResidualInit, Op::EmInit],
        number: None,
        measure: Measure::Nmse,
        rule: Rule::Squares,
        terms: "weights of an output group + 2",
        reason: "a scale is the norm of its output group: a sum of squares, a root and a small constant",
    },
    Limit {
        operations: &[Op::BeamSearch],
        number: None,
        measure: Measure::Choice,
        rule: Rule::Roundings,
        terms: "4 x (2 inputs + positions + codebooks + 8)",
        reason: "two scores, each a product of (W - Q) H, kept up to date over all positions, with a codeword; n counts the \
                 longest chain, and each term is rounded twice",
    },
    Limit {
        operations: &[
            Op::BeamSearch,
            Op::CodebookUpdate,
            Op::LayerQuantize,
            Op::EmInit,
            Op::Kmeans,
        ],
        number: Some(Number::F64),
        measure: Measure::Loss,
        rule: Rule::Roundings,
        terms: "4 x (2 inputs + codebooks + 4)",
        reason: "two losses, each summed over inputs twice, as a share of the sum of magnitudes",
    },
    Limit {
        operations: SEARCHES,
        number: None,
        measure: Measure::Loss,
        rule: Rule::Roundings,
        terms: "8 x (2 inputs + positions + codebooks + 8)",
        reason: "the search compares losses of rounded numbers: where the difference drowns in rounding, either is right",
    },
    Limit {
        operations: &[Op::CodebookUpdate],
        number: None,
        measure: Measure::Loss,
        rule: Rule::Required(SAME_LOSS),
        terms: "-",
        reason: "required of the CPU backend: a loss within 0.1 % of the reference's, whose optimum has one value",
    },
    Limit {
        operations: SEARCHES,
        number: None,
        measure: Measure::Pooled,
        rule: Rule::StandardErrors(6.0),
        terms: "-",
        reason: "f32 and f64 part ways at near ties and end in different optima, none of which is better on average; a mean \
                 of 12 such differences or more is beyond 6 of its standard errors less than once in 10^4 (Student's t)",
    },
    Limit {
        operations: &[Op::LayerQuantize],
        number: None,
        measure: Measure::Nmse,
        rule: Rule::Squares,
        terms: "2 inputs + codebooks",
        reason: "the loss that is reported against the same loss in f64: a sum over inputs, twice",
    },
    Limit {
        operations: BLOCKS,
        number: Some(Number::F16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        terms: "values rounded to f16 on the path (LlamaCase::roundings)",
        reason: "sums are in f32, so that only weights and activations that are stored in f16 are rounded, each independently of \
                 the others; products of random numbers pass the share of the squares on as it is, and scores times their own spread",
    },
    Limit {
        operations: BLOCKS,
        number: None,
        measure: Measure::Nmse,
        rule: Rule::Squares,
        terms: "the sums along the longest path (LlamaCase::terms), once a block and direction; rows for gradients",
        reason: "errors of a path's sums add up; norms and softmax do not enlarge them for numbers of unit size",
    },
    Limit {
        operations: &[Op::BlockFinetune],
        number: None,
        measure: Measure::Nmse,
        rule: Rule::Squares,
        terms: "the same x 2 x steps",
        reason: "each step's gradient has a pass forward and one back, and steps build on one another",
    },
    Limit {
        operations: &[Op::BlockBackward, Op::BlockFinetune],
        number: Some(Number::F64),
        measure: Measure::Gradient,
        rule: Rule::Differences,
        terms: "sums along the path (LlamaCase::terms)",
        reason: "central differences lose step^2 to curvature and terms x epsilon / step to rounding; the step balances them",
    },
    Limit {
        operations: &[Op::BlockFinetune],
        number: Some(Number::F64),
        measure: Measure::Loss,
        rule: Rule::Exact,
        terms: "-",
        reason: "the best state is kept, so that the loss is never above where it started",
    },
];

/// What a sum of squared rounding errors stays below but once in 10^6: `variances` has one entry for each
/// group of errors that are independent of the others, the sum of their variances.
///
/// Sums of independent roundings have tails no heavier than a normal number's of that variance (Hoeffding),
/// and for squares of those the sum is above v1 + 2 sqrt(t v2) + 2 t vmax with a probability of at most
/// exp(-t), where v1 and v2 are the sums of variances and of their squares (Laurent and Massart 2000, lemma
/// 1; Hsu, Kakade and Zhang 2012). Of many rows of like size it is little more than the sum; of a single row,
/// or of equal rows, whose errors are equal, some 36 times as much.
pub fn chance(variances: &[f64]) -> f64 {
    let t = 1e6_f64.ln();
    let total: f64 = variances.iter().sum();
    let squares: f64 = variances.iter().map(|v| v * v).sum();
    let most = variances.iter().copied().fold(0.0, f64::max);
    total + 2.0 * (t * squares).sqrt() + 2.0 * t * most
}

/// The row for an operation, a type and a measure.
///
/// # Errors
/// `Argument` when the table has none: a mistake in the check, which then fails.
pub fn row(operation: Operation, number: Number, measure: Measure) -> Result<&'static Limit> {
    LIMITS
        .iter()
        .find(|limit| {
            limit.operations.contains(&operation)
                && limit.measure == measure
                && limit.number.is_none_or(|wanted| wanted == number)
        })
        .ok_or_else(|| {
            Error::argument(
                "limit",
                "a row of the table of limits",
                format!("{operation}, {number:?}, {measure}"),
            )
        })
}

/// `value` of a measure against its row's limit for `terms`.
///
/// # Errors
/// As [`row`].
pub fn compare(
    operation: Operation,
    number: Number,
    measure: Measure,
    terms: usize,
    what: &str,
    value: f64,
) -> Result<Comparison> {
    let limit = row(operation, number, measure)?.rule.limit(number, terms);
    Ok(Comparison::new(format!("{measure}: {what}"), value, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_with_terms_and_epsilon_and_stay_below_what_hides_mistakes() {
        for limit in LIMITS {
            let of = |number, terms| limit.rule.limit(number, terms);
            if !matches!(
                limit.rule,
                Rule::Exact | Rule::Required(_) | Rule::StandardErrors(_)
            ) {
                assert!(of(Number::F32, 100) > of(Number::F32, 10), "{limit:?}");
                assert!(of(Number::F32, 10) > of(Number::F64, 10), "{limit:?}");
                // in the type that the row is for
                let own = limit.number.unwrap_or(Number::F32);
                // in 16 bits only roundings inside a group count: 8 codebooks of groups of 16 make 64
                let terms = if limit.number.is_some_and(Number::is_half) {
                    100
                } else {
                    4000
                };
                assert!(of(own, terms) < 1e-2, "{limit:?}");
            }
            assert!(!limit.reason.is_empty() && !limit.operations.is_empty());
        }
    }

    #[test]
    fn chance_leaves_many_rows_little_and_equal_rows_much() {
        assert!(chance(&[1.0; 1_000]) < 1.3 * 1_000.0);
        // The same total in one group.
        assert!(chance(&[1_000.0]) > 30.0 * 1_000.0);
        assert!(chance(&[2.0, 3.0]) < chance(&[5.0]));
    }

    #[test]
    fn numbers_round_to_their_own_type() {
        for (number, next) in [(Number::F16, 2f64.powi(-10)), (Number::Bf16, 2f64.powi(-7))] {
            assert_eq!(number.epsilon(), next);
            assert_eq!(number.nearest(1.0 + next * 0.4), 1.0);
            assert_eq!(number.nearest(1.0 + next * 0.6), 1.0 + next);
        }
    }

    #[test]
    fn a_missing_row_is_an_error() {
        assert!(row(Operation::Decode, Number::F32, Measure::Pooled).is_err());
        assert_eq!(
            row(Operation::Matvec, Number::F16, Measure::Nmse).unwrap().rule,
            Rule::Independent
        );
    }
}
