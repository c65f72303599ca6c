use aqlm_optimized::cpu::quantizer;
use aqlm_optimized::cuda::quantizer as on_gpu;
use aqlm_reference::{decode, residual_init};
use aqlm_vocabulary::{AqlmError, QuantizedMatrix};
use ndarray::{Array1, Array2, s};
use proptest::strategy::BoxedStrategy;

use super::layer::{Layer, malformed};
use super::{CaseData as _, Op, nearest, of_quantizer};
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Kind, Problem, strategy};
use crate::compare::{Against, Findings};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

/// First codes and codebooks by residual k-means.
pub(crate) struct ResidualInit;

impl Op for ResidualInit {
    type Data = Layer;
    type Answer = QuantizedMatrix;
    type Expected = QuantizedMatrix;

    const KIND: Kind = Kind::Layer(&[]);
    const CORNERS: &'static [&'static str] = &[
        "2x5g8-96x64-outliers-s1",
        "1x6g4-64x48-zerorows-s2",
        "2x4g4o2-64x32-equalrows-s3",
        "1x1g4-1x4-dyadic-s4",
    ];

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::layer(&[])
    }

    fn number(subject: &Subject) -> Number {
        of_quantizer(subject)
    }

    fn run(subject: &Subject, layer: &Layer) -> Result<QuantizedMatrix> {
        let (settings, key) = (layer.settings(), layer.key);
        match subject {
            Subject::Reference => Ok(residual_init(&layer.weight, &settings, key)?),
            Subject::Cpu(_) => Ok(quantizer::residual_init(&layer.data.weight, &settings, key)?),
            Subject::Cuda(cuda) => {
                Ok(
                    on_gpu::residual_init(&cuda.device, &layer.data.weight, &settings, key)
                        .map_err(AqlmError::from)?,
                )
            }
        }
    }

    /// Codes are nearest, scales are norms, and every additional codebook lowers the error.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let layer = Layer::new(case)?;
        let (settings, key) = (layer.settings(), layer.key);
        let found = residual_init(&layer.weight, &settings, key)?;
        let mut comparisons = on_its_path(check, &layer, &found)?;
        let mut errors = vec![error(
            &layer.weight,
            &found
                .clone()
                .with_codebooks(ndarray::Array4::zeros(found.codebooks().dim()))?,
        )];
        for codebooks in 1..=settings.scheme.num_codebooks {
            let mut fewer = settings.clone();
            fewer.scheme.num_codebooks = codebooks;
            errors.push(error(&layer.weight, &residual_init(&layer.weight, &fewer, key)?));
        }
        let rise = largest(errors.windows(2).map(|pair| (pair[1] - pair[0]) / errors[0]));
        let what = "error that a codebook adds";
        comparisons.push(check.value(Measure::Choice, what, rise.max(0.0))?);
        Ok(comparisons)
    }

    fn expected(layer: &Layer) -> Result<QuantizedMatrix> {
        Self::run(&Subject::Reference, layer)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        layer: &Layer,
        expected: &QuantizedMatrix,
        found: &QuantizedMatrix,
    ) -> Result<Findings> {
        let comparisons = on_its_path(check, layer, found)?;
        let floor = check.floor(layer.weight.iter().map(|w| w * w).sum())?;
        let error = |matrix| error(&layer.weight, matrix) + floor;
        Ok(Findings {
            comparisons,
            excess: Some((error(found) / error(expected)).ln()),
        })
    }

    fn breakages() -> Vec<Breakage<Layer, QuantizedMatrix>> {
        vec![
            Breakage::of_answer("the scale of the next output group", |found, _, _| {
                breakage::next_scales(found);
            }),
            Breakage::of_answer("codes of the next input group", |found, _, _| {
                breakage::next_groups(found);
            }),
        ]
    }
}

/// |W - Q|^2 in the unweighted norm, which residual k-means minimises.
fn error(weight: &Array2<f64>, matrix: &QuantizedMatrix) -> f64 {
    (weight - &decode(matrix)).iter().map(|x| x * x).sum()
}

/// The norms of output groups, which the scales must equal.
pub(super) fn norms(weight: &Array2<f64>, rows: usize) -> Array1<f64> {
    weight
        .axis_chunks_iter(ndarray::Axis(0), rows)
        .map(|group| group.iter().map(|w| w * w).sum::<f64>().sqrt())
        .collect()
}

/// The worst code. Each code must be the nearest to its group's residual after the earlier codebooks.
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
    let scales = norms(&layer.weight, found.scheme().out_group_size) + 1e-9;
    let shape = check.value(
        Measure::Exact,
        "shapes and codes",
        malformed(found, &layer.data.matrix),
    )?;
    if !shape.holds() {
        return Ok(vec![shape]);
    }
    Ok(vec![
        shape,
        check.nmse("scales", found.scales(), &scales)?,
        check.value(Measure::Choice, "codes", worst_choice(&layer.weight, found))?,
    ])
}
