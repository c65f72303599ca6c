use aqlm_vocabulary::{
    AqlmError, FinetuneEvent, FinetuneReport, FinetuneSettings, LayerId, Purpose, Result, StreamKey, shuffle,
};
use ndarray::{Array3, ArrayView3, Zip};
use rayon::prelude::*;

use super::forward::sequences_at_once;
use super::{Block, BlockGradients, Rotary, Sequences, Wanted, block_backward, block_forward_traced};
use crate::cpu::adam::{Adam, Moments};
use crate::cpu::quantizer::{Places, quantized_gradients};
use crate::cpu::vectorize::squared_distance;

/// Tunes the codebooks, scales and norms of a block on the outputs that it should have (paper section 3.4,
/// algorithm 1 lines 15 to 22); codes, biases and dense layers stay.
///
/// Adam on the mean squared error per output element, minibatches of `settings.batch` sequences in an order
/// that `key` decides anew each epoch. `inputs` and `targets` are [sequences, tokens, hidden]; the last
/// `validation` sequences are not trained on but judge the state after each epoch. Without any, the training
/// sequences judge. Tuning stops after `settings.patience` epochs in a row that did not improve on the best
/// (0 counts as 1), and the block is left in the best state, which may be the one that it came in.
///
/// Activations and their gradients are f32; parameters, their gradients and moments, and losses are f64.
///
/// # Errors
/// `Shape` when inputs and targets do not match each other, the block or the rotary tables; `Unsupported`
/// when no sequence is left to train on or the batch size is 0; `NotFinite` when a loss is NaN or infinite.
/// The block is in the best state so far after an error, too.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments of the reference, one by one"
)]
pub fn block_finetune<S: Sequences>(
    block: &mut Block,
    rotary: &Rotary,
    inputs: &S,
    targets: &S,
    validation: usize,
    settings: &FinetuneSettings,
    key: StreamKey,
    observe: &mut dyn FnMut(FinetuneEvent),
) -> std::result::Result<FinetuneReport, S::Error> {
    let hidden_size = block.spec().hidden_size();
    check(
        hidden_size,
        rotary,
        inputs.dim(),
        targets.dim(),
        validation,
        settings,
    )?;
    let sequences = inputs.dim().0;
    let training = sequences - validation;
    let pass = Pass {
        rotary,
        inputs,
        targets,
    };
    let judges: Vec<usize> = if validation > 0 {
        (training..sequences).collect()
    } else {
        (0..training).collect()
    };

    let loss_before = finite(pass.loss(block, &judges)?, "loss before fine-tuning", 0)?;
    let mut report = FinetuneReport {
        loss_before,
        loss_after: loss_before,
        train_losses: Vec::new(),
        validation_losses: Vec::new(),
        best_epoch: 0,
    };
    let mut current = block.clone();
    let mut optimizer = Optimizer::new(&current, settings);
    let mut rng = key.stream(Purpose::Minibatches);
    let epochs = if optimizer.is_idle() { 0 } else { settings.epochs };
    for epoch in 1..=epochs {
        let mut order: Vec<usize> = (0..training).collect();
        shuffle(&mut rng, &mut order);
        let steps = training.div_ceil(settings.batch);
        let mut total = 0.0;
        for (step, batch) in order.chunks(settings.batch).enumerate() {
            let (loss, gradients) = pass.gradients(&current, batch, &optimizer.wanted)?;
            let loss = finite(loss, "loss of a fine-tuning step", epoch)?;
            total += loss * batch.len() as f64;
            optimizer.step(&mut current, &gradients);
            observe(FinetuneEvent::Step {
                epoch,
                step: step + 1,
                steps,
                loss,
            });
        }
        let train_loss = total / training as f64;
        let judged = finite(
            pass.loss(&current, &judges)?,
            "loss after a fine-tuning epoch",
            epoch,
        )?;
        let validation_loss = (validation > 0).then_some(judged);
        report.train_losses.push(train_loss);
        report.validation_losses.extend(validation_loss);
        observe(FinetuneEvent::Epoch {
            epoch,
            train_loss,
            validation_loss,
        });
        if judged < report.loss_after {
            report.loss_after = judged;
            report.best_epoch = epoch;
            block.clone_from(&current);
        } else if epoch - report.best_epoch >= settings.patience {
            break;
        }
    }
    Ok(report)
}

/// Refuses what [`block_finetune`] says it refuses.
fn check(
    hidden_size: usize,
    rotary: &Rotary,
    inputs: (usize, usize, usize),
    targets: (usize, usize, usize),
    validation: usize,
    settings: &FinetuneSettings,
) -> Result<()> {
    let (sequences, tokens, _) = inputs;
    let expected = [sequences, tokens.min(rotary.positions()), hidden_size];
    for (what, found) in [
        ("fine-tuning inputs", <[usize; 3]>::from(inputs)),
        ("fine-tuning targets", targets.into()),
    ] {
        if found != expected {
            return Err(AqlmError::Shape {
                what: what.into(),
                expected: expected.to_vec(),
                found: found.to_vec(),
            });
        }
    }
    if validation >= sequences {
        return Err(AqlmError::Unsupported(format!(
            "fine-tuning with {validation} of {sequences} sequences for validation: none is left to train on"
        )));
    }
    if settings.batch == 0 {
        return Err(AqlmError::Unsupported(
            "fine-tuning with batches of 0 sequences".into(),
        ));
    }
    Ok(())
}

fn finite(loss: f64, what: &str, epoch: usize) -> Result<f64> {
    if loss.is_finite() {
        Ok(loss)
    } else {
        Err(AqlmError::NotFinite {
            what: what.into(),
            index: vec![epoch],
            value: loss,
        })
    }
}

/// What a pass over some of the sequences needs.
struct Pass<'a, S> {
    rotary: &'a Rotary,
    inputs: &'a S,
    targets: &'a S,
}

impl<S: Sequences> Pass<'_, S> {
    /// Output elements of so many sequences.
    fn elements(&self, sequences: usize) -> f64 {
        let (_, tokens, hidden) = self.targets.dim();
        (sequences * tokens * hidden) as f64
    }

    /// Sequences that go through the block together.
    fn at_once(&self) -> usize {
        sequences_at_once(self.inputs.dim().1)
    }

    /// Mean squared error per output element over these sequences.
    fn loss(&self, block: &Block, sequences: &[usize]) -> std::result::Result<f64, S::Error> {
        let mut squares = 0.0;
        for part in sequences.chunks(self.at_once()) {
            let x = self.inputs.read(part)?;
            let (y, _) = block_forward_traced(block, self.rotary, x.view());
            drop(x);
            squares += summed_squares(&y, self.targets.read(part)?.view());
        }
        Ok(squares / self.elements(sequences.len()))
    }

    /// [`Pass::loss`] and its gradients with respect to the block's parameters.
    fn gradients(
        &self,
        block: &Block,
        sequences: &[usize],
        wanted: &Wanted,
    ) -> std::result::Result<(f64, BlockGradients), S::Error> {
        let elements = self.elements(sequences.len());
        let mut squares = 0.0;
        let mut sum = BlockGradients::zeros(block, wanted);
        for part in sequences.chunks(self.at_once()) {
            let x = self.inputs.read(part)?;
            let (mut y, trace) = block_forward_traced(block, self.rotary, x.view());
            drop(x);
            let targets = self.targets.read(part)?;
            squares += summed_squares(&y, targets.view());
            let factor = (2.0 / elements) as f32;
            Zip::from(&mut y)
                .and(&targets)
                .par_for_each(|y, target| *y = factor * (*y - target));
            drop(targets);
            block_backward(block, self.rotary, &trace, y.view(), wanted, &mut sum);
        }
        Ok((squares / elements, sum))
    }
}

/// Sum of the squared differences of outputs and targets.
fn summed_squares(y: &Array3<f32>, targets: ArrayView3<'_, f32>) -> f64 {
    let parts: Vec<f64> = y
        .outer_iter()
        .into_par_iter()
        .zip(targets.outer_iter())
        .map(|(y, target)| {
            let target = target.as_standard_layout();
            squared_distance(
                y.to_slice().unwrap_or_default(),
                target.as_slice().unwrap_or_default(),
            )
        })
        .collect();
    parts.iter().sum()
}

/// What is trained of one quantized layer.
struct TunedLayer {
    layer: LayerId,
    places: Places,
    codebooks: Option<Moments>,
    scales: Option<Moments>,
}

/// Adam over everything that the settings train.
struct Optimizer {
    adam: Adam,
    layers: Vec<TunedLayer>,
    /// of the first and the second norm, with the weights in f64
    norms: Option<[(Moments, Vec<f64>); 2]>,
    wanted: Wanted,
}

impl Optimizer {
    fn new(block: &Block, settings: &FinetuneSettings) -> Self {
        let of_layer = |layer: LayerId| {
            let matrix = block.quantized(layer)?.matrix();
            (settings.codebooks || settings.scales).then(|| TunedLayer {
                layer,
                places: Places::of(matrix),
                codebooks: settings.codebooks.then(|| Moments::new(matrix.codebooks.len())),
                scales: settings.scales.then(|| Moments::new(matrix.scales.len())),
            })
        };
        let layers: Vec<TunedLayer> = block.spec().layers().filter_map(of_layer).collect();
        let of_norm = |weight: &ndarray::Array1<f32>| {
            (
                Moments::new(weight.len()),
                weight.iter().map(|&w| f64::from(w)).collect(),
            )
        };
        let mut wanted = Wanted {
            x: false,
            weights: vec![false; block.spec().linears.len()],
            biases: false,
            norms: settings.norms,
        };
        for layer in &layers {
            wanted.weights[layer.layer.index()] = true;
        }
        Self {
            adam: Adam {
                lr: settings.lr,
                beta1: settings.beta1,
                beta2: settings.beta2,
                eps: settings.eps,
                amsgrad: false,
            },
            layers,
            norms: settings.norms.then(|| {
                [
                    of_norm(&block.input_layernorm),
                    of_norm(&block.post_attention_layernorm),
                ]
            }),
            wanted,
        }
    }

    /// Whether there is nothing to train.
    fn is_idle(&self) -> bool {
        self.norms.is_none() && self.layers.is_empty()
    }

    fn step(&mut self, block: &mut Block, gradients: &BlockGradients) {
        let adam = self.adam;
        for layer in &mut self.layers {
            let (Some(quantized), Some(gradient)) = (
                block.quantized_mut(layer.layer),
                &gradients.weights[layer.layer.index()],
            ) else {
                continue;
            };
            let (grad_codebooks, grad_scales) =
                quantized_gradients(quantized.matrix(), &layer.places, quantized.decoded(), gradient);
            quantized.tune(|matrix| {
                if let Some(moments) = &mut layer.codebooks {
                    adam.step(moments, matrix.codebooks.iter_mut(), grad_codebooks.iter());
                }
                if let Some(moments) = &mut layer.scales {
                    adam.step(moments, matrix.scales.iter_mut(), grad_scales.iter());
                }
            });
        }
        if let Some(norms) = &mut self.norms {
            let parts = [
                (&mut block.input_layernorm, &gradients.input_layernorm),
                (
                    &mut block.post_attention_layernorm,
                    &gradients.post_attention_layernorm,
                ),
            ];
            for ((moments, exact), (weight, gradient)) in norms.iter_mut().zip(parts) {
                adam.step(moments, exact.iter_mut(), gradient.iter());
                for (weight, exact) in weight.iter_mut().zip(exact) {
                    *weight = *exact as f32;
                }
            }
        }
    }
}
