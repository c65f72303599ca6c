use aqlm_reference::decode;
use aqlm_reference::linalg;
use ndarray::Array2;
use proptest::strategy::BoxedStrategy;

use super::product::{self, Product, Products};
use super::{CaseData as _, Op};
use crate::Comparison;
use crate::breakage::Breakage;
use crate::cases::{Case, Kind, Problem, product as cases, strategy};
use crate::compare::{Against, Bits, Findings};
use crate::subject::Subject;
use aqlm_formats::Result;

/// Decode fused with a product with several rows of x.
pub(crate) struct Matmul;

impl Op for Matmul {
    type Data = Product;
    type Answer = Bits;
    type Expected = Products;

    const KIND: Kind = Kind::Product;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::product(12)
    }

    fn run(subject: &Subject, data: &Product) -> Result<Bits> {
        let (matrix, x) = (&data.data.matrix, &data.data.x);
        match subject {
            Subject::Reference => {
                let y = linalg::product(x.mapv(f64::from).view(), decode(matrix).t());
                Ok(Bits(y.iter().copied().collect()))
            }
            Subject::Cpu(cpu) => {
                let mut y = Array2::from_elem((x.nrows(), matrix.out_features()), f32::NAN);
                product::packed(cpu, matrix)?.matmul_into(x.view(), y.view_mut())?;
                Ok(y.into_iter().collect())
            }
            Subject::Cuda(cuda) => product::on_gpu(cuda, matrix, Some(x)),
        }
    }

    /// Compares the reference's matrix product with another library's, from which the expected results come.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let data = Product::new(case)?;
        let y = Self::run(&Subject::Reference, &data)?;
        let whole = Products::new(&data.data).whole(0..data.problem.batch);
        check.elements("product", &y.0, &whole, |_| 0.0)
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
        let batch = data.problem.batch;
        let tables = product::tables(check, subject, &data.data.matrix, batch)?;
        let tables = tables.as_ref().map(|(bytes, packed)| (*bytes, packed));
        let comparisons = expected.compare(check, data, tables, 0..batch, &answer.0)?;
        Ok(comparisons.into())
    }

    fn breakages() -> Vec<Breakage<Product, Bits>> {
        let mut breakages = product::breakages();
        breakages.push(product::dropped_inputs());
        breakages
    }
}
