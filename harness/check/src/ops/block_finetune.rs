use aqlm_reference::decode;
use aqlm_reference::llama::{Rotary, block_finetune, block_forward, quantized_gradients};
use aqlm_vocabulary::{FinetuneReport, LinearWeight, QuantizedMatrix};
use ndarray::{Array2, Array3};

use super::Prepared;
use crate::cases::{Case, LlamaCase, LlamaData, Operation, QUANTIZED};
use crate::compare::{Against, Findings, repeated};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::BlockFinetune,
        number,
    }
}

/// Outputs of the block with other codebooks: what tuning goes after.
fn targets(data: &LlamaData) -> Array3<f32> {
    let mut other = data.clone();
    for kind in QUANTIZED {
        if let LinearWeight::Quantized(matrix) = &mut other.blocks[0].layer_mut(kind).weight {
            matrix.codebooks.mapv_inplace(|c| 1.1 * c + 0.02);
        }
    }
    let rotary = Rotary::new(data.config.attention(), data.x.dim().1);
    let block = other.block(0);
    let mut y = Array3::zeros(data.x.dim());
    for (x, mut y) in data.x.outer_iter().zip(y.outer_iter_mut()) {
        let x = x.mapv(f64::from);
        y.assign(&block_forward(&block, &rotary, x.view()).mapv(|y| y as f32));
    }
    y
}

fn reference(
    case: &Case,
    problem: &LlamaCase,
    data: &LlamaData,
    targets: &Array3<f32>,
) -> Result<FinetuneReport> {
    let wide = |x: &Array3<f32>| -> Vec<Array2<f64>> { x.outer_iter().map(|x| x.mapv(f64::from)).collect() };
    let rotary = Rotary::new(data.config.attention(), problem.tokens);
    let mut block = data.block(0);
    Ok(block_finetune(
        &mut block,
        &rotary,
        &wide(&data.x),
        &wide(targets),
        problem.validation(),
        &problem.finetune(),
        problem.key(case.seed),
        &mut |_| (),
    )?)
}

/// The kept state is never worse than the first, and the gradients of codebooks and scales are those of the
/// decoded weight.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    let check = against(Number::F64);
    let report = reference(case, &problem, &data, &targets(&data))?;
    let rise = (report.loss_after - report.loss_before).max(0.0);
    let mut comparisons = vec![check.value(Measure::Loss, 0, "above the first state's", rise)?];
    for kind in QUANTIZED {
        if let LinearWeight::Quantized(matrix) = &data.blocks[0].layer(kind).weight {
            let name = data.config.blocks[0].linear(kind).short_name();
            comparisons.push(gradients(check, &problem, name, matrix)?);
        }
    }
    Ok(comparisons)
}

/// The loss sum(W times a fixed pattern) is linear in each codeword and each scale, so that central
/// differences have no error but rounding.
fn gradients(
    check: Against,
    problem: &LlamaCase,
    layer: &str,
    matrix: &QuantizedMatrix,
) -> Result<Comparison> {
    let shape = (matrix.out_features(), matrix.in_features());
    let pattern = Array2::from_shape_fn(shape, |(r, c)| ((3 * r + 7 * c) % 11) as f64 - 4.0);
    let loss = |matrix: &QuantizedMatrix| (decode(matrix) * &pattern).sum();
    let (codebooks, scales) = quantized_gradients(matrix, &pattern);
    let step = f64::EPSILON.cbrt();
    let (mut difference, mut size) = (0.0, 0.0);
    let mut add = |gradient: f64, above: QuantizedMatrix, below: QuantizedMatrix| {
        let slope = (loss(&above) - loss(&below)) / (2.0 * step);
        difference += (gradient - slope).powi(2);
        size += gradient * gradient;
    };
    for (at, &gradient) in codebooks.indexed_iter().step_by(3) {
        let moved = |by: f64| {
            let mut moved = matrix.clone();
            moved.codebooks[at] += by;
            moved
        };
        add(gradient, moved(step), moved(-step));
    }
    for (o, &gradient) in scales.indexed_iter() {
        let moved = |by: f64| {
            let mut moved = matrix.clone();
            moved.scales[o] += by;
            moved
        };
        add(gradient, moved(step), moved(-step));
    }
    let share = (difference / size).sqrt();
    check.value(
        Measure::Gradient,
        problem.terms(),
        &format!("codebooks and scales of {layer}"),
        share,
    )
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let case = *case;
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    let targets = targets(&data);
    let expected = reference(&case, &problem, &data, &targets)?;
    let settings = problem.finetune();
    let steps = settings.epochs * problem.sequences.div_ceil(settings.batch);
    // Adam divides by the root of the second moment, so a parameter whose gradients are at the level of
    // rounding goes its own way, by at most lr a step; what it does to the loss is of second order.
    let terms = 2 * problem.terms() * steps;
    let size = targets.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>() / targets.len() as f64;
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let ((_, report), same) = repeated(check, "block and report", || {
            subject.block_finetune(&problem, &data, &targets, problem.key(case.seed))
        })?;
        // A loss is the squared distance to the targets, so two of them differ in their roots by no more than
        // the outputs do, whose errors are shares of the outputs' size and not of the distance.
        let roots = |losses: &[f64]| -> Vec<f64> { losses.iter().map(|loss| loss.sqrt()).collect() };
        let distance = |what: &str, ours: &[f64], theirs: &[f64]| {
            let difference = nmse_of_roots(&roots(ours), &roots(theirs), size);
            check.value(Measure::Nmse, terms, what, difference)
        };
        let comparisons = vec![
            same,
            distance("loss before", &[report.loss_before], &[expected.loss_before])?,
            distance("loss after", &[report.loss_after], &[expected.loss_after])?,
            distance("training losses", &report.train_losses, &expected.train_losses)?,
            distance(
                "validation losses",
                &report.validation_losses,
                &expected.validation_losses,
            )?,
        ];
        Ok(Findings {
            comparisons,
            excess: None,
        })
    }))
}

/// The largest squared difference of two lists of roots of losses, as a share of the targets' mean square;
/// NaN when their lengths differ. Two empty lists agree.
fn nmse_of_roots(found: &[f64], expected: &[f64], size: f64) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    largest(found.iter().zip(expected).map(|(a, b)| (a - b).powi(2) / size))
}
