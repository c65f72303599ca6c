use proptest::strategy::BoxedStrategy;

use super::cost::Cost;
use crate::Comparison;
use crate::breakage::Breakage;
use crate::cases::{Case, Kind, Problem};
use crate::compare::{Against, Findings};
use crate::keep::Operands;
use crate::limits::Number;
use crate::operation::Operation;
use crate::subject::Subject;
use aqlm_formats::Result;

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

/// A comparer for a case of `T` and the reference's arithmetic.
pub(crate) fn against<T: Op>(number: Number, case: &Case) -> Against {
    Against {
        operation: T::OPERATION,
        number,
        sizes: case.sizes(),
    }
}
