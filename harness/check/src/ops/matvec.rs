use aqlm_reference::decode;
use proptest::strategy::BoxedStrategy;

use super::product::{self, Product, Products, by_definition};
use super::{CaseData as _, Op};
use crate::Comparison;
use crate::breakage::Breakage;
use crate::cases::{Case, Kind, Problem, product as cases, strategy};
use crate::compare::{Against, Bits, Findings};
use crate::subject::Subject;
use aqlm_formats::Result;

/// Decode fused with a product with one x, for each row of x.
pub(crate) struct Matvec;

impl Op for Matvec {
    type Data = Product;
    type Answer = Bits;
    type Expected = Products;

    const KIND: Kind = Kind::Product;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::product(3)
    }

    fn run(subject: &Subject, data: &Product) -> Result<Bits> {
        let (matrix, x) = (&data.data.matrix, &data.data.x);
        let mut results = Vec::with_capacity(x.nrows() * matrix.out_features());
        match subject {
            Subject::Reference => {
                let weight = decode(matrix);
                for x in x.outer_iter() {
                    results.extend(weight.dot(&x.mapv(f64::from)));
                }
            }
            Subject::Cpu(cpu) => {
                let packed = product::packed(cpu, matrix)?;
                for x in x.outer_iter() {
                    let mut y = vec![f32::NAN; matrix.out_features()];
                    packed.matvec(&x.to_vec(), &mut y)?;
                    results.extend(y.into_iter().map(f64::from));
                }
            }
            Subject::Cuda(cuda) => {
                for x in x.outer_iter() {
                    let x = x.to_owned().insert_axis(ndarray::Axis(0));
                    results.extend(product::on_gpu(cuda, matrix, Some(&x))?.0);
                }
            }
        }
        Ok(Bits(results))
    }

    /// The product with the decoded weight equals the sum by the definition, added from the last input to the
    /// first.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let data = Product::new(case)?;
        let weight = by_definition(&data.data.matrix);
        let mut comparisons = Vec::new();
        for (x, expected) in data.data.x.outer_iter().zip(&Products::new(&data.data).rows) {
            let y: Vec<f64> = weight
                .outer_iter()
                .map(|row| row.iter().zip(x).rev().map(|(w, &x)| w * f64::from(x)).sum())
                .collect();
            comparisons.extend(check.elements("definition", &y, expected, |_| 0.0)?);
        }
        Ok(comparisons)
    }

    fn expected(data: &Product) -> Result<Products> {
        Ok(Products::new(&data.data))
    }

    fn compare(
        check: Against,
        subject: &Subject,
        data: &Product,
        expected: &Products,
        answer: &Bits,
    ) -> Result<Findings> {
        let tables = product::tables(check, subject, &data.data.matrix, 1)?;
        let tables = tables.as_ref().map(|(bytes, packed)| (*bytes, packed));
        let out = data.problem.out_features();
        let mut comparisons = Vec::new();
        for row in 0..data.problem.batch {
            let y = answer.0.get(row * out..(row + 1) * out).unwrap_or(&[]);
            let mut of_row = expected.compare(check, data, tables, row..row + 1, y)?;
            let worst = of_row.iter_mut().flat_map(|comparison| &mut comparison.worst);
            worst.for_each(|worst| worst.index[0] += row);
            comparisons.extend(of_row);
        }
        Ok(comparisons.into())
    }

    fn breakages() -> Vec<Breakage<Product, Bits>> {
        let mut breakages = product::breakages();
        breakages.push(product::dropped_inputs());
        breakages
    }
}
