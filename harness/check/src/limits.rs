//! Every limit of the cross-check in one table: the measure, the type of the computation, the allowed
//! difference, and the reason. No operation has a tolerance of its own. `aqlm bench`, the criterion benches
//! and the tests of `optimized` use the same table and rules.

use std::fmt;

use half::{bf16, f16};
use serde::Serialize;

use aqlm_vocabulary::Scheme;

use crate::operation::Operation;
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
    /// factors of products in TF32, everything else in f32
    Tf32,
}

impl Number {
    /// Distance from 1 to the next larger number.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::F64 => f64::EPSILON,
            Self::F32 => f64::from(f32::EPSILON),
            Self::F16 => 2f64.powi(-10),
            Self::Bf16 => 2f64.powi(-7),
            // TF32 has 10 bits after the point. A library may cut the others off instead of rounding them,
            // which is wrong by up to twice as much.
            Self::Tf32 => 2f64.powi(-9),
        }
    }

    /// The nearest number of the type; ties go to the even one.
    pub fn nearest(self, value: f64) -> f64 {
        match self {
            Self::F64 => value,
            Self::F32 | Self::Tf32 => f64::from(value as f32),
            Self::F16 => f16::from_f64(value).to_f64(),
            Self::Bf16 => bf16::from_f64(value).to_f64(),
        }
    }

    /// Whether results are in a 16-bit type.
    pub fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }

    /// Half the spacing of denormal numbers: the largest error of rounding to one.
    pub fn denormal_rounding(self) -> f64 {
        match self {
            Self::F64 => 0.0,
            Self::F32 | Self::Tf32 => 2f64.powi(-150),
            Self::F16 => 2f64.powi(-25),
            Self::Bf16 => 2f64.powi(-134),
        }
    }
}

/// How a limit follows from the number of `terms` and the type's epsilon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// no difference allowed
    Exact,
    /// for every element, terms x epsilon / 2 as a share of the sum of magnitudes: Higham's gamma_n to first
    /// order
    Roundings,
    /// (terms x epsilon)^2 as a share of the squares (NMSE): as if every term were rounded twice, always in
    /// the same direction
    Squares,
    /// (epsilon / 2)^2 (y^2 + terms x groups' squared magnitudes), summed over rows, with the deviation of
    /// [`chance`], as a share of the squares (NMSE). Roundings of different terms are independent, so their
    /// squares add up. Roundings of equal rows are equal.
    Independent,
    /// a share of the reference's loss, fixed by a requirement
    Required(f64),
    /// a number of standard errors of a mean
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
            // for one unit of squared magnitude
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

/// Measures. The same word means the same measure for every operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// number of elements that differ, on inputs whose sums are exact
    Exact,
    /// number of elements that differ between two runs, or between 1 and 2 threads
    Repeat,
    /// the worst element's error as a share of its sum of magnitudes
    Element,
    /// sum of squared errors over sum of squares
    Nmse,
    /// how much worse a choice is than the best one at the same point, as a share of the magnitudes behind
    /// the choice
    Choice,
    /// how far a loss is above its upper bound, as a share of the bound
    Loss,
    /// mean over cases of ln(loss / the reference's loss)
    Pooled,
    /// a gradient against central differences
    Gradient,
    /// a squared error below which losses are treated as equal, as a share of the squared magnitudes
    Floor,
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
            Self::Floor => "floor",
        })
    }
}

/// Sizes from which a limit counts its terms; zero for sizes that an operation does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// inputs of a layer, or numbers of a sample or point
    pub inputs: usize,
    /// M
    pub codebooks: usize,
    /// inputs of a codeword
    pub in_group: usize,
    /// outputs of a codeword
    pub out_group: usize,
    /// input groups times codebooks: positions that a search visits
    pub positions: usize,
    /// samples, points, tokens of all sequences, or outputs of a layer
    pub rows: usize,
    /// total length of the sums along the longest path through a block (`LlamaCase::terms`)
    pub path: usize,
    /// values rounded to f16 along the path through a block (`LlamaCase::roundings`)
    pub roundings: usize,
    /// factors of products that TF32 rounds along the path through a block (`LlamaCase::cuts`)
    pub cuts: usize,
    /// width of the residual stream
    pub hidden: usize,
    /// blocks of a model
    pub blocks: usize,
    /// tokens of the vocabulary
    pub vocabulary: usize,
    /// training steps
    pub steps: usize,
}

impl Sizes {
    /// All sizes zero.
    pub const NONE: Self = Self {
        inputs: 0,
        codebooks: 0,
        in_group: 0,
        out_group: 0,
        positions: 0,
        rows: 0,
        path: 0,
        roundings: 0,
        cuts: 0,
        hidden: 0,
        blocks: 0,
        vocabulary: 0,
        steps: 0,
    };

    /// Sizes of a matrix with this many inputs.
    pub fn of_matrix(scheme: Scheme, inputs: usize) -> Self {
        Self {
            inputs,
            codebooks: scheme.num_codebooks,
            in_group: scheme.in_group_size,
            out_group: scheme.out_group_size,
            ..Self::NONE
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// the operations to which it applies
    pub operations: &'static [Operation],
    /// the quantities to which it applies; empty for any
    pub of: &'static [&'static str],
    /// the arithmetic to which it applies; `None` for any
    pub number: Option<Number>,
    /// the measure
    pub measure: Measure,
    /// rule that computes the limit
    pub rule: Rule,
    /// meaning of n, in words
    pub n: &'static str,
    /// n as a number
    pub terms: fn(&Sizes) -> usize,
    /// why the limit is right
    pub reason: &'static str,
}

use Operation as Op;

/// How far a backend's loss may be above the reference's, as a share of it: the requirement for the CPU
/// backend.
pub const SAME_LOSS: f64 = 1e-3;

const SEARCHES: &[Op] = &[
    Op::Kmeans,
    Op::ResidualInit,
    Op::EmInit,
    Op::FeedbackInit,
    Op::BeamSearch,
    Op::LayerQuantize,
    Op::TwoSided,
];

/// Why steps with rounded factors have the limit that they have.
const ROUNDED_STEPS: &str = "sums are in f32, so that only the factors of products are rounded, each independently of the others; a gradient \
     has those of the forward pass behind it and as many more on the way back; and steps build on one another";

/// Number of samples of a Hessian that are summed in f32 before the sum is added in f64.
const NARROW_SAMPLES: usize = 1024;

/// The same where samples are rounded to bf16.
const ROUNDED_SAMPLES: usize = 4096;

/// Terms of two distances, between a point and centroids or codewords of `codebooks` codebooks.
fn two_distances(coordinates: usize, codebooks: usize) -> usize {
    8 * (coordinates + 2 * codebooks + 4)
}

/// The longest chain of roundings behind a score of the beam search.
fn score(s: &Sizes) -> usize {
    2 * s.inputs + s.positions + s.codebooks + 8
}

/// Total length of the sums along the longest path through a model: all blocks, the last norm and the head.
fn model(s: &Sizes) -> usize {
    s.blocks * s.path + 2 * s.hidden
}

/// Values rounded to f16 along the path through a model: in its blocks, the embedding, the last norm's weight
/// and result, and the head.
fn model_roundings(s: &Sizes) -> usize {
    s.blocks * s.roundings + 4
}

/// How many times as many factors a gradient has behind it as a result. A result's path goes back through as
/// many products, each with two factors of its own; the trace enters them with its errors, once as a factor
/// beside the gradient and once through the probabilities and gates of which the gradient is one.
const BACK: usize = 4;

/// Default row for all quantities in any arithmetic; table rows override fields of it.
const ROW: Limit = Limit {
    operations: Op::ALL,
    of: &[],
    number: None,
    measure: Measure::Exact,
    rule: Rule::Exact,
    n: "-",
    terms: |_| 0,
    reason: "",
};

/// The table. The first matching row applies.
pub const LIMITS: &[Limit] = &[
    Limit {
        reason: "inputs are multiples of 1/8 or so: every product and sum has a place in the significand, in any order",
        ..ROW
    },
    Limit {
        measure: Measure::Repeat,
        reason: "sums have one order, whatever the number of threads (docs/architecture.md)",
        ..ROW
    },
    Limit {
        operations: &[Op::Decode],
        of: &["linearity"],
        measure: Measure::Element,
        rule: Rule::Roundings,
        n: "2 (codebooks + 1) + 3",
        terms: |s| 2 * (s.codebooks + 1) + 3,
        reason: "two decodings, and the factors that go in and come out",
        ..ROW
    },
    Limit {
        operations: &[Op::Decode],
        number: Some(Number::Bf16),
        measure: Measure::Element,
        rule: Rule::Roundings,
        n: "codebooks + 2",
        terms: |s| s.codebooks + 2,
        reason: "the codewords, their sum and its scaling, each rounded once; what the limits of all elements come to \
                 together is the limit of NMSE",
        ..ROW
    },
    Limit {
        operations: &[Op::Decode],
        measure: Measure::Element,
        rule: Rule::Roundings,
        n: "codebooks + 1",
        terms: |s| s.codebooks + 1,
        reason: "the sum of codewords and its scaling, each rounded once; NMSE as above",
        ..ROW
    },
    Limit {
        operations: &[Op::Matvec],
        number: Some(Number::F64),
        measure: Measure::Element,
        rule: Rule::Roundings,
        n: "2 (inputs + codebooks + 4)",
        terms: |s| 2 * (s.inputs + s.codebooks + 4),
        reason: "two products, each as below",
        ..ROW
    },
    Limit {
        operations: &[Op::Matvec],
        measure: Measure::Element,
        rule: Rule::Roundings,
        n: "inputs + codebooks + 4",
        terms: |s| s.inputs + s.codebooks + 4,
        reason: "the products along a row, the codewords in each, the scaling, and the sums of a few blocks; NMSE as for decode",
        ..ROW
    },
    Limit {
        operations: &[Op::Matmul],
        number: Some(Number::F64),
        measure: Measure::Element,
        rule: Rule::Roundings,
        n: "2 (inputs + 2 codebooks + 5)",
        terms: |s| 2 * (s.inputs + 2 * s.codebooks + 5),
        reason: "two products, each as below",
        ..ROW
    },
    Limit {
        operations: &[Op::Matmul],
        measure: Measure::Element,
        rule: Rule::Roundings,
        n: "inputs + 2 codebooks + 5",
        terms: |s| s.inputs + 2 * s.codebooks + 5,
        reason: "as matvec, and the weight may have been decoded and rounded before; NMSE as for decode",
        ..ROW
    },
    Limit {
        operations: &[Op::Matvec],
        number: Some(Number::F16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "codebooks x in_group / 2",
        terms: |s| s.codebooks * s.in_group / 2,
        reason: "the result is rounded to f16; kernels that add up a group in f16 round once a term of half a group",
        ..ROW
    },
    Limit {
        operations: &[Op::Matmul],
        number: Some(Number::F16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "codebooks + 1",
        terms: |s| s.codebooks + 1,
        reason: "the result is rounded to f16, and so are the sums of codewords and perhaps the decoded weight",
        ..ROW
    },
    Limit {
        operations: &[Op::Matvec, Op::Matmul],
        number: Some(Number::Bf16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "codebooks + 3",
        terms: |s| s.codebooks + 3,
        reason: "the result is rounded to bf16; x, codewords, their sums and perhaps the decoded weight are rounded on the way, sums are f32's",
        ..ROW
    },
    Limit {
        operations: &[Op::Hessian],
        number: Some(Number::F64),
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 samples + 2",
        terms: |s| 2 * s.rows + 2,
        reason: "two sums over all samples, and their division",
        ..ROW
    },
    Limit {
        operations: &[Op::Hessian],
        of: &["H of rounded samples"],
        number: Some(Number::F32),
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "the smaller of samples and 4096",
        terms: |s| s.rows.min(ROUNDED_SAMPLES),
        reason: "products of numbers in bf16 are exact, and are summed in f32 over at most 4096 samples; a tensor core may cut bits off sums instead of rounding them",
    },
    Limit {
        operations: &[Op::Hessian],
        number: Some(Number::F32),
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "the smaller of samples and 1024",
        terms: |s| s.rows.min(NARROW_SAMPLES),
        reason: "products are summed in f32 over at most 1024 samples, and in f64 beyond",
        ..ROW
    },
    Limit {
        operations: &[Op::Kmeans],
        measure: Measure::Choice,
        rule: Rule::Roundings,
        n: "8 (coordinates + 6)",
        terms: |s| two_distances(s.inputs, 1),
        reason: "two distances, each |p|^2 - 2<p,c> + |c|^2 of rounded numbers, of at most 4 max(|p|, |c|)^2",
        ..ROW
    },
    Limit {
        operations: &[Op::ResidualInit],
        measure: Measure::Choice,
        rule: Rule::Roundings,
        n: "8 (numbers of a codeword + 2 codebooks + 4)",
        terms: |s| two_distances(s.in_group * s.out_group, s.codebooks),
        reason: "as for kmeans, of what the codebooks before have left",
        ..ROW
    },
    Limit {
        operations: &[Op::Kmeans],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "points + 2",
        terms: |s| s.rows + 2,
        reason: "means of at most all points, or the mean distance of all",
        ..ROW
    },
    Limit {
        operations: &[Op::Kmeans],
        measure: Measure::Loss,
        rule: Rule::Roundings,
        n: "points + 2",
        terms: |s| s.rows + 2,
        reason: "the inertia is the mean distance of all points",
        ..ROW
    },
    Limit {
        operations: &[Op::ResidualInit, Op::EmInit],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "weights of an output group + 2",
        terms: |s| s.out_group * s.inputs + 2,
        reason: "a scale is the norm of its output group: a sum of squares, a root and a small constant",
        ..ROW
    },
    Limit {
        operations: &[Op::BeamSearch],
        measure: Measure::Choice,
        rule: Rule::Roundings,
        n: "4 (2 inputs + positions + codebooks + 8)",
        terms: |s| 4 * score(s),
        reason: "two scores, each a product of (W - Q) H, kept up to date over all positions, with a codeword; n counts the \
                 longest chain, and each term is rounded twice",
        ..ROW
    },
    Limit {
        operations: &[Op::FeedbackInit],
        measure: Measure::Choice,
        rule: Rule::Roundings,
        n: "4 (inputs + codebooks + group numbers + 8)",
        terms: |s| 4 * (s.inputs + s.codebooks + s.in_group * s.out_group + 8),
        reason: "two distances from a target that is a sum over inputs, each summed over a group; each term is rounded \
                 twice",
        ..ROW
    },
    Limit {
        operations: &[Op::BeamSearch, Op::EmInit, Op::FeedbackInit],
        measure: Measure::Loss,
        rule: Rule::Roundings,
        n: "8 (2 inputs + positions + codebooks + 8)",
        terms: |s| 8 * score(s),
        reason: "the search compares losses of rounded numbers: where the difference drowns in rounding, either is right",
        ..ROW
    },
    Limit {
        operations: &[Op::LayerQuantize],
        measure: Measure::Loss,
        rule: Rule::Roundings,
        n: "8 (2 inputs + codebooks + 8)",
        terms: |s| 8 * (2 * s.inputs + s.codebooks + 8),
        reason: "two losses of rounded numbers, each summed over inputs twice",
        ..ROW
    },
    Limit {
        operations: &[Op::TwoSided],
        measure: Measure::Loss,
        rule: Rule::Roundings,
        n: "8 (2 inputs + 2 outputs + codebooks + 8)",
        terms: |s| 8 * (2 * s.inputs + 2 * s.rows + s.codebooks + 8),
        reason: "two losses of rounded numbers, each summed over inputs twice and over outputs twice",
        ..ROW
    },
    Limit {
        operations: &[Op::TwoSided],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 inputs + 2 outputs + codebooks",
        terms: |s| 2 * s.inputs + 2 * s.rows + s.codebooks,
        reason: "the loss that is reported against the same loss in f64: a sum over inputs and over outputs, each twice",
        ..ROW
    },
    Limit {
        operations: &[Op::TwoSided],
        measure: Measure::Floor,
        rule: Rule::Squares,
        n: "2 inputs + 2 outputs",
        terms: |s| 2 * s.inputs + 2 * s.rows,
        reason: "the loss of a matrix that is right but for an epsilon in each number: summed over inputs and outputs, twice",
        ..ROW
    },
    Limit {
        operations: &[Op::GradientSums],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "(2 (2 x that of losses + rows) + path) x root of hidden",
        terms: |s| (2 * (2 * (model(s) + s.vocabulary) + s.rows) + s.path) * (s.hidden.isqrt() + 1),
        reason: "a product of two gradients as exact as model_tune's, summed over one side of a layer and over sequences; G G^T may \
                 be shorter than the square of G's length by the root of its rank, which the width of the residual stream bounds",
        ..ROW
    },
    Limit {
        operations: &[Op::CodebookUpdate],
        number: Some(Number::F64),
        measure: Measure::Loss,
        rule: Rule::Roundings,
        n: "4 (2 inputs + codebooks + 4)",
        terms: |s| 4 * (2 * s.inputs + s.codebooks + 4),
        reason: "two losses, each summed over inputs twice, as a share of the sum of magnitudes",
        ..ROW
    },
    Limit {
        operations: &[Op::CodebookUpdate],
        measure: Measure::Loss,
        rule: Rule::Required(SAME_LOSS),
        reason: "required of the CPU backend: a loss within 0.1 % of the reference's, whose optimum has one value",
        ..ROW
    },
    Limit {
        operations: SEARCHES,
        measure: Measure::Pooled,
        rule: Rule::StandardErrors(6.0),
        reason: "f32 and f64 part ways at near ties and end in different optima, none of which is better on average; a mean \
                 of 12 such differences or more is beyond 6 of its standard errors less than once in 10^4 (Student's t)",
        ..ROW
    },
    Limit {
        operations: &[
            Op::BeamSearch,
            Op::FeedbackInit,
            Op::CodebookUpdate,
            Op::LayerQuantize,
        ],
        measure: Measure::Floor,
        rule: Rule::Squares,
        n: "2 inputs",
        terms: |s| 2 * s.inputs,
        reason: "the layer error of a matrix that is right but for an epsilon in each number: summed over inputs, twice",
        ..ROW
    },
    Limit {
        operations: &[Op::EmInit, Op::Kmeans],
        measure: Measure::Floor,
        rule: Rule::Squares,
        n: "inputs, or coordinates",
        terms: |s| s.inputs,
        reason: "the same for an objective that is summed over inputs once",
        ..ROW
    },
    Limit {
        operations: &[Op::ResidualInit],
        measure: Measure::Floor,
        rule: Rule::Squares,
        n: "numbers of a codeword",
        terms: |s| s.in_group * s.out_group,
        reason: "the same for an objective that is summed over a codeword",
        ..ROW
    },
    Limit {
        operations: &[Op::LayerQuantize],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 inputs + codebooks",
        terms: |s| 2 * s.inputs + s.codebooks,
        reason: "the loss that is reported against the same loss in f64: a sum over inputs, twice",
        ..ROW
    },
    Limit {
        operations: &[Op::BlockForward],
        number: Some(Number::F64),
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 x the sums along the longest path (LlamaCase::terms)",
        terms: |s| 2 * s.path,
        reason: "two forward passes, each as below",
        ..ROW
    },
    Limit {
        operations: &[Op::BlockForward],
        number: Some(Number::F16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "values rounded to f16 on the path (LlamaCase::roundings)",
        terms: |s| s.roundings,
        reason: "sums are in f32, so that only weights and activations that are stored in f16 are rounded, each independently of \
                 the others; products of random numbers pass the share of the squares on as it is, and scores times their own spread",
        ..ROW
    },
    Limit {
        operations: &[Op::BlockForward],
        number: Some(Number::Bf16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "factors rounded to bf16 on the path (LlamaCase::CUTS) + 1",
        terms: |s| s.cuts + 1,
        reason: "sums are in f32, so that only the factors of products and the output are rounded, each independently of the others",
        ..ROW
    },
    Limit {
        operations: &[Op::BlockForward],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "the sums along the longest path (LlamaCase::terms)",
        terms: |s| s.path,
        reason: "errors of a path's sums add up; norms and softmax do not enlarge them for numbers of unit size",
        ..ROW
    },
    Limit {
        operations: &[Op::BlockFinetune],
        number: Some(Number::Tf32),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "4 x factors rounded to TF32 on the path x steps",
        terms: |s| BACK * s.cuts * s.steps,
        reason: ROUNDED_STEPS,
        ..ROW
    },
    Limit {
        operations: &[Op::BlockFinetune],
        number: Some(Number::Bf16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "4 x factors rounded to bf16 on the path x steps",
        terms: |s| BACK * s.cuts * s.steps,
        reason: ROUNDED_STEPS,
        ..ROW
    },
    Limit {
        operations: &[Op::BlockBackward],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 x the sums along the longest path + rows",
        terms: |s| 2 * s.path + s.rows,
        reason: "back through the sums of the forward pass, and then over all rows",
        ..ROW
    },
    Limit {
        operations: &[Op::BlockFinetune],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 x the sums along the longest path x steps",
        terms: |s| 2 * s.path * s.steps,
        reason: "each step's gradient has a pass forward and one back, and steps build on one another",
        ..ROW
    },
    Limit {
        operations: &[Op::BlockBackward, Op::BlockFinetune],
        number: Some(Number::F64),
        measure: Measure::Gradient,
        rule: Rule::Differences,
        n: "the sums along the longest path",
        terms: |s| s.path,
        reason: "central differences lose step^2 to curvature and terms x epsilon / step to rounding; the step balances them",
        ..ROW
    },
    Limit {
        operations: &[Op::BlockFinetune],
        number: Some(Number::F64),
        measure: Measure::Loss,
        rule: Rule::Exact,
        reason: "the best state is kept, so that the loss is never above where it started",
        ..ROW
    },
    Limit {
        operations: &[Op::ModelForward],
        of: &["two ways"],
        number: Some(Number::F16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "2 (65 + 4 codebooks x in_group + 4)",
        terms: |s| 2 * (65 + 4 * s.codebooks * s.in_group + 4),
        reason: "logits of one block, two ways apart: each has the roundings of a block (as LlamaCase::roundings counts them, \
                 all seven layers being quantized), the last norm and the head",
    },
    Limit {
        operations: &[Op::ModelForward],
        number: Some(Number::F64),
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 x the sums along the longest path: blocks, last norm and head",
        terms: |s| 2 * model(s),
        reason: "two forward passes, each as for a block",
        ..ROW
    },
    Limit {
        operations: &[Op::ModelForward],
        number: Some(Number::F16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "values rounded to f16 on the path: blocks, embedding, last norm and head",
        terms: model_roundings,
        reason: "as for a block",
        ..ROW
    },
    Limit {
        operations: &[Op::ModelForward],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "the sums along the longest path: blocks, last norm and head",
        terms: model,
        reason: "as for a block",
        ..ROW
    },
    Limit {
        operations: &[Op::Perplexity],
        number: Some(Number::F64),
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 x vocabulary + 128",
        terms: |s| 2 * s.vocabulary + 128,
        reason: "two sums over the vocabulary; a constant of 100 takes seven bits of a logit of unit size",
        ..ROW
    },
    Limit {
        operations: &[Op::Perplexity],
        number: Some(Number::F16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "as model_forward, + vocabulary",
        terms: |s| model_roundings(s) + s.vocabulary,
        reason: "as model_forward; the sum over the vocabulary is of f32 at least",
        ..ROW
    },
    Limit {
        operations: &[Op::Perplexity],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "as model_forward, + vocabulary",
        terms: |s| model(s) + s.vocabulary,
        reason: "as model_forward; and the sum over the vocabulary",
        ..ROW
    },
    Limit {
        operations: &[Op::ModelTune],
        number: Some(Number::Tf32),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "4 x factors rounded to TF32 on the path, the head's included, x steps",
        terms: |s| BACK * (s.blocks * s.cuts + HEAD_CUTS) * TUNED_STEPS,
        reason: ROUNDED_STEPS,
        ..ROW
    },
    Limit {
        operations: &[Op::ModelTune],
        number: Some(Number::Bf16),
        measure: Measure::Nmse,
        rule: Rule::Independent,
        n: "4 x factors rounded to bf16 on the path, the head's included, x steps",
        terms: |s| BACK * (s.blocks * s.cuts + HEAD_CUTS) * TUNED_STEPS,
        reason: ROUNDED_STEPS,
        ..ROW
    },
    Limit {
        operations: &[Op::ModelTune],
        of: &["losses"],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "as perplexity",
        terms: |s| model(s) + s.vocabulary,
        reason: "a forward pass and the sum over the vocabulary",
        ..ROW
    },
    Limit {
        operations: &[Op::ModelTune],
        of: &["losses of all steps"],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 x that of losses x steps of Adam",
        terms: |s| 2 * (model(s) + s.vocabulary) * TUNED_STEPS,
        reason: "as block_finetune: each step's gradient has a pass forward and one back, and steps build on one another",
        ..ROW
    },
    Limit {
        operations: &[Op::ModelTune],
        of: &["buffers, codebooks and scales with codes"],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "(2 x that of losses + rows) x steps",
        terms: |s| (2 * (model(s) + s.vocabulary) + s.rows) * TUNED_STEPS,
        reason: "an optimizer that is linear in the gradient makes a step as exact as the gradient, and steps build on one another",
        ..ROW
    },
    Limit {
        operations: &[Op::ModelTune],
        of: &["codes"],
        measure: Measure::Choice,
        rule: Rule::Required(1.0),
        reason: "a code may differ where the measured difference of what it was chosen from explains it:                  then the reference's margin is at most that difference",
        ..ROW
    },
    Limit {
        operations: &[Op::ModelTune],
        measure: Measure::Nmse,
        rule: Rule::Squares,
        n: "2 x that of losses + rows",
        terms: |s| 2 * (model(s) + s.vocabulary) + s.rows,
        reason: "a gradient goes back through the sums of the forward pass, and then over all rows",
        ..ROW
    },
    Limit {
        operations: &[Op::ModelTune],
        number: Some(Number::F64),
        measure: Measure::Gradient,
        rule: Rule::Differences,
        n: "as losses",
        terms: |s| model(s) + s.vocabulary,
        reason: "as for a block",
        ..ROW
    },
];

/// Factors of the product of the head that are rounded: the normed hidden states and lm_head.
const HEAD_CUTS: usize = 2;

/// Number of Adam steps in `model_tune`.
pub const TUNED_STEPS: usize = 3;

/// Largest error of a sum of `lookups` entries of fixed-point tables of `bytes` bytes per entry, where the
/// largest entry is `largest`.
///
/// The entries use steps of a power of two, chosen so that the largest entry L uses all bits but one. The
/// step is at most L times 2^(2 - bits), or twice that when L is just above a power of two. A look-up is
/// wrong by at most half a step. No step is below 2^-120. f32 rounds L and the sum.
/// No step is below 2^-120. f32 rounds L and the sum.
pub(crate) fn fixed_point(bytes: u32, lookups: f64, largest: f64) -> f64 {
    let lookup = largest * 2f64.powi(2 - 8 * bytes as i32) + 2f64.powi(-120);
    lookups * lookup * (1.0 + (lookups + 8.0) * Number::F32.epsilon())
}

/// The 1 - 10^-6 quantile (upper bound) of a sum of squared rounding errors. `variances` has one entry for
/// each group of errors that is independent of all other groups: the sum of the group's variances.
///
/// Sums of independent roundings have tails no heavier than a normal distribution of the same variance
/// (Hoeffding). For squares of such sums, the total exceeds v1 + 2 sqrt(t v2) + 2 t vmax with a probability
/// of at most exp(-t), where v1 is the sum of variances and v2 the sum of their squares (Laurent and Massart
/// 2000, lemma 1; Hsu, Kakade and Zhang 2012). For many rows of similar size the bound is little more than
/// v1. For a single row, or for equal rows, whose errors are equal, the bound is about 36 times v1.
pub fn chance(variances: &[f64]) -> f64 {
    let t = 1e6_f64.ln();
    let total: f64 = variances.iter().sum();
    let squares: f64 = variances.iter().map(|v| v * v).sum();
    let most = variances.iter().copied().fold(0.0, f64::max);
    total + 2.0 * (t * squares).sqrt() + 2.0 * t * most
}

/// The row for an operation, a type, a measure and a quantity.
///
/// # Errors
/// `Argument` when the table has no such row. That is a mistake in the check, which then fails.
pub fn row(operation: Operation, number: Number, measure: Measure, what: &str) -> Result<&'static Limit> {
    LIMITS
        .iter()
        .find(|limit| {
            limit.operations.contains(&operation)
                && limit.measure == measure
                && limit.number.is_none_or(|wanted| wanted == number)
                && (limit.of.is_empty() || limit.of.contains(&what))
        })
        .ok_or_else(|| {
            Error::argument(
                "limit",
                "a row of the table of limits",
                format!("{operation}, {number:?}, {measure}, {what}"),
            )
        })
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
                assert!(
                    of(Number::F32, 100) > of(Number::F32, 10),
                    "{} {}",
                    limit.measure,
                    limit.n
                );
                assert!(
                    of(Number::F32, 10) > of(Number::F64, 10),
                    "{} {}",
                    limit.measure,
                    limit.n
                );
                // in the type to which the row applies
                let own = limit.number.unwrap_or(Number::F32);
                let (terms, most) = match limit.measure {
                    // the worst element with 8 codebooks, whose roundings all have one sign
                    Measure::Element if own.is_half() => (10, 4e-2),
                    // only roundings inside a group count: 8 codebooks with groups of 16 have 64
                    // a block back through 36 factors, six times
                    _ if own == Number::Tf32 => (900, 1e-2),
                    _ if own.is_half() => (100, 1e-2),
                    _ => (4000, 1e-2),
                };
                assert!(of(own, terms) < most, "{} {}", limit.measure, limit.n);
            }
            assert!(!limit.reason.is_empty() && !limit.operations.is_empty());
        }
    }

    #[test]
    fn chance_leaves_many_rows_little_and_equal_rows_much() {
        assert!(chance(&[1.0; 1_000]) < 1.3 * 1_000.0);
        // The same total variance in one group.
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
        assert!(row(Operation::Decode, Number::F32, Measure::Pooled, "").is_err());
        assert_eq!(
            row(Operation::Matvec, Number::F16, Measure::Nmse, "y")
                .unwrap()
                .rule,
            Rule::Independent
        );
    }
}
