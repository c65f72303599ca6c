//! One file an operation: everything that the check, the benches and the tests know of it.
//!
//! To add one: the file, its line below, and its place in the list of `operation.rs`.

#![allow(
    clippy::needless_pass_by_value,
    reason = "an ndarray view is a reference, and passing it by value is ndarray's own custom"
)]

mod beam_search;
mod block_backward;
mod block_finetune;
mod block_forward;
mod codebook_update;
mod decode;
mod em_init;
mod hessian;
mod kmeans;
mod layer;
mod layer_quantize;
mod llama;
mod matmul;
mod matvec;
mod model_forward;
mod model_tune;
mod nearest;
mod perplexity;
mod product;
mod residual_init;
mod work;

use proptest::strategy::BoxedStrategy;

use super::Comparison;
use super::breakage::Breakage;
use super::compare::{Against, Findings};
use super::keep::Operands;
use super::limits::Number;
use super::subject::Subject;
use crate::cases::{Case, Kind, Problem};
use crate::operation::{Operation, operations};
use aqlm_formats::Result;

pub use product::{ProductCheck, matrix_bytes};
pub use work::Work;
pub(crate) use work::{Checked, Prepared};

macro_rules! checked {
    ($($(#[$doc:meta])+ $name:ident: $word:ident,)+) => {
        impl Operation {
            /// How it is checked.
            pub(crate) fn checked(self) -> &'static dyn Checked {
                match self {
                    $(Self::$name => &$word::$name,)+
                }
            }
        }

        $(impl Listed for $word::$name {
            const OPERATION: Operation = Operation::$name;
        })+
    };
}
operations!(checked);

/// Which operation a file is about; the list says so.
pub(crate) trait Listed {
    const OPERATION: Operation;
}

/// An operation: which cases it has, how each machine computes one, and when an answer is right.
pub(crate) trait Op: Listed + Sync {
    /// What a case is computed from.
    type Data: Operands + Clone + Send + Sync;
    /// What a machine answers. Equal answers are the same bytes.
    type Answer: PartialEq + Clone + Send + 'static;
    /// What answers are compared with, made from the reference's.
    type Expected;

    /// Which kind of case it has.
    const KIND: Kind;
    /// Ids, without the operation, of cases that are always checked.
    const CORNERS: &'static [&'static str];

    /// Problems to draw.
    fn strategy() -> BoxedStrategy<Problem>;

    /// The data that a case stands for.
    fn data(case: &Case) -> Result<Self::Data>;

    /// Every way in which a machine computes the case.
    fn ways(machine: &Subject, _data: &Self::Data) -> Vec<Subject> {
        vec![machine.clone()]
    }

    /// The machine's answer.
    fn run(subject: &Subject, data: &Self::Data) -> Result<Self::Answer>;

    /// What must hold for the reference whatever the numbers.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>>;

    /// What answers are compared with.
    fn expected(data: &Self::Data) -> Result<Self::Expected>;

    /// One answer against it.
    fn compare(
        check: Against,
        subject: &Subject,
        data: &Self::Data,
        expected: &Self::Expected,
        answer: &Self::Answer,
    ) -> Result<Findings>;

    /// What the operation costs at least.
    fn cost(data: &Self::Data) -> Cost;

    /// How implementations go wrong, which the check must notice.
    fn breakages() -> Vec<Breakage<Self::Data, Self::Answer>>;
}

/// What an operation costs at least, for a roofline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cost {
    /// bytes that have to move: inputs read once and results written once, in f32, codes at their own width
    pub bytes: usize,
    /// dense products of the same shapes, [rows, inputs, outputs] each
    pub products: Vec<[usize; 3]>,
}

impl Cost {
    /// Multiplications and additions of the products.
    pub fn operations(&self) -> usize {
        let of = |[rows, inputs, outputs]: &[usize; 3]| 2 * rows * inputs * outputs;
        self.products.iter().map(of).sum()
    }
}

/// A comparer for a case of `T` and the reference's arithmetic.
pub(crate) fn against<T: Op>(number: Number, case: &Case) -> Against {
    Against {
        operation: T::OPERATION,
        number,
        sizes: case.sizes(),
    }
}
