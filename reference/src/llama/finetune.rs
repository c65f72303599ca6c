use ndarray::{Array1, Array2};
use rayon::prelude::*;

use super::{
    Block, BlockGradients, Rotary, block_backward, block_forward, block_forward_traced, quantized_gradients,
};
use crate::adam::Moments;
use aqlm_vocabulary::{
    AdamDecay, AqlmError, BlockTraining, FinetuneEvent, FinetuneReport, FinetuneSettings, LayerId, PartSums,
    Purpose, QuantizedMatrix, Result, StreamKey, Tuned, shuffle,
};

/// Tunes the codebooks, scales and norms of a block on target outputs (paper section 3.4, algorithm 1 lines
/// 15 to 22). Codes, biases and dense layers stay fixed.
///
/// Adam minimises the mean squared error per output element, over minibatches of `settings.batch` sequences.
/// `key` decides a new order in each epoch. `inputs` and `targets` are sequences of [tokens, hidden]. The
/// last `validation` of them are not trained on; they judge the state after each epoch. Without any, the
/// training sequences judge. Tuning stops after `settings.patience` consecutive epochs without a new best
/// state (0 counts as 1). The block ends in the best state, possibly its initial one.
///
/// Sums over sequences follow the order of the minibatch for any number of threads.
///
/// # Errors
/// `Shape` when inputs and targets do not match each other, the block or the rotary tables. `Argument` when
/// no sequence is left to train on or the batch size is 0. `NotFinite` when a loss is NaN or infinite. After
/// an error, too, the block is in the best state so far.
#[allow(clippy::too_many_arguments, reason = "a block, its data and how to tune it")]
pub fn block_finetune(
    block: &mut Block,
    rotary: &Rotary,
    inputs: &[Array2<f64>],
    targets: &[Array2<f64>],
    validation: usize,
    settings: &FinetuneSettings,
    key: StreamKey,
    observe: &mut dyn FnMut(FinetuneEvent),
) -> Result<FinetuneReport> {
    check(
        block.spec().hidden_size(),
        rotary,
        inputs,
        targets,
        validation,
        settings,
    )?;
    let training = inputs.len() - validation;
    let judges: Vec<usize> = if validation > 0 {
        (training..inputs.len()).collect()
    } else {
        (0..training).collect()
    };
    let mut tuner = BlockTuner::new(block, settings.into(), settings.decay());
    // Number of output elements of these sequences.
    let elements = |sequences: &[usize]| sequences.iter().map(|&n| targets[n].len()).sum::<usize>() as f64;
    let judge = |tuner: &BlockTuner| {
        let squares = tuner.losses(rotary, inputs, targets, &judges)?;
        Ok::<f64, AqlmError>(squares.iter().sum::<f64>() / elements(&judges))
    };

    let loss_before = finite(judge(&tuner)?, "loss before fine-tuning", 0)?;
    let mut report = FinetuneReport {
        loss_before,
        loss_after: loss_before,
        train_losses: Vec::new(),
        validation_losses: Vec::new(),
        best_epoch: 0,
    };
    let mut rng = key.stream(Purpose::Minibatches);
    let epochs = if tuner.is_idle() { 0 } else { settings.epochs };
    for epoch in 1..=epochs {
        let mut order: Vec<usize> = (0..training).collect();
        shuffle(&mut rng, &mut order);
        let steps = training.div_ceil(settings.batch);
        let mut total = 0.0;
        for (step, batch) in order.chunks(settings.batch).enumerate() {
            let scale = 1.0 / elements(batch);
            let squares = tuner.accumulate(rotary, inputs, targets, batch, scale)?;
            let squares: f64 = squares.iter().sum();
            let loss = finite(squares / elements(batch), "loss of a fine-tuning step", epoch)?;
            total += squares;
            tuner.step(settings.lr);
            observe(FinetuneEvent::Step {
                epoch,
                step: step + 1,
                steps,
                loss,
            });
        }
        let train_loss = total / elements(&order);
        let judged = finite(judge(&tuner)?, "loss after a fine-tuning epoch", epoch)?;
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
            block.clone_from(tuner.block());
        } else if epoch - report.best_epoch >= settings.patience {
            break;
        }
    }
    Ok(report)
}

/// Checks the conditions listed under [`block_finetune`]'s errors.
fn check(
    hidden_size: usize,
    rotary: &Rotary,
    inputs: &[Array2<f64>],
    targets: &[Array2<f64>],
    validation: usize,
    settings: &FinetuneSettings,
) -> Result<()> {
    check_data(hidden_size, rotary, inputs, targets)?;
    if validation >= inputs.len() {
        return Err(AqlmError::argument(
            "sequences for validation",
            format!("fewer than the {} there are", inputs.len()),
            validation,
        ));
    }
    if settings.batch == 0 {
        return Err(AqlmError::argument("batch", "at least 1 sequence", 0));
    }
    Ok(())
}

/// Rejects inputs and targets that do not match each other, the block or the rotary tables.
fn check_data(
    hidden_size: usize,
    rotary: &Rotary,
    inputs: &[Array2<f64>],
    targets: &[Array2<f64>],
) -> Result<()> {
    let shape = |what: String, expected: &[usize], found: &[usize]| {
        if expected == found {
            Ok(())
        } else {
            Err(AqlmError::Shape {
                what,
                expected: expected.to_vec(),
                found: found.to_vec(),
            })
        }
    };
    shape("fine-tuning targets".into(), &[inputs.len()], &[targets.len()])?;
    for (n, (input, target)) in inputs.iter().zip(targets).enumerate() {
        let tokens = input.nrows().min(rotary.positions());
        shape(
            format!("fine-tuning input {n}"),
            &[tokens, hidden_size],
            input.shape(),
        )?;
        shape(format!("fine-tuning target {n}"), input.shape(), target.shape())?;
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

/// A block whose codebooks, scales and norms are being trained on target outputs. Codes, biases and dense
/// layers stay fixed.
///
/// [`BlockTuner::accumulate`] adds up gradients, sequence by sequence, until [`BlockTraining::step`] uses
/// them.
#[derive(Debug, Clone)]
pub struct BlockTuner {
    block: Block,
    optimizer: Optimizer,
    sums: ParameterGradients,
}

impl BlockTuner {
    /// The tuner before the first step; trains those parameters of `tuned` that a block has.
    pub fn new(block: &Block, tuned: Tuned, decay: AdamDecay) -> Self {
        Self {
            block: block.clone(),
            optimizer: Optimizer::new(block, tuned, decay),
            sums: ParameterGradients::zeros(block),
        }
    }

    /// Squared error of the block's output for each of these sequences, summed over output elements.
    ///
    /// # Errors
    /// `Shape` when inputs and targets do not match each other, the block or the rotary tables.
    pub fn losses(
        &self,
        rotary: &Rotary,
        inputs: &[Array2<f64>],
        targets: &[Array2<f64>],
        sequences: &[usize],
    ) -> Result<Vec<f64>> {
        check_data(self.block.spec().hidden_size(), rotary, inputs, targets)?;
        let squares = sequences.par_iter().map(|&n| {
            let y = block_forward(&self.block, rotary, inputs[n].view());
            sum_of_squares(&(y - &targets[n]))
        });
        Ok(squares.collect())
    }

    /// Returns [`BlockTuner::losses`] and adds `scale` times their gradients to the sums.
    ///
    /// # Errors
    /// As [`BlockTuner::losses`].
    pub fn accumulate(
        &mut self,
        rotary: &Rotary,
        inputs: &[Array2<f64>],
        targets: &[Array2<f64>],
        sequences: &[usize],
        scale: f64,
    ) -> Result<Vec<f64>> {
        check_data(self.block.spec().hidden_size(), rotary, inputs, targets)?;
        let block = &self.block;
        let one = |&n: &usize| {
            let (y, trace) = block_forward_traced(block, rotary, inputs[n].view());
            let error = y - &targets[n];
            let grad_y = 2.0 * scale * &error;
            let gradients = block_backward(block, rotary, &trace, grad_y.view());
            (sum_of_squares(&error), gradients)
        };
        let mut losses = Vec::with_capacity(sequences.len());
        // A few sequences per thread at a time bound the memory. The sums keep the order of the sequences.
        for wave in sequences.chunks(2 * rayon::current_num_threads()) {
            let (squares, gradients): (Vec<f64>, Vec<BlockGradients>) = wave.par_iter().map(one).unzip();
            losses.extend(squares);
            self.sums.add(&gradients);
        }
        Ok(losses)
    }
}

impl PartSums for BlockTuner {
    fn take(&mut self) -> Vec<f64> {
        let zeros = ParameterGradients::zeros(&self.block);
        let sums = std::mem::replace(&mut self.sums, zeros);
        let layers = sums.layers.into_iter().flatten();
        layers.chain(sums.norms.into_iter().flatten()).collect()
    }

    fn add(&mut self, sums: &[f64]) -> Result<()> {
        let layers = self.sums.layers.iter_mut().flatten();
        let norms = self.sums.norms.iter_mut().flatten();
        let to: Vec<&mut f64> = layers.chain(norms).collect();
        if to.len() != sums.len() {
            return Err(AqlmError::Shape {
                what: "sums of gradients".into(),
                expected: vec![to.len()],
                found: vec![sums.len()],
            });
        }
        for (to, part) in to.into_iter().zip(sums) {
            *to += part;
        }
        Ok(())
    }
}

impl BlockTraining for BlockTuner {
    type Block = Block;

    fn is_idle(&self) -> bool {
        self.optimizer.is_idle()
    }

    fn block(&self) -> &Block {
        &self.block
    }

    fn step(&mut self, lr: f64) {
        let zeros = ParameterGradients::zeros(&self.block);
        let gradients = std::mem::replace(&mut self.sums, zeros);
        self.optimizer.step(&mut self.block, &gradients, lr);
    }
}

/// Gradients of a loss over several sequences.
#[derive(Debug, Clone)]
struct ParameterGradients {
    /// with respect to the decoded weights, in the order of the spec
    layers: Vec<Array2<f64>>,
    /// with respect to the norms' weights, in the order of the spec
    norms: Vec<Array1<f64>>,
}

impl ParameterGradients {
    fn zeros(block: &Block) -> Self {
        Self {
            layers: block
                .spec()
                .layers()
                .map(|layer| Array2::zeros(block.weight(layer).dim()))
                .collect(),
            norms: block.norms.iter().map(|norm| Array1::zeros(norm.len())).collect(),
        }
    }

    /// Adds the gradients of single sequences, one after the other.
    fn add(&mut self, parts: &[BlockGradients]) {
        self.layers.par_iter_mut().enumerate().for_each(|(i, sum)| {
            for part in parts {
                *sum += &part.layers[i];
            }
        });
        for part in parts {
            for (sum, norm) in self.norms.iter_mut().zip(&part.norms) {
                *sum += norm;
            }
        }
    }
}

/// Adam's state for all trained parameters.
#[derive(Debug, Clone)]
struct Optimizer {
    decay: AdamDecay,
    /// for each quantized layer, in the order of the spec
    codebooks: Vec<Option<Moments>>,
    /// for each quantized layer, in the order of the spec
    scales: Vec<Option<Moments>>,
    /// for each norm, in the order of the spec
    norms: Option<Vec<Moments>>,
}

impl Optimizer {
    fn new(block: &Block, tuned: Tuned, decay: AdamDecay) -> Self {
        let moments = |wanted: bool, len: fn(&QuantizedMatrix) -> usize| {
            let of_layer = |layer| {
                let matrix = block.quantized(layer).filter(|_| wanted);
                matrix.map(|matrix| Moments::new(len(matrix)))
            };
            block.spec().layers().map(of_layer).collect::<Vec<_>>()
        };
        let of_norms = || block.norms.iter().map(|norm| Moments::new(norm.len())).collect();
        Self {
            decay,
            codebooks: moments(tuned.codebooks, |matrix| matrix.codebooks().len()),
            scales: moments(tuned.scales, |matrix| matrix.scales().len()),
            norms: tuned.norms.then(of_norms),
        }
    }

    /// Whether no parameter is trained.
    fn is_idle(&self) -> bool {
        self.norms.is_none() && self.codebooks.iter().chain(&self.scales).all(Option::is_none)
    }

    fn step(&mut self, block: &mut Block, gradients: &ParameterGradients, lr: f64) {
        let adam = &self.decay.at(lr);
        let layers: Vec<LayerId> = block.spec().layers().collect();
        let layer_gradients: Vec<_> = layers
            .par_iter()
            .map(|&layer| {
                let matrix = block.quantized(layer)?;
                Some(quantized_gradients(matrix, &gradients.layers[layer.index()]))
            })
            .collect();
        for (layer, gradients) in layers.into_iter().zip(layer_gradients) {
            let Some((grad_codebooks, grad_scales)) = gradients else {
                continue;
            };
            block.tune(layer, |codebooks, scales| {
                if let Some(moments) = &mut self.codebooks[layer.index()] {
                    moments.step(adam, codebooks, &grad_codebooks);
                }
                if let Some(moments) = &mut self.scales[layer.index()] {
                    moments.step(adam, scales, &grad_scales);
                }
            });
        }
        let of_norms = block.norms.iter_mut().zip(&gradients.norms);
        for (moments, (norm, gradient)) in self.norms.iter_mut().flatten().zip(of_norms) {
            moments.step(adam, norm.view_mut(), gradient);
        }
    }
}

fn sum_of_squares(values: &Array2<f64>) -> f64 {
    values.iter().map(|value| value * value).sum()
}

#[cfg(test)]
mod tests {
    use rayon::ThreadPoolBuilder;

    use super::*;
    use crate::llama::test_data::{block, config, normal, quantized, random};
    use aqlm_vocabulary::llama::{DOWN, OUTPUT, QUERY};

    const KEY: StreamKey = StreamKey {
        seed: 5,
        block: 1,
        layer: None,
    };

    const SETTINGS: FinetuneSettings = FinetuneSettings {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        epochs: 6,
        batch: 2,
        patience: 3,
        codebooks: true,
        scales: true,
        norms: true,
    };

    /// A block to tune, and its target outputs.
    struct Problem {
        rotary: Rotary,
        block: Block,
        inputs: Vec<Array2<f64>>,
        targets: Vec<Array2<f64>>,
    }

    impl Problem {
        /// A block with three quantized layers, and seven sequences of four to six tokens. Its codebooks,
        /// scales and norms differ from those that produced the targets.
        fn new() -> Self {
            let mut rng = random(8);
            let config = config(2, None);
            let mut original = block(&mut rng, &config, true);
            for kind in [QUERY, OUTPUT, DOWN] {
                let (out, inputs) = config.shape(kind);
                original
                    .set_layer(kind, quantized(&mut rng, out, inputs))
                    .unwrap();
            }
            let rotary = Rotary::new(&config.attention, 6);
            let inputs: Vec<Array2<f64>> = (0..7).map(|n| normal(&mut rng, (4 + n % 3, 12))).collect();
            let targets = inputs
                .iter()
                .map(|x| block_forward(&original, &rotary, x.view()))
                .collect();
            let mut moved = original;
            moved.norms[0] += &(0.1 * normal(&mut rng, 12));
            for kind in config.layers() {
                moved.tune(kind, |mut codebooks, mut scales| {
                    codebooks += &(0.1 * normal(&mut rng, codebooks.dim()));
                    scales *= 1.1;
                });
            }
            Self {
                rotary,
                block: moved,
                inputs,
                targets,
            }
        }

        fn loss(&self, block: &Block, sequences: std::ops::Range<usize>) -> f64 {
            let squares: f64 = sequences
                .clone()
                .map(|n| {
                    let y = block_forward(block, &self.rotary, self.inputs[n].view());
                    sum_of_squares(&(y - &self.targets[n]))
                })
                .sum();
            squares / sequences.map(|n| self.targets[n].len()).sum::<usize>() as f64
        }

        /// Tunes a copy of the block.
        fn tune(
            &self,
            validation: usize,
            settings: &FinetuneSettings,
        ) -> (Block, Result<FinetuneReport>, Vec<FinetuneEvent>) {
            let mut block = self.block.clone();
            let mut events = Vec::new();
            let report = block_finetune(
                &mut block,
                &self.rotary,
                &self.inputs,
                &self.targets,
                validation,
                settings,
                KEY,
                &mut |event| events.push(event),
            );
            (block, report, events)
        }
    }

    #[test]
    fn tuning_lowers_the_loss_and_reports_what_it_did() {
        let problem = Problem::new();
        for validation in [0, 2] {
            let judges = if validation == 0 { 0..7 } else { 5..7 };
            let (block, report, events) = problem.tune(validation, &SETTINGS);
            let report = report.unwrap();
            assert!(
                report.loss_after < report.loss_before && report.best_epoch > 0,
                "{report:?}"
            );
            assert_eq!(report.loss_before, problem.loss(&problem.block, judges.clone()));
            assert_eq!(report.loss_after, problem.loss(&block, judges));
            assert_eq!(report.train_losses.len(), 6);
            assert_eq!(
                report.validation_losses.len(),
                if validation == 0 { 0 } else { 6 }
            );
            let steps = (7 - validation).div_ceil(2);
            assert_eq!(events.len(), 6 * (steps + 1));
            assert!(matches!(
                events[0],
                FinetuneEvent::Step {
                    epoch: 1,
                    step: 1,
                    ..
                }
            ));
            let last = FinetuneEvent::Epoch {
                epoch: 6,
                train_loss: report.train_losses[5],
                validation_loss: report.validation_losses.last().copied(),
            };
            assert_eq!(events.last(), Some(&last));
        }
    }

    #[test]
    fn only_what_the_settings_name_changes() {
        let problem = Problem::new();
        for only in 0..3 {
            let settings = FinetuneSettings {
                codebooks: only == 0,
                scales: only == 1,
                norms: only == 2,
                ..SETTINGS
            };
            let (block, report, _) = problem.tune(2, &settings);
            assert!(report.unwrap().best_epoch > 0);
            for (norm, before) in block.norms.iter().zip(&problem.block.norms) {
                assert_eq!(norm != before, only == 2);
            }
            for kind in block.spec().layers() {
                match (block.quantized(kind), problem.block.quantized(kind)) {
                    (Some(tuned), Some(original)) => {
                        assert_eq!(tuned.codes(), original.codes());
                        assert_eq!(tuned.codebooks() != original.codebooks(), only == 0);
                        assert_eq!(tuned.scales() != original.scales(), only == 1);
                        assert_eq!(block.weight(kind), crate::decode(tuned));
                    }
                    _ => assert_eq!(block.layer(kind), problem.block.layer(kind)),
                }
            }
        }
        let settings = FinetuneSettings {
            codebooks: false,
            scales: false,
            norms: false,
            ..SETTINGS
        };
        let (block, report, events) = problem.tune(2, &settings);
        assert_eq!(block, problem.block);
        assert_eq!((report.unwrap().train_losses, events), (vec![], vec![]));
    }

    #[test]
    fn steps_that_lead_nowhere_are_taken_back() {
        let problem = Problem::new();
        let settings = FinetuneSettings {
            lr: 1e3,
            epochs: 20,
            patience: 4,
            ..SETTINGS
        };
        let (block, report, _) = problem.tune(2, &settings);
        let report = report.unwrap();
        assert_eq!(report.best_epoch, 0);
        assert_eq!(report.loss_after, report.loss_before);
        assert_eq!(report.validation_losses.len(), 4);
        assert_eq!(block, problem.block);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let problem = Problem::new();
        let settings = FinetuneSettings { batch: 5, ..SETTINGS };
        let with = |threads: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (block, report, _) = pool.install(|| problem.tune(1, &settings));
            (block, report.unwrap())
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn a_loss_that_is_not_a_number_is_an_error_and_changes_nothing() {
        let mut problem = Problem::new();
        problem.targets[2][[1, 3]] = f64::NAN;
        let (block, report, _) = problem.tune(2, &SETTINGS);
        assert!(matches!(report, Err(AqlmError::NotFinite { index, .. }) if index == [1]));
        assert_eq!(block, problem.block);
    }

    #[test]
    fn input_that_does_not_fit_is_refused() {
        let refused = |change: fn(&mut Problem), validation: usize, settings: &FinetuneSettings| {
            let mut problem = Problem::new();
            change(&mut problem);
            problem.tune(validation, settings).1.unwrap_err()
        };
        let batch0 = FinetuneSettings { batch: 0, ..SETTINGS };
        assert!(matches!(
            refused(|_| (), 7, &SETTINGS),
            AqlmError::Argument { .. }
        ));
        assert!(matches!(refused(|_| (), 2, &batch0), AqlmError::Argument { .. }));
        let shapes: [fn(&mut Problem); 4] = [
            |problem| drop(problem.targets.pop()),
            |problem| problem.inputs[3] = Array2::zeros((4, 11)),
            |problem| problem.inputs[3] = Array2::zeros((7, 12)),
            |problem| problem.targets[3] = Array2::zeros((3, 12)),
        ];
        for change in shapes {
            assert!(matches!(refused(change, 2, &SETTINGS), AqlmError::Shape { .. }));
        }
    }
}
