use aqlm_reference::decode;
use aqlm_reference::linalg::product;
use ndarray::Array2;

use super::Prepared;
use super::product::Products;
use crate::Comparison;
use crate::cases::{Case, Operation};
use crate::compare::{Against, Findings, bits, repeated};
use crate::limits::Number;
use crate::subject::Subject;
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::Matmul,
        number,
    }
}

/// Roundings behind one element: as for matvec, and those of a weight that is decoded first.
fn terms(products: &Products) -> usize {
    products.data.matrix.in_features() + 2 * products.data.matrix.scheme().num_codebooks + 5
}

/// The reference's product of matrices is the one that the expected results come from, computed by another
/// library.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let products = Products::new(case.product()?.data(case.seed));
    let x = products.data.x.mapv(f64::from);
    let y = product(x.view(), decode(&products.data.matrix).t());
    let y: Vec<f64> = y.iter().copied().collect();
    against(Number::F64).elements(2 * terms(&products), "product", &y, &products.whole(), |_| 0.0)
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.product()?;
    let products = Products::new(problem.data(case.seed));
    let expected = products.whole();
    let exact = problem.values.is_exact();
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (matrix, x) = (&products.data.matrix, &products.data.x);
        let (batch, out) = (x.nrows(), matrix.out_features());
        let (y, same) = repeated(check, "bytes of y", || {
            let mut y = Array2::from_elem((batch, out), f32::NAN);
            subject.matmul(matrix, x.view(), y.view_mut())?;
            Ok(bits(&y.iter().copied().collect::<Vec<f32>>()))
        })?;
        let y: Vec<f64> = y
            .into_iter()
            .map(|bits| f64::from(f32::from_bits(bits)))
            .collect();
        let mut comparisons = vec![same];
        let coarse = subject.table_bytes(Operation::Matmul, batch) == Some(1);
        let number = subject.number();
        if number.is_half() && exact {
            let rounded: Vec<f64> = expected.values.iter().map(|&y| number.nearest(y)).collect();
            comparisons.push(check.exact("elements of y", &y, &rounded)?);
        } else if number.is_half() {
            let chain = matrix.scheme().num_codebooks + if number == Number::Bf16 { 3 } else { 1 };
            comparisons.push(products.half_comparison(check, chain, 0..batch, &y)?);
        } else if exact && !coarse {
            comparisons.push(check.exact("elements of y", &y, &expected.values)?);
        } else {
            let bounds = (0..batch)
                .map(|row| products.table_error(subject, Operation::Matmul, row))
                .collect::<Result<Vec<_>>>()?;
            let extra =
                |i: usize| bounds[i / out] * matrix.scales()[i % out / matrix.scheme().out_group_size].abs();
            comparisons.extend(check.elements(terms(&products), "y", &y, &expected, extra)?);
        }
        Ok(Findings {
            comparisons,
            excess: None,
        })
    }))
}
