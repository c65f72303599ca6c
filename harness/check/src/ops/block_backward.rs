use aqlm_engine::ops::BlockOps as _;
use aqlm_optimized::cpu::llama as optimized;
use aqlm_optimized::cuda::CudaError;
use aqlm_optimized::cuda::training::Precision;
use aqlm_reference::llama::{
    Block, ResidentLinear, ResidentWeight, block_backward, block_forward, block_forward_traced,
};
use aqlm_vocabulary::{AqlmError, BlockSpec, LayerId};
use ndarray::{Array1, Array2, Array3, Axis, s};
use proptest::strategy::BoxedStrategy;

use super::llama::Llama;
use super::{CaseData as _, Op};
use crate::Comparison;
use crate::breakage::{self, Breakage};
use crate::cases::{Case, Kind, Problem, llama as cases, strategy};
use crate::compare::{Against, Findings};
use crate::limits::Measure;
use crate::subject::{Cuda, Subject};
use aqlm_formats::Result;

/// The first block's gradients; those of parameters are summed over sequences.
pub(crate) struct BlockBackward;

impl Op for BlockBackward {
    type Data = Llama;
    type Answer = Gradients;
    type Expected = Gradients;

    const KIND: Kind = Kind::Llama;
    const CORNERS: &'static [&'static str] = cases::CORNERS;

    fn strategy() -> BoxedStrategy<Problem> {
        strategy::llama(70)
    }

    fn ways(machine: &Subject, _data: &Llama) -> Vec<Subject> {
        vec![machine.with(Precision::Single)]
    }

    fn run(subject: &Subject, case: &Llama) -> Result<Gradients> {
        match subject {
            Subject::Reference => Ok(exact(case)),
            Subject::Cpu(_) => on_cpu(case),
            Subject::Cuda(cuda) => on_gpu(case, cuda),
        }
    }

    /// Checks a few parameters of each kind against central differences of sum(y * a fixed gradient).
    fn properties(check: Against, case: &Case) -> Result<Vec<Comparison>> {
        let case = Llama::new(case)?;
        let (problem, data) = (case.problem, &case.data);
        // A few tokens exercise every path.
        let tokens = problem.tokens.min(6);
        let (block, rotary) = case.exact();
        let x = data.x.slice(s![0, ..tokens, ..]).mapv(f64::from);
        let grad_y = data.grad_y.slice(s![0, ..tokens, ..]).mapv(f64::from);
        let (_, trace) = block_forward_traced(&block, &rotary, x.view());
        let exact = block_backward(&block, &rotary, &trace, grad_y.view());
        let inputs = Inputs::new(&block, x);
        let loss = |inputs: &Inputs| -> f64 {
            (block_forward(&inputs.block(), &rotary, inputs.x.view()) * &grad_y).sum()
        };

        let mut pairs = Vec::new();
        let mut add = |gradient: f64, parameter: &dyn Fn(&mut Inputs) -> Option<&mut f64>| {
            let step = f64::EPSILON.cbrt();
            let at = |by: f64| {
                let mut moved = inputs.clone();
                // A missing parameter is a mistake of this check; NaN makes it fail.
                parameter(&mut moved).map_or(f64::NAN, |value| {
                    *value += by;
                    0.0
                }) + loss(&moved)
            };
            // Differences of fourth order, because norms curve where the numbers that they divide are small.
            let near = at(step) - at(-step);
            let far = at(2.0 * step) - at(-2.0 * step);
            pairs.push((gradient, (8.0 * near - far) / (12.0 * step)));
        };
        for t in 0..tokens {
            let i = (7 * t) % problem.hidden;
            add(exact.x[[t, i]], &|inputs| inputs.x.get_mut([t, i]));
        }
        for (which, norm) in exact.norms.iter().enumerate() {
            for i in [0, norm.len() - 1] {
                add(norm[i], &|inputs| inputs.norms[which].get_mut(i));
            }
        }
        for kind in block.spec().layers() {
            let gradient = &exact.layers[kind.index()];
            let (out, columns) = gradient.dim();
            for at in [[0, 0], [out - 1, columns - 1], [out / 2, columns / 3]] {
                add(gradient[at], &|inputs| inputs.weight(kind)?.get_mut(at));
            }
            if let Some(bias) = &exact.biases[kind.index()] {
                add(bias[out / 2], &|inputs| {
                    inputs.layers[kind.index()].bias.as_mut()?.get_mut(out / 2)
                });
            }
        }
        Ok(vec![check.slopes("central differences", pairs)?])
    }

    fn expected(case: &Llama) -> Result<Gradients> {
        Self::run(&Subject::Reference, case)
    }

    fn compare(
        check: Against,
        _subject: &Subject,
        case: &Llama,
        expected: &Gradients,
        found: &Gradients,
    ) -> Result<Findings> {
        let mut comparisons = vec![
            check
                .nmse("gradient of x", &found.x, &expected.x)?
                .shaped(expected.x.shape()),
        ];
        let spec = &case.data.config.blocks[0];
        for kind in spec.layers() {
            let name = spec.linear(kind).short_name();
            let (ours, theirs) = (&found.layers[kind.index()], &expected.layers[kind.index()]);
            let ours: Vec<f64> = ours.iter().copied().collect();
            let what = format!("gradient of {name}");
            comparisons.push(zero_or(check, &what, &ours, theirs.iter())?.shaped(theirs.shape()));
            if let Some(theirs) = &expected.biases[kind.index()] {
                // A missing gradient becomes an empty one; an empty comparison never holds.
                let ours = found.biases[kind.index()]
                    .as_ref()
                    .map_or_else(Vec::new, |bias| bias.to_vec());
                comparisons.push(zero_or(
                    check,
                    &format!("gradient of {name}'s bias"),
                    &ours,
                    theirs,
                )?);
            }
        }
        for ((norm, ours), theirs) in spec.norms.iter().zip(&found.norms).zip(&expected.norms) {
            let what = format!("gradient of {}", norm.name);
            comparisons.push(zero_or(check, &what, &ours.to_vec(), theirs)?);
        }
        let missing = spec.norms.len().abs_diff(found.norms.len());
        comparisons.push(check.value(Measure::Exact, "norms without a gradient", missing as f64)?);
        Ok(comparisons.into())
    }

    fn breakages() -> Vec<Breakage<Llama, Gradients>> {
        vec![
            Breakage::of_answer("a NaN", |found, _, _| {
                found.layers[0][[0, 0]] = f64::NAN;
            }),
            Breakage::of_answer("a result off by a thousandth", |found, _, _| {
                let last = found.layers.len() - 1;
                breakage::inaccurate(&mut found.layers[last]);
            }),
            Breakage::of_answer("a stale accumulator", |found, _, before| {
                breakage::stale(&mut found.norms[0], before.map(|before| &before.norms[0]));
            }),
            Breakage::of_answer("a norm without a gradient", |found, _, _| {
                found.norms.pop();
            }),
        ]
    }
}

/// The gradients of a block.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gradients {
    /// [sequences, tokens, hidden]
    x: Array3<f64>,
    /// [out_features, in_features] each
    layers: Vec<Array2<f64>>,
    /// `[out_features]`, where there is a bias
    biases: Vec<Option<Array1<f64>>>,
    /// in the order of the block's norms
    norms: Vec<Array1<f64>>,
}

/// The reference's gradients, sequence by sequence.
fn exact(case: &Llama) -> Gradients {
    let data = &case.data;
    let (block, rotary) = case.exact();
    let spec = block.spec();
    let mut sum = Gradients {
        x: Array3::zeros(data.x.dim()),
        layers: spec
            .layers()
            .map(|layer| Array2::zeros(spec.shape(layer)))
            .collect(),
        biases: spec
            .layers()
            .map(|kind| {
                block
                    .layer(kind)
                    .bias
                    .as_ref()
                    .map(|bias| Array1::zeros(bias.len()))
            })
            .collect(),
        norms: spec
            .norms
            .iter()
            .map(|norm| Array1::zeros(norm.parameters()))
            .collect(),
    };
    for (i, (x, grad_y)) in data.x.outer_iter().zip(data.grad_y.outer_iter()).enumerate() {
        let (x, grad_y) = (x.mapv(f64::from), grad_y.mapv(f64::from));
        let (_, trace) = block_forward_traced(&block, &rotary, x.view());
        let one = block_backward(&block, &rotary, &trace, grad_y.view());
        sum.x.index_axis_mut(Axis(0), i).assign(&one.x);
        for (sum, layer) in sum.layers.iter_mut().zip(&one.layers) {
            *sum += layer;
        }
        for (sum, bias) in sum.biases.iter_mut().zip(&one.biases) {
            if let (Some(sum), Some(bias)) = (sum, bias) {
                *sum += bias;
            }
        }
        for (sum, norm) in sum.norms.iter_mut().zip(&one.norms) {
            *sum += norm;
        }
    }
    sum
}

fn on_cpu(case: &Llama) -> Result<Gradients> {
    use optimized::{BlockGradients, Rotary, Wanted};
    let data = &case.data;
    let rotary = Rotary::of_model(&data.config, case.problem.tokens);
    let block = case.on_cpu()?.load_block(0, &data.blocks[0])?;
    let wanted = Wanted::all(block.spec());
    let (_, trace) = optimized::block_forward_traced(&block, &rotary, data.x.view());
    let mut sum = BlockGradients::zeros(&block, &wanted);
    let x = optimized::block_backward(&block, &rotary, &trace, data.grad_y.view(), &wanted, &mut sum);
    // A missing gradient becomes an array of shape zero, which no comparison accepts.
    let wide = |weight: &Option<Array2<f32>>| {
        weight
            .as_ref()
            .map_or_else(|| Array2::zeros((0, 0)), |weight| weight.mapv(f64::from))
    };
    Ok(Gradients {
        x: x.map_or_else(|| Array3::zeros((0, 0, 0)), |x| x.mapv(f64::from)),
        layers: sum.weights.iter().map(wide).collect(),
        biases: sum.biases,
        norms: sum.norms,
    })
}

fn on_gpu(case: &Llama, cuda: &Cuda) -> Result<Gradients> {
    use aqlm_optimized::cuda::training::BlockGradient;
    let data = &case.data;
    let backend = case.on_machine(cuda)?;
    let machine = backend.machine();
    let block = backend.load_block(0, &data.blocks[0])?;
    let spec = block.spec();
    let rows = |states: &Array3<f32>| machine.hidden(&states.iter().copied().collect::<Vec<_>>());
    // A missing gradient stays of shape zero, which no comparison accepts.
    let mut found = Gradients {
        x: Array3::zeros((0, 0, 0)),
        layers: spec.layers().map(|_| Array2::zeros((0, 0))).collect(),
        biases: spec.layers().map(|_| None).collect(),
        norms: spec.norms.iter().map(|_| Array1::zeros(0)).collect(),
    };
    let mut run = || -> std::result::Result<(), CudaError> {
        let (precision, weights) = (machine.precision(), block.decoded(machine)?);
        let (_, trace) = machine.forward(precision, &block, &weights, rows(&data.x)?, case.problem.tokens)?;
        let mut sink = |gradient: BlockGradient| {
            match gradient {
                BlockGradient::Weight(layer, weight) => {
                    let values = machine.device().download(&weight)?;
                    let values = values.into_iter().map(f64::from).collect();
                    if let Ok(weight) = Array2::from_shape_vec(spec.shape(layer), values) {
                        found.layers[layer.index()] = weight;
                    }
                }
                BlockGradient::Bias(layer, sums) => {
                    found.biases[layer.index()] = Some(Array1::from(machine.sums(&sums)?));
                }
                BlockGradient::Norm(which, sums) => found.norms[which] = Array1::from(machine.sums(&sums)?),
            }
            Ok(())
        };
        let (grad_y, wanted) = (rows(&data.grad_y)?, optimized::Wanted::all(spec));
        let x = machine.backward(precision, &block, &weights, &trace, grad_y, &wanted, &mut sink)?;
        if let Some(x) = x {
            let values = machine
                .device()
                .download(&x)?
                .into_iter()
                .map(f64::from)
                .collect();
            if let Ok(x) = Array3::from_shape_vec(data.x.dim(), values) {
                found.x = x;
            }
        }
        Ok(())
    };
    run().map_err(AqlmError::from)?;
    Ok(found)
}

/// All inputs of a block's output, in f64, for one short sequence.
#[derive(Clone)]
struct Inputs {
    spec: BlockSpec,
    x: Array2<f64>,
    norms: Vec<Array1<f64>>,
    layers: Vec<ResidentLinear>,
}

impl Inputs {
    fn new(block: &Block, x: Array2<f64>) -> Self {
        Self {
            spec: block.spec().clone(),
            x,
            norms: block.norms.clone(),
            layers: block
                .spec()
                .layers()
                .map(|layer| ResidentLinear {
                    weight: ResidentWeight::Dense(block.weight(layer).clone()),
                    bias: block.layer(layer).bias.clone(),
                })
                .collect(),
        }
    }

    fn block(&self) -> Block {
        Block::new(&self.spec, self.norms.clone(), self.layers.clone()).expect("the parts of a block")
    }

    fn weight(&mut self, layer: LayerId) -> Option<&mut Array2<f64>> {
        match &mut self.layers[layer.index()].weight {
            ResidentWeight::Dense(weight) => Some(weight),
            ResidentWeight::Quantized { .. } => None,
        }
    }
}

/// NMSE, except that a gradient which is mathematically zero must be exactly zero. With a window of one
/// token, queries and keys have no influence, because softmax over one score is one.
pub(super) fn zero_or<'a>(
    check: Against,
    what: &str,
    found: &'a [f64],
    expected: impl IntoIterator<Item = &'a f64> + Clone,
) -> Result<Comparison> {
    let size: f64 = expected.clone().into_iter().map(|x| x * x).sum();
    let count = expected.clone().into_iter().count();
    if size > 0.0 || found.len() != count {
        return check.nmse(what, found, expected);
    }
    let nonzero = found.iter().filter(|&&x| x != 0.0).count();
    check.value(Measure::Exact, what, nonzero as f64)
}
