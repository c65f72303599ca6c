use aqlm_reference::{decode, residual_init};
use aqlm_vocabulary::QuantizedMatrix;
use ndarray::{Array1, Array2, s};

use super::layer::{Layer, malformed};
use super::{Prepared, nearest};
use crate::cases::{Case, Operation};
use crate::compare::{Against, Findings, repeated};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::ResidualInit,
        number,
    }
}

/// |W - Q|^2 in the plain norm, which is what residual k-means knows of.
fn error(weight: &Array2<f64>, matrix: &QuantizedMatrix) -> f64 {
    (weight - &decode(matrix)).iter().map(|x| x * x).sum()
}

/// The norms of output groups: what scales must be.
pub(super) fn norms(weight: &Array2<f64>, rows: usize) -> Array1<f64> {
    weight
        .axis_chunks_iter(ndarray::Axis(0), rows)
        .map(|group| group.iter().map(|w| w * w).sum::<f64>().sqrt())
        .collect()
}

/// The worst code: each must be the nearest to what the codebooks before it have left of its group.
fn worst_choice(weight: &Array2<f64>, matrix: &QuantizedMatrix) -> f64 {
    let (rows, columns) = (matrix.scheme().out_group_size, matrix.scheme().in_group_size);
    let size = (matrix.scheme().codebook_size(), rows * columns);
    let codebooks: Vec<Array2<f64>> = matrix
        .codebooks()
        .outer_iter()
        .map(|codebook| Array2::from_shape_fn(size, |(k, i)| codebook[[k, i / columns, i % columns]]))
        .collect();
    let (out_groups, in_groups) = matrix.groups();
    let groups = (0..out_groups).flat_map(|o| (0..in_groups).map(move |j| (o, j)));
    largest(groups.map(|(o, j)| {
        let group = weight.slice(s![o * rows..(o + 1) * rows, j * columns..(j + 1) * columns]);
        let mut left: Array1<f64> = group.iter().map(|w| w / matrix.scales()[o]).collect();
        let mut worst = 0.0;
        for (m, codebook) in codebooks.iter().enumerate() {
            let code = usize::from(matrix.codes()[[o, j, m]]);
            worst = largest([worst, nearest::excess(left.view(), codebook.view(), code)]);
            left -= &codebook.row(code);
        }
        worst
    }))
}

fn on_its_path(check: Against, layer: &Layer, found: &QuantizedMatrix) -> Result<Vec<Comparison>> {
    let scheme = found.scheme();
    let weights = scheme.out_group_size * layer.weight.ncols();
    let terms = nearest::terms(scheme.group_len(), scheme.num_codebooks);
    Ok(vec![
        check.value(
            Measure::Exact,
            0,
            "shapes and codes",
            malformed(found, &layer.data.matrix),
        )?,
        check.nmse(
            weights + 2,
            "scales",
            found.scales(),
            &(norms(&layer.weight, scheme.out_group_size) + 1e-9),
        )?,
        check.value(
            Measure::Choice,
            terms,
            "codes",
            worst_choice(&layer.weight, found),
        )?,
    ])
}

/// Codes are nearest, scales are norms, and every further codebook lowers the error.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.layer()?;
    let layer = Layer::new(problem.data(case.seed));
    let check = against(Number::F64);
    let (settings, key) = (problem.settings(), problem.key(case.seed));
    let found = residual_init(&layer.weight, &settings, key)?;
    let mut comparisons = on_its_path(check, &layer, &found)?;
    let mut errors = vec![error(
        &layer.weight,
        &found
            .clone()
            .with_codebooks(ndarray::Array4::zeros(found.codebooks().dim()))?,
    )];
    for codebooks in 1..=problem.scheme.num_codebooks {
        let mut fewer = settings.clone();
        fewer.scheme.num_codebooks = codebooks;
        errors.push(error(&layer.weight, &residual_init(&layer.weight, &fewer, key)?));
    }
    let rise = largest(errors.windows(2).map(|pair| (pair[1] - pair[0]) / errors[0]));
    let terms = nearest::terms(problem.scheme.group_len(), problem.scheme.num_codebooks);
    comparisons.push(check.value(
        Measure::Choice,
        terms,
        "error that a codebook adds",
        rise.max(0.0),
    )?);
    Ok(comparisons)
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.layer()?;
    let layer = Layer::new(problem.data(case.seed));
    let (settings, key) = (problem.settings(), problem.key(case.seed));
    let expected = residual_init(&layer.weight, &settings, key)?;
    let size: f64 = layer.weight.iter().map(|w| w * w).sum();
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (found, same) = repeated(check, "matrix", || {
            subject.residual_init(&layer.data.weight, &settings, key)
        })?;
        let mut comparisons = on_its_path(check, &layer, &found)?;
        comparisons.push(same);
        let floor = (problem.scheme.group_len() as f64 * check.number.epsilon()).powi(2) * size;
        let error = |matrix| error(&layer.weight, matrix) + floor;
        Ok(Findings {
            comparisons,
            excess: Some((error(&found) / error(&expected)).ln()),
        })
    }))
}
