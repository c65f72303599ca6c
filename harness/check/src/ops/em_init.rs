use aqlm_reference::{em_init, residual_init};

use super::Prepared;
use super::layer::{Layer, malformed};
use super::residual_init::norms;
use crate::Comparison;
use crate::cases::{Case, Operation};
use crate::compare::{Against, Findings, repeated};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use aqlm_formats::Result;

/// Rounds of assignment and exact M-step.
const ROUNDS: usize = 3;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::EmInit,
        number,
    }
}

/// Sums behind the objective: in a group's metric, and over codebooks.
fn terms(layer: &Layer) -> usize {
    let scheme = layer.data.matrix.scheme();
    8 * (2 * layer.weight.ncols()
        + layer.data.matrix.groups().1 * scheme.num_codebooks
        + scheme.num_codebooks
        + 8)
}

/// Each group's error in its own metric, s^2 (x - c) H_jj (x - c): what EM lowers. It leaves out what groups
/// have to do with one another.
fn objective(layer: &Layer, matrix: &aqlm_vocabulary::QuantizedMatrix) -> f64 {
    let columns = matrix.scheme().in_group_size;
    let difference = &layer.weight - &aqlm_reference::decode(matrix);
    let hessian = &layer.data.hessian;
    difference
        .outer_iter()
        .flat_map(|row| {
            (0..row.len() / columns).map(move |j| {
                let at = j * columns..(j + 1) * columns;
                let part = row.slice(ndarray::s![at.clone()]).to_owned();
                part.dot(&hessian.slice(ndarray::s![at.clone(), at]).dot(&part))
            })
        })
        .sum()
}

/// More rounds never raise the objective of a single codebook, and no rounds are residual k-means.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.layer()?;
    let layer = Layer::new(problem.data(case.seed));
    let check = against(Number::F64);
    let mut settings = problem.settings();
    let key = problem.key(case.seed);
    let none = em_init(&layer.weight, &layer.data.hessian, &settings, 0, key)?;
    let plain = residual_init(&layer.weight, &settings, key)?;
    let mut comparisons = vec![check.value(
        Measure::Exact,
        0,
        "no rounds against residual k-means",
        f64::from(u8::from(none != plain)),
    )?];
    settings.scheme.num_codebooks = 1;
    let of = |rounds| em_init(&layer.weight, &layer.data.hessian, &settings, rounds, key);
    let mut before = of(0)?;
    for rounds in 1..=ROUNDS {
        let next = of(rounds)?;
        let rise = objective(&layer, &next) - objective(&layer, &before);
        let share = if rise <= 0.0 {
            0.0
        } else {
            rise / layer.magnitude(&before)
        };
        comparisons.push(check.value(Measure::Loss, terms(&layer), "objective that a round adds", share)?);
        before = next;
    }
    Ok(comparisons)
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.layer()?;
    let layer = Layer::new(problem.data(case.seed));
    let (settings, key) = (problem.settings(), problem.key(case.seed));
    let expected = em_init(&layer.weight, &layer.data.hessian, &settings, ROUNDS, key)?;
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (weight, hessian) = (&layer.data.weight, &layer.data.hessian);
        let (found, same) = repeated(check, "matrix", || {
            subject.em_init(weight, hessian, &settings, ROUNDS, key)
        })?;
        let rows = found.scheme().out_group_size;
        let mut comparisons = vec![
            same,
            check.value(
                Measure::Exact,
                0,
                "shapes and codes",
                malformed(&found, &expected),
            )?,
            check.nmse(
                rows * layer.weight.ncols() + 2,
                "scales",
                found.scales(),
                &(norms(&layer.weight, rows) + 1e-9),
            )?,
        ];
        if found.scheme().num_codebooks == 1 {
            let before = subject.em_init(weight, hessian, &settings, 0, key)?;
            let rise = objective(&layer, &found) - objective(&layer, &before);
            let share = if rise <= 0.0 {
                0.0
            } else {
                rise / layer.magnitude(&before)
            };
            comparisons.push(check.value(Measure::Loss, terms(&layer), "objective that EM adds", share)?);
        }
        let floor =
            (layer.weight.ncols() as f64 * check.number.epsilon()).powi(2) * layer.magnitude(&expected);
        let excess = ((objective(&layer, &found) + floor) / (objective(&layer, &expected) + floor)).ln();
        Ok(Findings {
            comparisons,
            excess: Some(excess),
        })
    }))
}
