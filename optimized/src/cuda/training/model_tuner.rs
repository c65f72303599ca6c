use std::collections::BTreeMap;
use std::sync::Arc;

use aqlm_vocabulary::{
    AqlmError, CodeChange, LayerId, ModelTraining, ModelTuning, ModelWeights, Parameter, PartOutline,
    PartSums, Rates, StatePart, Target, Tuned,
};

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::block_tuner::block_values;
use super::forward::{Trace, trace_width};
use super::gradients::BlockGradient;
use super::machine::{Machine, ROWS};
use super::model::Model;
use super::model_losses::{LossGradients, Scored, TeacherHead};
use super::plan;
use super::trained::{Trained, shape, widened};
use super::trained_codes::TrainedCodes;
use crate::cpu::llama::Wanted;

/// A model whose codebooks, scales, norms, embedding and head are trained (paper appendix A), with fixed
/// codes or together with its codes (PV-Tuning).
///
/// See [`ModelTraining`]. Activations and their gradients are f32; losses, parameters, the sums of their
/// gradients, and moments are f64. Buffers of codes, the sums of their gradients and their moments are f32. A
/// failure of the device while sums are taken is kept and returned by the next loss.
pub struct ModelTuner {
    machine: Arc<Machine>,
    model: Model,
    tuned: Tuned,
    trained: Trained,
    /// `None` for fixed codes
    codes: Option<TrainedCodes>,
    teacher: TeacherHead,
    failed: Option<String>,
}

/// Receives a block's number, its trace and its output.
type AfterBlock<'a> = dyn FnMut(usize, Trace, &Buffer<f32>) -> Result<()> + 'a;

/// The data kept for a block between the forward and the backward pass.
enum Kept {
    Trace(Box<Trace>),
    Input(Buffer<f32>),
}

impl ModelTuner {
    /// The state before the first step.
    ///
    /// # Errors
    /// `Aqlm` with `Argument` when `tuning` selects nothing of this model, its settings are out of their
    /// range, or codes are tuned without codebooks and scales, with `Shape` when the weights do not match the
    /// machine's architecture, with `Unsupported` for a beam that is too wide; `Memory`, `Driver`.
    pub fn new(machine: &Arc<Machine>, weights: &ModelWeights, tuning: &ModelTuning) -> Result<Self> {
        let model = Model::new(machine, weights)?;
        let tied = model.lm_head.is_none();
        let mut tuned = tuning.tuned;
        if tied {
            // If tied, embedding and head are one array.
            tuned.embedding |= tuned.head;
            tuned.head = tuned.embedding;
        }
        let parameters = Parameter::selected(&machine.arch().blocks, &weights.quantized(), tied, tuned);
        if parameters.is_empty() {
            let expected = "some that this model has";
            return Err(AqlmError::argument("parameters to train", expected, "none").into());
        }
        let codes = match tuning.codes {
            Some(_) if !(tuned.codebooks || tuned.scales) => {
                let expected = "codebooks or scales beside codes";
                return Err(AqlmError::argument("parameters to train", expected, "neither").into());
            }
            Some(settings) => Some(TrainedCodes::new(machine, &model.blocks, settings, tuning.seed)?),
            None => None,
        };
        let values = |parameter: Parameter| -> Result<_> {
            let values = match parameter {
                Parameter::Embedding => widened(&weights.embedding),
                Parameter::Head => widened(weights.lm_head.as_ref().unwrap_or(&weights.embedding)),
                Parameter::FinalNorm => widened(&weights.norm),
                of_block => block_values(machine, &model.blocks, of_block)?,
            };
            Ok((parameter, values))
        };
        let parameters = parameters.into_iter().map(values).collect::<Result<_>>()?;
        Ok(Self {
            machine: Arc::clone(machine),
            trained: Trained::new(machine, parameters, tuned, tuning.optimizer)?,
            model,
            tuned,
            codes,
            teacher: TeacherHead::default(),
            failed: None,
        })
    }

    /// The gradients summed so far, in the order of [`Parameter::selected`].
    ///
    /// # Errors
    /// `Driver`.
    pub fn gradients(&self) -> Result<Vec<(Parameter, Vec<f64>)>> {
        let of = |trained: &super::trained::TrainedParameter| -> Result<_> {
            let gradient = self.machine.device().download(&trained.gradient)?;
            Ok((trained.parameter, gradient))
        };
        self.trained.parameters.iter().map(of).collect()
    }

    fn take_sums(&mut self) -> Result<Vec<f64>> {
        let mut taken = self.trained.take_gradients()?;
        if let Some(codes) = &mut self.codes {
            codes.take_gradients(&mut taken)?;
        }
        Ok(taken)
    }

    /// Writes the parameters' values into the model.
    fn write_back(&mut self) -> Result<()> {
        self.trained.write_back(&mut self.model.blocks)?;
        for trained in &self.trained.parameters {
            let to = match trained.parameter {
                Parameter::FinalNorm => &mut self.model.norm,
                Parameter::Embedding => &mut self.model.embedding,
                Parameter::Head => match &mut self.model.lm_head {
                    Some(lm_head) => lm_head,
                    None => continue,
                },
                // These belong to a block.
                _ => continue,
            };
            let device = self.machine.device();
            self.machine.run(
                &plan::narrow(to.len()),
                &[address(device, &trained.values), address(device, to)],
            )?;
        }
        Ok(())
    }

    /// The length of all sequences, if they and their targets are valid.
    fn check(&self, sequences: &[&[u32]], targets: &[Target<'_>]) -> Result<usize> {
        let expect = |what: &str, expected: usize, found: usize| {
            if expected == found {
                return Ok(());
            }
            Err(AqlmError::Shape {
                what: what.into(),
                expected: vec![expected],
                found: vec![found],
            })
        };
        if let Some(failed) = &self.failed {
            return Err(AqlmError::Device(failed.clone()).into());
        }
        expect("targets", sequences.len(), targets.len())?;
        let tokens = sequences.first().map_or(0, |sequence| sequence.len());
        expect(
            "tokens of a sequence",
            tokens.min(self.machine.positions()),
            tokens,
        )?;
        for sequence in sequences {
            expect("tokens of a sequence", tokens, sequence.len())?;
        }
        Ok(tokens)
    }

    /// The embeddings of sequences, and after every block what `each` receives: the block's number, its trace
    /// and its output.
    fn pass(&self, sequences: &[&[u32]], each: &mut AfterBlock<'_>) -> Result<Buffer<f32>> {
        let machine = &*self.machine;
        let tokens = sequences.first().map_or(0, |sequence| sequence.len());
        let flat: Vec<u32> = sequences.concat();
        let mut x = machine.embed(&self.model.embedding, machine.arch().hidden_size, &flat)?;
        for (index, block) in self.model.blocks.iter().enumerate() {
            let weights = block.decoded(machine)?;
            let (y, trace) = machine.forward(machine.precision(), block, &weights, x, tokens)?;
            each(index, trace, &y)?;
            x = y;
        }
        Ok(x)
    }

    /// The losses of these sequences from the last block's outputs. With a scale, `scale` times the gradient
    /// of their sum with respect to these outputs, after the parts that belong to the head were added to the
    /// sums.
    fn judge(
        &mut self,
        x: &Buffer<f32>,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: Option<f64>,
        losses: &mut Vec<f64>,
    ) -> Result<Option<Buffer<f32>>> {
        let machine = &*self.machine;
        let width = machine.arch().hidden_size;
        let mut grad = match scale {
            Some(_) => Some(machine.zeros::<f32>(x.len(), "the gradient of hidden states")?),
            None => None,
        };
        let mut grad_head = match scale {
            Some(_) if self.tuned.head => {
                Some(machine.zeros::<f32>(self.model.head().len(), "the gradient of the head")?)
            }
            _ => None,
        };
        let norm = (self.model.norm_spec, &self.model.norm);
        for (index, (tokens, &target)) in sequences.iter().zip(targets).enumerate() {
            let (first, positions) = (index * tokens.len(), target.positions(tokens.len()));
            if positions == 0 {
                losses.push(0.0);
                continue;
            }
            let range = first * width..(first + positions) * width;
            let mut own = machine.space(range.len(), "hidden states of a sequence")?;
            own.copy_from(0, x, range.clone())?;
            let normed = machine.normed(&own, norm.1, norm.0)?;
            let scored = Scored {
                normed: &normed.y,
                head: self.model.head(),
                tokens,
                target,
            };
            let Some((scale, grad)) = scale.zip(grad.as_mut()) else {
                losses.push(machine.loss(machine.precision(), &scored, &mut self.teacher, None)?);
                continue;
            };
            let mut grad_normed = machine.space(own.len(), "the gradient of the final norm")?;
            let gradients = LossGradients {
                scale,
                normed: &mut grad_normed,
                head: grad_head.as_mut(),
            };
            losses.push(machine.loss(machine.precision(), &scored, &mut self.teacher, Some(gradients))?);
            let grad_own = machine.zeros(own.len(), "the gradient of a sequence")?;
            machine.norm_back(&own, norm, &normed.roots, &grad_normed, &grad_own)?;
            grad.copy_from(range.start, &grad_own, 0..grad_own.len())?;
            if let Some(total) = self.trained.gradient(Parameter::FinalNorm) {
                let sums = machine.norm_sums(&grad_normed, &own, &normed.roots, width)?;
                machine.add_chunks(&sums, total)?;
            }
        }
        if let Some(part) = &grad_head {
            let parameter = if self.model.lm_head.is_some() {
                Parameter::Head
            } else {
                Parameter::Embedding
            };
            if let Some(total) = self.trained.gradient(parameter) {
                machine.add_parts(part, total, 1)?;
            }
        }
        Ok(grad)
    }

    /// Losses and gradients of sequences that go through the model together.
    fn accumulate_part(
        &mut self,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        losses: &mut Vec<f64>,
        observe: &mut dyn FnMut(usize, LayerId, &Buffer<f32>),
    ) -> Result<()> {
        let machine = Arc::clone(&self.machine);
        let rows: usize = sequences.iter().map(|sequence| sequence.len()).sum();
        let width: usize = machine.arch().blocks.iter().map(trace_width).sum();
        // Half of the free memory is left for everything else. The results are the same either way.
        let keep = rows * width * size_of::<f32>() <= machine.device().free_bytes()? / 2;
        let mut kept = Vec::with_capacity(self.model.blocks.len());
        let x = self.pass(sequences, &mut |_, trace, _| {
            kept.push(if keep {
                Kept::Trace(Box::new(trace))
            } else {
                Kept::Input(trace.x)
            });
            Ok(())
        })?;
        let Some(mut grad) = self.judge(&x, sequences, targets, Some(scale), losses)? else {
            return Ok(());
        };
        drop(x);
        let tokens = sequences.first().map_or(0, |sequence| sequence.len());
        for (index, kept) in kept.into_iter().enumerate().rev() {
            let block = &self.model.blocks[index];
            let weights = block.decoded(&machine)?;
            let trace = match kept {
                Kept::Trace(trace) => *trace,
                Kept::Input(x) => {
                    machine
                        .forward(machine.precision(), block, &weights, x, tokens)?
                        .1
                }
            };
            let of_weight = |layer: LayerId| self.trained.needs_weights() && block.quantized(layer).is_some();
            let wanted = Wanted {
                x: index > 0 || self.tuned.embedding,
                weights: block.spec().layers().map(of_weight).collect(),
                biases: false,
                norms: self.tuned.norms,
            };
            let mut sink = |gradient: BlockGradient| {
                if let BlockGradient::Weight(layer, weight) = &gradient {
                    observe(index, *layer, weight);
                    if let Some(codes) = &self.codes {
                        codes.add(index, *layer, weight)?;
                    }
                }
                self.trained.add(index, block, &gradient)
            };
            let precision = machine.precision();
            match machine.backward(precision, block, &weights, &trace, grad, &wanted, &mut sink)? {
                Some(grad_x) => grad = grad_x,
                // Only before the first block.
                None => return Ok(()),
            }
        }
        if let Some(total) = self.trained.gradient(Parameter::Embedding) {
            let factor = machine.arch().embedding_scale;
            if factor != 1.0 {
                grad = machine.scaled(&grad, factor, "the gradient of embeddings")?;
            }
            machine.add_to_embedding(&sequences.concat(), &grad, total)?;
        }
        Ok(())
    }

    fn losses_of(&mut self, sequences: &[&[u32]], targets: &[Target<'_>]) -> Result<Vec<f64>> {
        let at_once = at_once(self.check(sequences, targets)?);
        self.teacher.begin();
        let mut losses = Vec::with_capacity(sequences.len());
        for (sequences, targets) in sequences.chunks(at_once).zip(targets.chunks(at_once)) {
            let x = self.pass(sequences, &mut |_, _, _| Ok(()))?;
            self.judge(&x, sequences, targets, None, &mut losses)?;
        }
        Ok(losses)
    }

    /// The first part of the model whose output on these sequences is not finite, by its name in the
    /// checkpoint.
    fn first_broken_output(&mut self, sequences: &[&[u32]]) -> Result<Option<String>> {
        let targets = vec![Target::NextTokens; sequences.len()];
        let at_once = at_once(self.check(sequences, &targets)?);
        let machine = Arc::clone(&self.machine);
        let hidden = machine.arch().hidden_size;
        for sequences in sequences.chunks(at_once) {
            let broken = |x: &Buffer<f32>| {
                Ok::<_, super::super::CudaError>(machine.first_not_finite(&x.slice(..), hidden)?.is_some())
            };
            let embedded = machine.embed(&self.model.embedding, hidden, &sequences.concat())?;
            if broken(&embedded)? {
                return Ok(Some("model.embed_tokens".into()));
            }
            let mut found = None;
            let x = self.pass(sequences, &mut |index, trace, y| {
                if found.is_none() {
                    found = machine.broken_part(&self.model.blocks[index], index, &trace, y)?;
                }
                Ok(())
            })?;
            if found.is_some() {
                return Ok(found);
            }
            let normed = machine.normed(&x, &self.model.norm, self.model.norm_spec)?;
            if broken(&normed.y)? {
                return Ok(Some("model.norm".into()));
            }
            let targets = vec![Target::NextTokens; sequences.len()];
            let mut losses = Vec::new();
            self.judge(&x, sequences, &targets, None, &mut losses)?;
            if losses.iter().any(|loss| !loss.is_finite()) {
                return Ok(Some("lm_head".into()));
            }
        }
        Ok(None)
    }
}

/// Sequences of this many tokens that go through the model together.
fn at_once(tokens: usize) -> usize {
    (ROWS / tokens.max(1)).max(1)
}

impl Machine {
    /// Adds the gradients of embedded tokens, [tokens, hidden], to those of the embedding.
    fn add_to_embedding(&self, tokens: &[u32], gradient: &Buffer<f32>, total: &Buffer<f64>) -> Result<()> {
        let mut places: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (row, &token) in (0..).zip(tokens) {
            places.entry(token).or_default().push(row);
        }
        let distinct: Vec<u32> = places.keys().copied().collect();
        let rows: Vec<u32> = places.values().flatten().copied().collect();
        let mut starts = vec![0_u32];
        for of_token in places.values() {
            starts.push(starts[starts.len() - 1] + of_token.len() as u32);
        }
        let distinct_there = self.upload(&distinct, "distinct tokens")?;
        let starts = self.upload(&starts, "where tokens begin")?;
        let rows = self.upload(&rows, "the places of tokens")?;
        let device = self.device();
        self.run(
            &plan::token_sums(distinct.len(), self.arch().hidden_size),
            &[
                address(device, &distinct_there),
                address(device, &starts),
                address(device, &rows),
                address(device, gradient),
                address(device, total),
            ],
        )
    }
}

impl PartSums for ModelTuner {
    /// Nothing if the device fails: no other rank accepts that.
    fn take(&mut self) -> Vec<f64> {
        self.take_sums().unwrap_or_else(|error| {
            self.failed = Some(error.to_string());
            Vec::new()
        })
    }

    fn add(&mut self, sums: &[f64]) -> aqlm_vocabulary::Result<()> {
        let expected = self.trained.len() + self.codes.as_ref().map_or(0, TrainedCodes::len);
        if sums.len() != expected {
            return Err(shape("sums of gradients".into(), expected, sums.len()));
        }
        let (of_parameters, of_codes) = sums.split_at(self.trained.len());
        self.trained.add_gradients(of_parameters)?;
        if let Some(codes) = &self.codes {
            codes.add_gradients(of_codes)?;
        }
        Ok(())
    }
}

impl ModelTraining for ModelTuner {
    type WeightGradient = Buffer<f32>;

    fn losses(&mut self, sequences: &[&[u32]], targets: &[Target<'_>]) -> aqlm_vocabulary::Result<Vec<f64>> {
        Ok(self.losses_of(sequences, targets)?)
    }

    fn accumulate(
        &mut self,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        observe: &mut dyn FnMut(usize, LayerId, &Buffer<f32>),
    ) -> aqlm_vocabulary::Result<Vec<f64>> {
        let at_once = at_once(self.check(sequences, targets)?);
        self.teacher.begin();
        let mut losses = Vec::with_capacity(sequences.len());
        for (sequences, targets) in sequences.chunks(at_once).zip(targets.chunks(at_once)) {
            self.accumulate_part(sequences, targets, scale, &mut losses, observe)?;
        }
        Ok(losses)
    }

    fn step(&mut self, rates: Rates) -> aqlm_vocabulary::Result<CodeChange> {
        self.trained.step(rates.lr)?;
        self.write_back()?;
        let Some(codes) = &self.codes else {
            return Ok(CodeChange::default());
        };
        Ok(codes.step(rates.code_lr, self.trained.steps(), &mut self.model.blocks)?)
    }

    fn steps(&self) -> u32 {
        self.trained.steps()
    }

    fn outline(&self) -> Vec<PartOutline> {
        let arch = self.machine.arch();
        let mut outline: Vec<PartOutline> = self.trained.outline(arch).collect();
        if let Some(codes) = &self.codes {
            outline.extend(codes.outline(arch, &self.model.blocks));
        }
        outline
    }

    fn state_part(&self, number: usize) -> aqlm_vocabulary::Result<StatePart> {
        let arch = self.machine.arch();
        if let Some(part) = self.trained.part(arch, number)? {
            return Ok(StatePart::Parameter(part));
        }
        let number = number - self.trained.parameters.len();
        let part = match &self.codes {
            Some(codes) => codes.part(arch, &self.model.blocks, number)?,
            None => None,
        };
        part.map(StatePart::Codes).ok_or_else(no_part)
    }

    fn check_part(&self, number: usize, part: &StatePart) -> aqlm_vocabulary::Result<()> {
        self.outline().get(number).ok_or_else(no_part)?.check(part)?;
        if let (StatePart::Codes(part), Some(codes)) = (part, &self.codes) {
            let number = number - self.trained.parameters.len();
            codes.check(number, part, &self.model.blocks)?;
        }
        Ok(())
    }

    fn restore_part(&mut self, _steps: u32, number: usize, part: StatePart) -> aqlm_vocabulary::Result<()> {
        let of_codes = number.checked_sub(self.trained.parameters.len());
        match (of_codes, &part, &mut self.codes) {
            (None, StatePart::Parameter(part), _) => Ok(self.trained.restore(number, part)?),
            (Some(number), StatePart::Codes(part), Some(codes)) => {
                let there = codes.restore(number, part, &mut self.model.blocks)?;
                there.then_some(()).ok_or_else(no_part)
            }
            _ => Err(no_part()),
        }
    }

    fn restored(&mut self, steps: u32) -> aqlm_vocabulary::Result<()> {
        self.trained.set_steps(steps);
        Ok(self.write_back()?)
    }

    fn weights(&self) -> aqlm_vocabulary::Result<ModelWeights> {
        Ok(self.model.to_weights(&self.machine)?)
    }

    fn first_not_finite(&mut self, sequences: &[&[u32]]) -> aqlm_vocabulary::Result<Option<String>> {
        let parameter = self.trained.first_not_finite(self.machine.arch())?;
        if parameter.is_some() {
            return Ok(parameter);
        }
        if let Some(codes) = &self.codes {
            let matrix = codes.first_not_finite(self.machine.arch())?;
            if matrix.is_some() {
                return Ok(matrix);
            }
        }
        Ok(self.first_broken_output(sequences)?)
    }
}

/// A number beyond the parts of a state, or another kind of part than the one checked.
fn no_part() -> AqlmError {
    AqlmError::Internal("a part of a training state that does not exist".into())
}
