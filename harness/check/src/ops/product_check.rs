use super::decode::{Decode, compare_weight};
use super::matmul::Matmul;
use super::matvec::Matvec;
use super::product::{Product, Products, tables, weight};
use super::{CaseData as _, Cost, Op as _, against};
use crate::CaseRow;
use crate::cases::{Case, Operation, ProductData};
use crate::compare::Expected;
use crate::limits::Measure;
use crate::subject::Subject;
use aqlm_formats::Result;

/// A case of decode, matvec or matmul for kernels launched by the caller: provides the data and compares
/// results with the reference's.
pub struct ProductCheck {
    case: Case,
    data: Product,
    expected: ProductsOrWeight,
}

enum ProductsOrWeight {
    Products(Products),
    Weight(Expected),
}

impl ProductCheck {
    /// Draws the data and computes the reference's results.
    ///
    /// # Errors
    /// `Argument` for a case of another operation.
    pub fn new(case: &Case) -> Result<Self> {
        let data = Product::new(case)?;
        let expected = if case.operation == Operation::Decode {
            ProductsOrWeight::Weight(weight(&data.data.matrix))
        } else {
            ProductsOrWeight::Products(Products::new(&data.data))
        };
        Ok(Self {
            case: *case,
            data,
            expected,
        })
    }

    /// The case.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// The matrix and x.
    pub fn data(&self) -> &ProductData {
        &self.data.data
    }

    /// Minimum cost of the case.
    pub fn cost(&self) -> Cost {
        match self.expected {
            ProductsOrWeight::Weight(_) => Decode::cost(&self.data),
            ProductsOrWeight::Products(_) => self.data.cost(),
        }
    }

    /// Number of results.
    pub fn len(&self) -> usize {
        match &self.expected {
            ProductsOrWeight::Weight(weight) => weight.values.len(),
            ProductsOrWeight::Products(products) => products.rows.len() * self.data.problem.out_features(),
        }
    }

    /// Whether there is no result.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Compares two results, row-major, that a machine computed from the same input, and returns the row of
    /// the check.
    ///
    /// # Errors
    /// `Argument` when the table of limits has no row for the machine's arithmetic.
    pub fn compare(&self, subject: &Subject, found: &[f64], again: &[f64]) -> Result<CaseRow> {
        let operation = self.case.operation;
        let check = match operation {
            Operation::Decode => against::<Decode>(subject.number(), &self.case),
            Operation::Matvec => against::<Matvec>(subject.number(), &self.case),
            _ => against::<Matmul>(subject.number(), &self.case),
        };
        let mut comparisons = match &self.expected {
            ProductsOrWeight::Weight(weight) => compare_weight(check, &self.data, weight, found)?,
            ProductsOrWeight::Products(products) => {
                let batch = self.data.problem.batch;
                let tables = tables(check, subject, &self.data.data.matrix, batch)?;
                let tables = tables.as_ref().map(|(bytes, packed)| (*bytes, packed));
                products.compare(check, &self.data, tables, 0..batch, found)?
            }
        };
        let different = found
            .iter()
            .zip(again)
            .filter(|(a, b)| a.to_bits() != b.to_bits())
            .count();
        let different = if found.len() == again.len() {
            different as f64
        } else {
            f64::NAN
        };
        comparisons.push(check.value(Measure::Repeat, "answers that differ", different)?);
        let (operation, case) = (operation.word(), self.case.to_string());
        Ok(CaseRow::compared(
            operation,
            &case,
            subject.backend(),
            comparisons,
        ))
    }
}
