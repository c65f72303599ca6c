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

/// The operation of a file, taken from the list.
pub(crate) trait Listed {
    const OPERATION: Operation;
}

/// The inputs of a case.
pub(crate) trait CaseData: Operands + Clone + Send + Sync {
    /// Draws them.
    fn new(case: &Case) -> Result<Self>;

    /// Minimum cost of an operation on them.
    fn cost(&self) -> Cost;

    /// Every way in which a machine computes an operation on them.
    fn ways(&self, machine: &Subject, _operation: Operation) -> Vec<Subject> {
        vec![machine.clone()]
    }
}

/// An operation: its cases, how each machine computes one, and when an answer is right.
pub(crate) trait Op: Listed + Sync {
    /// the inputs of a case
    type Data: CaseData;
    /// a machine's answer; equal answers have the same bytes
    type Answer: PartialEq + Clone + Send + 'static;
    /// the expected result, computed by the reference
    type Expected;

    /// The operation's kind of case.
    const KIND: Kind;
    /// Ids, without the operation, of cases that are always checked.
    const CORNERS: &'static [&'static str];

    /// Strategy from which problems are drawn.
    fn strategy() -> BoxedStrategy<Problem>;

    /// Every way in which a machine computes the case.
    fn ways(machine: &Subject, data: &Self::Data) -> Vec<Subject> {
        data.ways(machine, Self::OPERATION)
    }

    /// The arithmetic of a machine, which decides the limits.
    fn number(subject: &Subject) -> Number {
        subject.number()
    }

    /// The machine's answer.
    fn run(subject: &Subject, data: &Self::Data) -> Result<Self::Answer>;

    /// Properties of the reference that must hold for any numbers.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>>;

    /// Computes the expected result.
    fn expected(data: &Self::Data) -> Result<Self::Expected>;

    /// Compares one answer with the expected result.
    fn compare(
        check: Against,
        subject: &Subject,
        data: &Self::Data,
        expected: &Self::Expected,
        answer: &Self::Answer,
    ) -> Result<Findings>;

    /// Minimum cost of the operation.
    fn cost(data: &Self::Data) -> Cost {
        data.cost()
    }

    /// Mistakes in implementations that the check must notice.
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

/// The arithmetic of the quantizer: f32 on a GPU as on the CPU.
pub(crate) fn of_quantizer(subject: &Subject) -> Number {
    match subject {
        Subject::Cuda(_) => Number::F32,
        Subject::Reference | Subject::Cpu(_) => subject.number(),
    }
}
