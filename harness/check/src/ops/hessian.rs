use aqlm_reference::Hessian;
use ndarray::{Array2, ArrayView2, Axis};

use super::Prepared;
use crate::Comparison;
use crate::cases::{Case, Operation};
use crate::compare::{Against, Findings, repeated};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::Hessian,
        number,
    }
}

/// Samples that are summed in f32 before the sum is kept in f64.
const NARROW_SAMPLES: usize = 1024;

fn terms(samples: usize, number: Number) -> usize {
    match number {
        Number::F32 => samples.min(NARROW_SAMPLES),
        Number::F64 | Number::F16 | Number::Bf16 => samples,
    }
}

fn parts(x: &Array2<f32>, count: usize) -> Vec<ArrayView2<'_, f32>> {
    x.axis_chunks_iter(Axis(0), x.nrows().div_ceil(count)).collect()
}

fn reference(x: &Array2<f32>, count: usize) -> Result<Hessian> {
    let mut hessian = Hessian::new(x.ncols());
    for part in parts(x, count) {
        hessian.add(part.mapv(f64::from).view())?;
    }
    Ok(hessian)
}

/// The definition, symmetry, and accumulators that are merged.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.samples()?;
    let x = problem.data(case.seed);
    let check = against(Number::F64);
    let mean = reference(&x, problem.count)?.mean();
    let n = problem.columns;
    let mut definition = Array2::<f64>::zeros((n, n));
    for sample in x.outer_iter() {
        for (i, &a) in sample.iter().enumerate() {
            for (j, &b) in sample.iter().enumerate() {
                definition[[i, j]] += f64::from(a) * f64::from(b) / problem.rows as f64;
            }
        }
    }
    let mut merged = Hessian::new(n);
    for part in parts(&x, problem.count) {
        merged.merge(&reference(&part.to_owned(), 1)?)?;
    }
    let terms = 2 * problem.rows + 2;
    Ok(vec![
        check.nmse(terms, "definition", &definition, &mean)?,
        check.nmse(terms, "merged", &merged.mean(), &mean)?,
        check.nmse(terms, "transpose", mean.t(), &mean)?,
        check.value(
            Measure::Exact,
            0,
            "samples that were not counted",
            (problem.rows.abs_diff(merged.samples())) as f64,
        )?,
    ])
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.samples()?;
    let x = problem.data(case.seed);
    let expected = reference(&x, problem.count)?.mean();
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (found, same) = repeated(check, "H", || subject.hessian(&parts(&x, problem.count)))?;
        let flat = |h: &Array2<f64>| -> Vec<f64> { h.iter().copied().collect() };
        let asymmetric = found.iter().zip(found.t()).filter(|(a, b)| a != b).count();
        let mut comparisons = vec![
            same,
            check.value(
                Measure::Exact,
                0,
                "elements unlike their transpose",
                asymmetric as f64,
            )?,
        ];
        // The mean divides by the number of samples, which rounds: exact are the sums.
        if problem.values.is_exact() && problem.rows.is_power_of_two() {
            comparisons.push(check.exact("elements of H", &flat(&found), &flat(&expected))?);
        } else {
            let terms = terms(problem.rows, subject.number());
            comparisons.push(check.nmse(terms, "H", &found, &expected)?);
        }
        Ok(Findings {
            comparisons,
            excess: None,
        })
    }))
}
