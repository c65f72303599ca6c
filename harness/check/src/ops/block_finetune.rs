use aqlm_engine::backends::CudaHidden;
use aqlm_engine::ops::BlockOps as _;
use aqlm_engine::ranks::Alone;
use aqlm_engine::tune_block;
use aqlm_reference::decode;
use aqlm_reference::llama::{Rotary, block_finetune, block_forward, quantized_gradients};
use aqlm_vocabulary::{BlockWeights, FinetuneReport, LinearWeight, QuantizedMatrix};
use ndarray::{Array2, Array3};
use proptest::strategy::BoxedStrategy;

use super::llama::Llama;
use super::{CaseData, Cost, Op};
use crate::breakage::Breakage;
use crate::cases::{Case, Kind, LlamaData, Problem, llama as cases, quantized, strategy};
use crate::compare::{Against, Findings};
use crate::keep::{Operands, Tensors};
use crate::limits::Measure;
use crate::subject::Subject;
use crate::{Comparison, largest};
use aqlm_formats::Result;

/// The first block, tuned towards another block's outputs.
pub(crate) struct BlockFinetune;

impl Op for BlockFinetune {
    type Data = Tuning;
    type Answer = (BlockWeights, FinetuneReport);
    type Expected = FinetuneReport;

    const KIND: Kind = Kind::Llama;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::llama(12)
    }

    /// In TF32 too. Its gradients are not compared one by one: where terms cancel, as for scales and biases
    /// of keys, an error that is small beside the terms is large beside their sum.
    fn ways(machine: &Subject, _data: &Tuning) -> Vec<Subject> {
        machine.trainings()
    }

    fn run(subject: &Subject, case: &Tuning) -> Result<(BlockWeights, FinetuneReport)> {
        let (Llama { problem, data, key }, targets) = (&case.llama, &case.targets);
        let (validation, settings) = (problem.validation(), problem.finetune());
        match subject {
            Subject::Reference => {
                let wide = |x: &Array3<f32>| -> Vec<Array2<f64>> {
                    x.outer_iter().map(|x| x.mapv(f64::from)).collect()
                };
                let (mut block, rotary) = case.llama.exact();
                let report = block_finetune(
                    &mut block,
                    &rotary,
                    &wide(&data.x),
                    &wide(targets),
                    validation,
                    &settings,
                    *key,
                    &mut |_| (),
                )?;
                Ok((block.to_weights(), report))
            }
            Subject::Cpu(_) => {
                let backend = case.llama.on_cpu()?;
                let mut block = backend.load_block(0, &data.blocks[0])?;
                let report = tune_block(
                    &backend,
                    &mut block,
                    &data.x.clone().into(),
                    &targets.clone().into(),
                    validation,
                    &settings,
                    *key,
                    &Alone,
                    &mut |_| (),
                )?;
                Ok((backend.store_block(&block)?, report))
            }
            Subject::Cuda(cuda) => {
                let backend = case.llama.on_machine(cuda)?;
                let hidden = |states: &Array3<f32>| CudaHidden::of(backend.machine(), &states.view());
                let mut block = backend.load_block(0, &data.blocks[0])?;
                let report = tune_block(
                    &backend,
                    &mut block,
                    &hidden(&data.x)?,
                    &hidden(targets)?,
                    validation,
                    &settings,
                    *key,
                    &Alone,
                    &mut |_| (),
                )?;
                Ok((backend.store_block(&block)?, report))
            }
        }
    }

    /// The kept state is never worse than the initial one. Gradients of codebooks and scales agree with those
    /// of the decoded weight.
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let case = Tuning::new(case)?;
        let (_, report) = Self::run(&Subject::Reference, &case)?;
        let rise = (report.loss_after - report.loss_before).max(0.0);
        let mut comparisons = vec![check.value(Measure::Loss, "above the first state's", rise)?];
        for kind in quantized(&case.llama.data.config.blocks[0]) {
            let data = &case.llama.data;
            if let LinearWeight::Quantized(matrix) = &data.blocks[0].layer(kind).weight {
                let name = data.config.blocks[0].linear(kind).short_name();
                comparisons.push(gradients(check, name, matrix)?);
            }
        }
        Ok(comparisons)
    }

    fn expected(case: &Tuning) -> Result<FinetuneReport> {
        Ok(Self::run(&Subject::Reference, case)?.1)
    }

    /// Compares losses and not parameters. Adam divides by the root of the second moment, so a parameter
    /// whose gradients are at rounding level moves arbitrarily, by at most lr per step. The effect on the
    /// loss is of second order.
    fn compare(
        check: Against,
        _subject: &Subject,
        case: &Tuning,
        expected: &FinetuneReport,
        (_, report): &(BlockWeights, FinetuneReport),
    ) -> Result<Findings> {
        let targets = &case.targets;
        let size = targets.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>() / targets.len() as f64;
        // A loss is the squared distance to the targets. The roots of two losses therefore differ by no more
        // than the outputs do. Errors of the outputs are relative to the outputs' size, not to the distance.
        let roots = |losses: &[f64]| -> Vec<f64> { losses.iter().map(|loss| loss.sqrt()).collect() };
        let distance = |what: &str, ours: &[f64], theirs: &[f64]| {
            let difference = nmse_of_roots(&roots(ours), &roots(theirs), size);
            check.value(Measure::Nmse, what, difference)
        };
        let comparisons = vec![
            distance("loss before", &[report.loss_before], &[expected.loss_before])?,
            distance("loss after", &[report.loss_after], &[expected.loss_after])?,
            distance("training losses", &report.train_losses, &expected.train_losses)?,
            distance(
                "validation losses",
                &report.validation_losses,
                &expected.validation_losses,
            )?,
        ];
        Ok(comparisons.into())
    }

    fn breakages() -> Vec<Breakage<Tuning, (BlockWeights, FinetuneReport)>> {
        vec![
            Breakage::of_data("targets of the last sequence left out", |broken| {
                let last = broken.targets.dim().0 - 1;
                broken.targets.index_axis_mut(ndarray::Axis(0), last).fill(0.0);
            }),
            Breakage::of_answer("an epoch that is not counted", |(_, report), _, _| {
                report.train_losses.pop();
            }),
        ]
    }
}

/// A small Llama, and the targets of its first block.
#[derive(Debug, Clone)]
pub(crate) struct Tuning {
    llama: Llama,
    targets: Array3<f32>,
}

impl Operands for Tuning {
    fn add_to(&self, tensors: &mut Tensors) {
        self.llama.add_to(tensors);
        tensors.array("targets", &self.targets);
    }
}

impl CaseData for Tuning {
    fn new(case: &Case) -> Result<Self> {
        let llama = Llama::new(case)?;
        Ok(Self {
            targets: targets(&llama.data),
            llama,
        })
    }

    fn cost(&self) -> Cost {
        self.llama.cost()
    }
}

/// Tuning targets: outputs of the block with other codebooks.
fn targets(data: &LlamaData) -> Array3<f32> {
    let mut other = data.clone();
    for kind in quantized(&data.config.blocks[0]) {
        if let LinearWeight::Quantized(matrix) = &mut other.blocks[0].layer_mut(kind).weight {
            matrix.tune(|mut codebooks, _| codebooks.mapv_inplace(|c| 1.1 * c + 0.02));
        }
    }
    let rotary = Rotary::of_model(&data.config, data.x.dim().1);
    let block = other.block(0);
    let mut y = Array3::zeros(data.x.dim());
    for (x, mut y) in data.x.outer_iter().zip(y.outer_iter_mut()) {
        let x = x.mapv(f64::from);
        y.assign(&block_forward(&block, &rotary, x.view()).mapv(|y| y as f32));
    }
    y
}

/// Compares gradients with central differences of the loss sum(W times a fixed pattern). The loss is linear
/// in each codeword and each scale, so central differences have only rounding errors.
fn gradients(check: Against, layer: &str, matrix: &QuantizedMatrix) -> Result<Comparison> {
    let shape = (matrix.out_features(), matrix.in_features());
    let pattern = Array2::from_shape_fn(shape, |(r, c)| ((3 * r + 7 * c) % 11) as f64 - 4.0);
    let loss = |matrix: &QuantizedMatrix| (decode(matrix) * &pattern).sum();
    let (codebooks, scales) = quantized_gradients(matrix, &pattern);
    let step = f64::EPSILON.cbrt();
    let mut pairs = Vec::new();
    let mut add = |gradient: f64, above: QuantizedMatrix, below: QuantizedMatrix| {
        let slope = (loss(&above) - loss(&below)) / (2.0 * step);
        pairs.push((gradient, slope));
    };
    for (at, &gradient) in codebooks.indexed_iter().step_by(3) {
        let moved = |by: f64| {
            let mut moved = matrix.clone();
            moved.tune(|mut codebooks, _| codebooks[at] += by);
            moved
        };
        add(gradient, moved(step), moved(-step));
    }
    for (o, &gradient) in scales.indexed_iter() {
        let moved = |by: f64| {
            let mut moved = matrix.clone();
            moved.tune(|_, mut scales| scales[o] += by);
            moved
        };
        add(gradient, moved(step), moved(-step));
    }
    check.slopes(&format!("codebooks and scales of {layer}"), pairs)
}

/// The largest squared difference between two lists of roots of losses, as a share of the targets' mean
/// square. NaN when their lengths differ. Two empty lists agree.
fn nmse_of_roots(found: &[f64], expected: &[f64], size: f64) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    largest(found.iter().zip(expected).map(|(a, b)| (a - b).powi(2) / size))
}
