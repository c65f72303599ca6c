use aqlm_reference::llama::{
    Block, BlockGradients, ResidentLinear, ResidentWeight, block_backward, block_forward,
    block_forward_traced,
};
use aqlm_vocabulary::{BlockSpec, LayerId};
use ndarray::{Array1, Array2, s};

use super::Prepared;
use super::block_forward::parts;
use crate::Comparison;
use crate::cases::{Case, LlamaData, Operation};
use crate::compare::{Against, Findings, repeated};
use crate::limits::{Measure, Number};
use crate::subject::Subject;
use aqlm_formats::Result;

fn against(number: Number) -> Against {
    Against {
        operation: Operation::BlockBackward,
        number,
    }
}

/// The gradients of every sequence.
fn reference(data: &LlamaData) -> Vec<BlockGradients> {
    let (block, rotary) = parts(data);
    let (x, grad_y) = (data.x.mapv(f64::from), data.grad_y.mapv(f64::from));
    x.outer_iter()
        .zip(grad_y.outer_iter())
        .map(|(x, grad_y)| {
            let (_, trace) = block_forward_traced(&block, &rotary, x);
            block_backward(&block, &rotary, &trace, grad_y)
        })
        .collect()
}

/// Everything that a block's output depends on, in f64, for one short sequence.
#[derive(Clone)]
struct Inputs {
    spec: BlockSpec,
    x: Array2<f64>,
    norms: [Array1<f64>; 2],
    layers: Vec<ResidentLinear>,
}

impl Inputs {
    fn new(block: &Block, x: Array2<f64>) -> Self {
        Self {
            spec: block.spec().clone(),
            x,
            norms: [
                block.input_layernorm.clone(),
                block.post_attention_layernorm.clone(),
            ],
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
        let [first, second] = self.norms.clone();
        Block::new(&self.spec, first, second, self.layers.clone()).expect("the parts of a block")
    }

    fn weight(&mut self, layer: LayerId) -> Option<&mut Array2<f64>> {
        match &mut self.layers[layer.index()].weight {
            ResidentWeight::Dense(weight) => Some(weight),
            ResidentWeight::Quantized { .. } => None,
        }
    }
}

/// A few parameters of each kind against central differences of the sum of y times a fixed gradient.
pub(super) fn properties(case: &Case) -> Result<Vec<Comparison>> {
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    // Few tokens are enough for every path.
    let tokens = problem.tokens.min(6);
    let (block, rotary) = parts(&data);
    let x = data.x.slice(s![0, ..tokens, ..]).mapv(f64::from);
    let grad_y = data.grad_y.slice(s![0, ..tokens, ..]).mapv(f64::from);
    let (_, trace) = block_forward_traced(&block, &rotary, x.view());
    let exact = block_backward(&block, &rotary, &trace, grad_y.view());
    let inputs = Inputs::new(&block, x);
    let loss = |inputs: &Inputs| -> f64 {
        (block_forward(&inputs.block(), &rotary, inputs.x.view()) * &grad_y).sum()
    };

    let (mut difference, mut size) = (0.0, 0.0);
    let mut add = |gradient: f64, parameter: &dyn Fn(&mut Inputs) -> Option<&mut f64>| {
        let step = f64::EPSILON.cbrt();
        let at = |by: f64| {
            let mut moved = inputs.clone();
            // What is not there is a mistake of this check, and fails it.
            parameter(&mut moved).map_or(f64::NAN, |value| {
                *value += by;
                0.0
            }) + loss(&moved)
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        difference += (gradient - slope).powi(2);
        size += gradient * gradient;
    };
    for t in 0..tokens {
        let i = (7 * t) % problem.hidden;
        add(exact.x[[t, i]], &|inputs| inputs.x.get_mut([t, i]));
    }
    for i in [0, problem.hidden - 1] {
        add(exact.input_layernorm[i], &|inputs| inputs.norms[0].get_mut(i));
        add(exact.post_attention_layernorm[i], &|inputs| {
            inputs.norms[1].get_mut(i)
        });
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
    let share = (difference / size).sqrt();
    let what = "central differences";
    Ok(vec![against(Number::F64).value(
        Measure::Gradient,
        problem.terms(),
        what,
        share,
    )?])
}

pub(super) fn prepare(case: &Case) -> Result<Prepared> {
    let problem = case.llama()?;
    let data = problem.data(case.seed);
    let every = reference(&data);
    let x: Vec<f64> = every.iter().flat_map(|one| one.x.iter().copied()).collect();
    let mut sum = every[0].clone();
    for one in &every[1..] {
        for (sum, layer) in sum.layers.iter_mut().zip(&one.layers) {
            *sum += layer;
        }
        for (sum, bias) in sum.biases.iter_mut().zip(&one.biases) {
            if let (Some(sum), Some(bias)) = (sum, bias) {
                *sum += bias;
            }
        }
        sum.input_layernorm += &one.input_layernorm;
        sum.post_attention_layernorm += &one.post_attention_layernorm;
    }
    // back through the sums of the forward pass, and then over all rows
    let terms = 2 * problem.terms() + problem.sequences * problem.tokens;
    Ok(Box::new(move |subject: &dyn Subject| {
        let check = against(subject.number());
        let (found, same) = repeated(check, "gradients", || subject.block_backward(&data))?;
        let mut comparisons = vec![same, check.nmse(terms, "gradient of x", &found.x, &x)?];
        for kind in data.config.blocks[0].layers() {
            let name = data.config.blocks[0].linear(kind).short_name();
            let (ours, exact) = (found.layers.get(kind.index()), &sum.layers[kind.index()]);
            let ours = ours
                .map(|layer| layer.iter().copied().collect())
                .unwrap_or_default();
            let ours: Vec<f64> = ours;
            comparisons.push(zero_or(
                check,
                terms,
                &format!("gradient of {name}"),
                &ours,
                exact.iter(),
            )?);
            if let Some(exact) = &sum.biases[kind.index()] {
                let ours = found
                    .biases
                    .get(kind.index())
                    .cloned()
                    .flatten()
                    .unwrap_or_default()
                    .to_vec();
                comparisons.push(zero_or(
                    check,
                    terms,
                    &format!("gradient of {name}'s bias"),
                    &ours,
                    exact,
                )?);
            }
        }
        for (what, ours, exact) in [
            (
                "gradient of the first norm",
                &found.norms[0],
                &sum.input_layernorm,
            ),
            (
                "gradient of the second norm",
                &found.norms[1],
                &sum.post_attention_layernorm,
            ),
        ] {
            comparisons.push(check.nmse(terms, what, ours, exact)?);
        }
        Ok(Findings {
            comparisons,
            excess: None,
        })
    }))
}

/// NMSE, except that a gradient which is zero by the mathematics must be so: queries and keys of a window of
/// one token have no influence, for softmax over one score is one.
fn zero_or<'a>(
    check: Against,
    terms: usize,
    what: &str,
    found: &'a [f64],
    expected: impl IntoIterator<Item = &'a f64> + Clone,
) -> Result<Comparison> {
    let size: f64 = expected.clone().into_iter().map(|x| x * x).sum();
    let count = expected.clone().into_iter().count();
    if size > 0.0 || found.len() != count {
        return check.nmse(terms, what, found, expected);
    }
    let nonzero = found.iter().filter(|&&x| x != 0.0).count();
    check.value(Measure::Exact, 0, what, nonzero as f64)
}
