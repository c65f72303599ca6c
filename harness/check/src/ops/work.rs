use super::{Cost, Prepared};
use crate::cases::Case;
use crate::operation::Operation;
use crate::subject::Subject;
use aqlm_formats::Result;

/// A case with its data, ready to run and time on any machine.
pub struct Work(Box<dyn Prepared>);

impl Work {
    /// Draws the data of a case.
    ///
    /// # Errors
    /// Errors of the case's operation.
    pub fn new(case: &Case) -> Result<Self> {
        Ok(Self(case.operation.checked().prepare(case)?))
    }

    /// Every way in which a machine computes the case.
    pub fn ways(&self, machine: &Subject) -> Vec<Subject> {
        self.0.ways(machine)
    }

    /// Computes the case once.
    ///
    /// # Errors
    /// Errors of the machine.
    pub fn run(&self, subject: &Subject) -> Result<()> {
        self.0.run(subject)
    }

    /// Minimum cost of the case.
    pub fn cost(&self) -> Cost {
        self.0.cost()
    }
}

impl Operation {
    /// Names of the operation's breakages, and whether the check must reject each.
    pub fn breakages(self) -> Vec<(&'static str, bool)> {
        self.checked().breakages()
    }
}
