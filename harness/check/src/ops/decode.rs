use aqlm_reference::decode;
use aqlm_vocabulary::QuantizedMatrix;

use super::Prepared;
use super::product::{Products, by_definition};
use crate::Comparison;
use crate::cases::{Case, Operation};
use crate::compare::{Against, Findings, bits, repeated};
use crate::limits::Number;
use crate::subject::Subject;
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::Decode,
        number,
    }
}

/// Roundings behind one element: the sum of codewords and its scaling.
fn terms(matrix: &QuantizedMatrix) -> usize {
    matrix.scheme().num_codebooks + 1
}

/// The definition, and linearity in codebooks and scales.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let products = Products::new(case.product()?.data(case.seed));
    let matrix = &products.data.matrix;
    let check = against(Number::F64);
    let flat = |weight: ndarray::Array2<f64>| -> Vec<f64> { weight.iter().copied().collect() };
    let definition = flat(by_definition(matrix));
    let mut comparisons =
        check.elements(terms(matrix), "definition", &definition, &products.weight, |_| {
            0.0
        })?;
    // Codebooks and scales each times a number that rounds: the weight times both.
    let mut scaled = matrix.clone();
    scaled.tune(|mut codebooks, mut scales| {
        codebooks *= 1.1;
        scales *= 0.7;
    });
    let scaled: Vec<f64> = flat(decode(&scaled)).iter().map(|w| w / 1.1 / 0.7).collect();
    comparisons.extend(check.elements(
        2 * terms(matrix) + 3,
        "linearity",
        &scaled,
        &products.weight,
        |_| 0.0,
    )?);
    Ok(comparisons)
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.product()?;
    let products = Products::new(problem.data(case.seed));
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let matrix = &products.data.matrix;
        let len = products.weight.values.len();
        let (weight, same) = repeated(check, "bytes of the weight", || {
            let mut weight = vec![f32::NAN; len];
            subject.decode(matrix, &mut weight)?;
            Ok(bits(&weight))
        })?;
        let weight: Vec<f64> = weight
            .into_iter()
            .map(|bits| f64::from(f32::from_bits(bits)))
            .collect();
        let mut comparisons = vec![same];
        // With bf16, codewords are rounded as well.
        let rounded = usize::from(subject.number() == Number::Bf16);
        if problem.values.is_exact() {
            comparisons.push(check.exact("elements of the weight", &weight, &products.weight.values)?);
        } else {
            comparisons.extend(check.elements(
                terms(matrix) + rounded,
                "weight",
                &weight,
                &products.weight,
                |_| 0.0,
            )?);
        }
        Ok(Findings {
            comparisons,
            excess: None,
        })
    }))
}
