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
        operation: Operation::Matvec,
        number,
    }
}

/// Roundings behind one element: the products along a row, the codewords in each, the scaling, the sums of
/// blocks.
fn terms(products: &Products) -> usize {
    products.data.matrix.in_features() + products.data.matrix.scheme().num_codebooks + 4
}

/// The product with the decoded weight is the sum over the definition, from the last input to the first.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let products = Products::new(case.product()?.data(case.seed));
    let weight = by_definition(&products.data.matrix);
    let check = against(Number::F64);
    let mut comparisons = Vec::new();
    for (x, expected) in products.data.x.outer_iter().zip(&products.rows) {
        let y: Vec<f64> = weight
            .outer_iter()
            .map(|row| row.iter().zip(x).rev().map(|(w, &x)| w * f64::from(x)).sum())
            .collect();
        comparisons.extend(check.elements(2 * terms(&products), "definition", &y, expected, |_| 0.0)?);
    }
    Ok(comparisons)
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.product()?;
    let products = Products::new(problem.data(case.seed));
    let exact = problem.values.is_exact();
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let matrix = &products.data.matrix;
        let mut comparisons = Vec::new();
        for (row, (x, expected)) in products.data.x.outer_iter().zip(&products.rows).enumerate() {
            let x = x.to_vec();
            let (y, same) = repeated(check, "bytes of y", || {
                let mut y = vec![f32::NAN; matrix.out_features()];
                subject.matvec(matrix, &x, &mut y)?;
                Ok(bits(&y))
            })?;
            let y: Vec<f64> = y
                .into_iter()
                .map(|bits| f64::from(f32::from_bits(bits)))
                .collect();
            comparisons.push(same);
            // Tables of one byte cannot hold the exact tier's sums.
            let coarse = subject.table_bytes(Operation::Matvec, 1) == Some(1);
            if subject.number().is_half() && exact {
                let rounded: Vec<f64> = expected
                    .values
                    .iter()
                    .map(|&y| subject.number().nearest(y))
                    .collect();
                comparisons.push(check.exact("elements of y", &y, &rounded)?);
            } else if subject.number().is_half() {
                let scheme = matrix.scheme();
                let chain = match subject.number() {
                    Number::Bf16 => scheme.num_codebooks + 3,
                    _ => scheme.num_codebooks * scheme.in_group_size / 2,
                };
                comparisons.push(products.half_comparison(check, chain, row..row + 1, &y)?);
            } else if exact && !coarse {
                comparisons.push(check.exact("elements of y", &y, &expected.values)?);
            } else {
                let bound = products.table_error(subject, Operation::Matvec, row)?;
                let scale = |i: usize| matrix.scales()[i / matrix.scheme().out_group_size].abs();
                comparisons
                    .extend(check.elements(terms(&products), "y", &y, expected, |i| bound * scale(i))?);
            }
        }
        Ok(Findings {
            comparisons,
            excess: None,
        })
    }))
}
