use aqlm_reference::decode;
use proptest::strategy::BoxedStrategy;

use super::product::{self, Product, by_definition};
use super::{CaseData as _, Cost, Op};
use crate::Comparison;
use crate::breakage::Breakage;
use crate::cases::{Case, Kind, Problem, product as cases, strategy};
use crate::compare::{Against, Bits, Expected, Findings};
use crate::subject::Subject;
use aqlm_formats::Result;

/// Decodes codes, codebooks and scales to the dense weight.
pub(crate) struct Decode;

impl Op for Decode {
    type Data = Product;
    type Answer = Bits;
    type Expected = Expected;

    const KIND: Kind = Kind::Product;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::product(3)
    }

    fn run(subject: &Subject, data: &Product) -> Result<Bits> {
        let matrix = &data.data.matrix;
        match subject {
            Subject::Reference => Ok(Bits(decode(matrix).iter().copied().collect())),
            Subject::Cpu(cpu) => {
                let mut weight = vec![f32::NAN; matrix.out_features() * matrix.in_features()];
                product::packed(cpu, matrix)?.decode_into(0..matrix.groups().0, &mut weight)?;
                Ok(weight.into_iter().collect())
            }
            Subject::Cuda(cuda) => product::on_gpu(cuda, matrix, None),
        }
    }

    /// Checks the definition, and linearity in codebooks and scales.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let data = Product::new(case)?;
        let matrix = &data.data.matrix;
        let weight = product::weight(matrix);
        let flat = |weight: ndarray::Array2<f64>| -> Vec<f64> { weight.iter().copied().collect() };
        let definition = flat(by_definition(matrix));
        let mut comparisons = check.elements("definition", &definition, &weight, |_| 0.0)?;
        // Multiplying codebooks and scales by two factors, with rounding, multiplies the weight by both.
        let mut scaled = matrix.clone();
        scaled.tune(|mut codebooks, mut scales| {
            codebooks *= 1.1;
            scales *= 0.7;
        });
        let scaled: Vec<f64> = flat(decode(&scaled)).iter().map(|w| w / 1.1 / 0.7).collect();
        comparisons.extend(check.elements("linearity", &scaled, &weight, |_| 0.0)?);
        Ok(comparisons)
    }

    fn expected(data: &Product) -> Result<Expected> {
        Ok(product::weight(&data.data.matrix))
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        data: &Product,
        expected: &Expected,
        answer: &Bits,
    ) -> Result<Findings> {
        compare_weight(check, data, expected, &answer.0).map(Findings::from)
    }

    fn cost(data: &Product) -> Cost {
        let problem = &data.problem;
        let matrix = product::matrix_bytes(problem.scheme, (problem.out_groups, problem.in_groups));
        Cost {
            bytes: matrix + 2 * problem.out_features() * problem.in_features(),
            products: Vec::new(),
        }
    }

    fn breakages() -> Vec<Breakage<Product, Bits>> {
        product::breakages()
    }
}

/// Compares a row-major weight with the exact one.
pub(super) fn compare_weight(
    check: Against,
    data: &Product,
    expected: &Expected,
    weight: &[f64],
) -> Result<Vec<Comparison>> {
    let matrix = &data.data.matrix;
    let shape = [matrix.out_features(), matrix.in_features()];
    let comparisons = if data.problem.values.is_exact() {
        vec![check.exact("elements of the weight", weight, &expected.values)?]
    } else {
        check.elements("weight", weight, expected, |_| 0.0)?
    };
    Ok(comparisons.into_iter().map(|one| one.shaped(&shape)).collect())
}
