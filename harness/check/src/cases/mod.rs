//! Cases: one description per operation, shared by property tests, `aqlm check` and replay
//! (docs/checking.md).
//!
//! A case is a few small numbers and words. Its id contains all of them, and the data follow from the id
//! alone. For example, `matvec-2x8g8o2-96x72-b3-outliers-s17` is matvec with scheme 2x8g8o2, a weight of [96,
//! 72], 3 rows of x, outliers among the numbers, and the random stream of seed 17. Printing and parsing are
//! inverse.

mod id;
mod kind;
mod layer;
pub(crate) mod llama;
mod parts;
pub(crate) mod product;
mod routers;
mod samples;
pub(crate) mod strategy;
mod values;
mod words;

use std::fmt;
use std::str::FromStr;

pub use kind::{Field, Kind};
pub use layer::{Inputs, LayerCase, LayerData, Searching, Starting, Updating};
pub use llama::{BLOCKS, Biases, LlamaCase, LlamaData, Positions, THREE_BLOCKS, VOCABULARY, quantized};
pub use parts::Parts;
pub use product::{ProductCase, ProductData};
pub use samples::SamplesCase;
pub use values::Values;
pub(crate) use words::words;

pub use crate::operation::Operation;

use aqlm_vocabulary::LayerSettings;
use proptest::prelude::*;

use crate::limits::Sizes;
use aqlm_formats::{Error, Result};
use id::Fields;

/// The problem of a case. Every operation has a fixed kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// decode, matvec, matmul
    Product(ProductCase),
    /// hessian, kmeans
    Samples(SamplesCase),
    /// the quantizer's operations
    Layer(LayerCase),
    /// blocks and models
    Llama(LlamaCase),
}

/// Cases of an operation that are always checked. Each covers an edge case of some implementation, real or
/// plausible, or a scheme with its own fast path.
///
/// # Errors
/// `Argument` for an id that does not parse; this module's tests show that there is none.
pub fn corners(operation: Operation) -> Result<Vec<Case>> {
    let ids = operation.checked().corners();
    ids.iter().map(|id| format!("{operation}-{id}").parse()).collect()
}

/// Valid cases of an operation: all of M 1..=8, B 1..=16, group sizes 4..=64, out_group_size 1..=4, with
/// ragged edges and single rows and columns. Cases shrink towards few small groups of dyadic numbers.
pub fn cases(operation: Operation) -> BoxedStrategy<Case> {
    (operation.checked().strategy(), 0u64..1000)
        .prop_map(move |(problem, seed)| Case {
            operation,
            problem,
            seed,
        })
        .boxed()
}

/// Settings and data of the quantizer's case with this id.
///
/// # Errors
/// `Argument` for an id that does not parse, or of another kind.
pub fn layer(id: &str) -> Result<(LayerSettings, LayerData)> {
    let case: Case = id.parse()?;
    let layer = case.layer()?;
    Ok((layer.settings(), layer.data(case.seed)))
}

/// The small Llama of the case with this id, and its data.
///
/// # Errors
/// As [`layer`].
pub fn llama(id: &str) -> Result<(LlamaCase, LlamaData)> {
    let case: Case = id.parse()?;
    let llama = case.llama()?;
    Ok((llama, llama.data(case.seed)))
}

/// One case of one operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// which operation
    pub operation: Operation,
    /// the problem
    pub problem: Problem,
    /// seed of its random numbers
    pub seed: u64,
}

impl Case {
    /// The quantized matrix and x of decode, matvec or matmul.
    ///
    /// # Errors
    /// `Argument` when the case belongs to another operation; likewise for the three methods below.
    pub fn product(&self) -> Result<ProductCase> {
        match self.problem {
            Problem::Product(case) => Ok(case),
            _ => self.other("decode, matvec or matmul"),
        }
    }

    /// The samples of a hessian or kmeans case.
    ///
    /// # Errors
    /// As [`Case::product`].
    pub fn samples(&self) -> Result<SamplesCase> {
        match self.problem {
            Problem::Samples(case) => Ok(case),
            _ => self.other("hessian or kmeans"),
        }
    }

    /// The layer of a quantizer case.
    ///
    /// # Errors
    /// As [`Case::product`].
    pub fn layer(&self) -> Result<LayerCase> {
        match self.problem {
            Problem::Layer(case) => Ok(case),
            _ => self.other("an operation of the quantizer"),
        }
    }

    /// The small Llama of a case on blocks or models.
    ///
    /// # Errors
    /// As [`Case::product`].
    pub fn llama(&self) -> Result<LlamaCase> {
        match self.problem {
            Problem::Llama(case) => Ok(case),
            _ => self.other("an operation on blocks or models"),
        }
    }

    /// Sizes from which limits count their terms.
    pub fn sizes(&self) -> Sizes {
        match &self.problem {
            Problem::Product(case) => case.sizes(),
            Problem::Samples(case) => case.sizes(),
            Problem::Layer(case) => case.sizes(),
            Problem::Llama(case) => case.sizes(),
        }
    }

    fn other<T>(&self, expected: &str) -> Result<T> {
        Err(Error::argument("case", expected, format!("`{self}`")))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.operation)?;
        match &self.problem {
            Problem::Product(case) => write!(f, "{case}")?,
            Problem::Samples(case) => write!(f, "{case}")?,
            Problem::Layer(case) => case.print(self.operation.checked().kind(), f)?,
            Problem::Llama(case) => write!(f, "{case}")?,
        }
        write!(f, "-s{}", self.seed)
    }
}

/// Prints the id, so that proptest's output is valid input for `aqlm check --case`.
impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Case {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut fields = Fields::new(text);
        let operation: Operation = fields.word()?;
        let problem = match operation.checked().kind() {
            Kind::Product => Problem::Product(ProductCase::parse(&mut fields)?),
            Kind::Samples => Problem::Samples(SamplesCase::parse(&mut fields)?),
            Kind::Layer(used) => Problem::Layer(LayerCase::parse(used, &mut fields)?),
            Kind::Llama => Problem::Llama(LlamaCase::parse(&mut fields)?),
        };
        let seed = fields.number('s', 0..=u64::MAX)?;
        fields.finish()?;
        Ok(Self {
            operation,
            problem,
            seed,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    fn any_case() -> impl Strategy<Value = Case> {
        prop::sample::select(Operation::ALL).prop_flat_map(cases)
    }

    proptest! {
        #![proptest_config(Config { cases: 512, failure_persistence: None, ..Config::default() })]
        #[test]
        fn printing_and_parsing_are_inverse(case in any_case()) {
            prop_assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
        }

        #[test]
        fn parsing_never_panics_and_accepts_only_what_it_prints(text in "[a-z0-9_]{0,8}(-[a-z0-9]{0,9}){0,8}") {
            if let Ok(case) = text.parse::<Case>() {
                prop_assert_eq!(case.to_string(), text);
            }
        }
    }

    #[test]
    fn every_operation_has_corner_cases_of_its_own() {
        for &operation in Operation::ALL {
            let corners = corners(operation).unwrap();
            assert!(!corners.is_empty(), "{operation}");
            assert!(
                corners.iter().all(|case| case.operation == operation),
                "{operation}"
            );
        }
    }

    #[test]
    fn bad_ids_are_refused_with_the_field_that_is_wrong() {
        let good = "matvec-2x8g8o2-96x72-b3-outliers-s17";
        assert_eq!(good.parse::<Case>().unwrap().to_string(), good);
        for (id, word) in [
            ("", "operation"),
            ("matvek-2x8g8-96x72-b3-outliers-s17", "one of decode"),
            ("matvec-2x8-96x72-b3-outliers-s17", "scheme"),
            ("matvec-2x8g8o5-96x72-b3-outliers-s17", "not divisible"),
            ("matvec-2x8g8-96x72-b0-outliers-s17", "b and a number"),
            ("matvec-2x8g8-96x72-b03-outliers-s17", "b and a number"),
            ("matvec-2x8g8-96x72-b3-outlier-s17", "one of dyadic"),
            ("matvec-2x8g8-96x72-b3-outliers", "s and a number"),
            ("matvec-2x8g8-96x72-b3-outliers-s17-x", "end of the id"),
        ] {
            let error = id.parse::<Case>().unwrap_err().to_string();
            assert!(error.contains(word), "{id}: {error}");
        }
    }

    #[test]
    fn failing_cases_shrink_to_the_plainest() {
        // A property that fails for every matvec must shrink to the smallest case.
        let mut runner = TestRunner::deterministic();
        let mut tree = cases(Operation::Matvec).new_tree(&mut runner).unwrap();
        while tree.simplify() {}
        assert_eq!(tree.current().to_string(), "matvec-1x1g4-1x4-b1-dyadic-s0");
    }

    #[test]
    fn data_follow_from_the_id_alone() {
        let mut runner = TestRunner::deterministic();
        for &operation in Operation::ALL {
            let case = cases(operation).new_tree(&mut runner).unwrap().current();
            let same = match case.problem {
                Problem::Product(problem) => problem.data(case.seed) == problem.data(case.seed),
                Problem::Samples(problem) => problem.data(case.seed) == problem.data(case.seed),
                Problem::Layer(problem) => problem.data(case.seed) == problem.data(case.seed),
                Problem::Llama(problem) => problem.data(case.seed) == problem.data(case.seed),
            };
            assert!(same, "{case}");
        }
    }
}
