use std::cell::OnceCell;
use std::sync::Mutex;
use std::sync::PoisonError;

use proptest::strategy::BoxedStrategy;

use super::{CaseData as _, Cost, Op, against};
use crate::Comparison;
use crate::cases::{Case, Kind, Problem};
use crate::compare::{Findings, repeated};
use crate::keep::{Operands as _, Tensors};
use crate::limits::Number;
use crate::subject::Subject;
use aqlm_formats::{Error, Result};

/// An [`Op`] without its types.
pub(crate) trait Checked: Sync {
    fn kind(&self) -> Kind;
    fn corners(&self) -> &'static [&'static str];
    fn strategy(&self) -> BoxedStrategy<Problem>;
    fn properties(&self, case: &Case) -> Result<Vec<Comparison>>;
    fn prepare(&self, case: &Case) -> Result<Box<dyn Prepared>>;
    /// Names of the operation's breakages, and whether the check must reject each.
    fn breakages(&self) -> Vec<(&'static str, bool)>;
}

impl<T: Op + 'static> Checked for T {
    fn kind(&self) -> Kind {
        T::KIND
    }

    fn corners(&self) -> &'static [&'static str] {
        T::CORNERS
    }

    fn strategy(&self) -> BoxedStrategy<Problem> {
        T::strategy()
    }

    fn properties(&self, case: &Case) -> Result<Vec<Comparison>> {
        T::properties(against::<T>(Number::F64, case), case)
    }

    fn prepare(&self, case: &Case) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(Ready::<T> {
            case: *case,
            data: T::Data::new(case)?,
            expected: OnceCell::new(),
        }))
    }

    fn breakages(&self) -> Vec<(&'static str, bool)> {
        let breakages = T::breakages();
        breakages
            .iter()
            .map(|broken| (broken.name, broken.refused))
            .collect()
    }
}

/// A case of some operation with its data and, once requested, the reference's answer.
pub(crate) trait Prepared {
    /// Every way in which a machine computes the case.
    fn ways(&self, machine: &Subject) -> Vec<Subject>;

    /// Computes the reference's answer, or returns its error.
    fn expect(&self) -> Result<()>;

    /// Compares a machine's answer, computed three times, with the reference's. With `broken`, the machine
    /// has the breakage of that name.
    fn findings(&self, subject: &Subject, broken: Option<&str>) -> Result<Findings>;

    /// Computes the case once.
    fn run(&self, subject: &Subject) -> Result<()>;

    fn cost(&self) -> Cost;

    fn operands(&self) -> Tensors;
}

struct Ready<T: Op> {
    case: Case,
    data: T::Data,
    expected: OnceCell<T::Expected>,
}

impl<T: Op> Ready<T> {
    fn expected(&self) -> Result<&T::Expected> {
        if let Some(expected) = self.expected.get() {
            return Ok(expected);
        }
        let expected = T::expected(&self.data)?;
        Ok(self.expected.get_or_init(|| expected))
    }
}

impl<T: Op> Prepared for Ready<T> {
    fn ways(&self, machine: &Subject) -> Vec<Subject> {
        T::ways(machine, &self.data)
    }

    fn expect(&self) -> Result<()> {
        self.expected().map(|_| ())
    }

    fn findings(&self, subject: &Subject, broken: Option<&str>) -> Result<Findings> {
        let (data, expected, pools) = (&self.data, self.expected()?, subject.pools()?);
        let check = against::<T>(T::number(subject), &self.case);
        let (answer, same) = match broken {
            None => repeated(check, &pools, || T::run(subject, data))?,
            Some(name) => {
                let known = T::breakages();
                let Some(breakage) = known.iter().find(|breakage| breakage.name == name) else {
                    return Err(Error::argument("breakage", "one that the operation has", name));
                };
                let mut changed = data.clone();
                (breakage.data)(&mut changed);
                let before: Mutex<Option<T::Answer>> = Mutex::new(None);
                repeated(check, &pools, || {
                    let mut answer = T::run(subject, &changed)?;
                    let mut before = before.lock().unwrap_or_else(PoisonError::into_inner);
                    (breakage.answer)(&mut answer, data, before.as_ref());
                    *before = Some(answer.clone());
                    Ok(answer)
                })?
            }
        };
        let mut findings = T::compare(check, subject, data, expected, &answer)?;
        findings.comparisons.push(same);
        Ok(findings)
    }

    fn run(&self, subject: &Subject) -> Result<()> {
        let data = &self.data;
        let run = || T::run(subject, data);
        std::hint::black_box(match subject {
            Subject::Cpu(cpu) => cpu.pools.all.install(run)?,
            Subject::Reference | Subject::Cuda(_) => run()?,
        });
        Ok(())
    }

    fn cost(&self) -> Cost {
        T::cost(&self.data)
    }

    fn operands(&self) -> Tensors {
        let mut tensors = Tensors::default();
        self.data.add_to(&mut tensors);
        tensors
    }
}
