use super::{Cost, Prepared};
use crate::cases::Case;
use crate::operation::Operation;
use crate::subject::Subject;
use aqlm_formats::Result;

/// A case with its data, to be run and timed on any machine.
pub struct Work(Box<dyn Prepared>);

impl Work {
    /// Draws the data of a case.
    ///
    /// # Errors
    /// What the case's operation refuses.
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
    /// What the machine refuses.
    pub fn run(&self, subject: &Subject) -> Result<()> {
        self.0.run(subject)
    }

    /// What the case costs at least.
    pub fn cost(&self) -> Cost {
        self.0.cost()
    }
}

impl Operation {
    /// Names of its breakages, and whether the check must refuse each.
    pub fn breakages(self) -> Vec<(&'static str, bool)> {
        self.checked().breakages()
    }
}
