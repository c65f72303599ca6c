use aqlm_vocabulary::{
    AqlmError, ArchSpec, CodeChange, LayerId, ModelTraining, ModelTuning, ModelWeights, Parameter,
    PartOutline, PartSums, Rates, Result, StatePart, Target, Tuned,
};
use ndarray::Array2;

use super::model_backward::{Gradient, first_not_finite, model_backward, model_losses};
use super::trained::{Trained, narrow, widened};
use super::trained_codes::TrainedCodes;
use super::{Activations, Model, Rotary};

/// A model whose codebooks, scales, norms, embedding and head are trained (paper appendix A), with fixed
/// codes or together with its codes (PV-Tuning).
///
/// See [`ModelTraining`]. Activations and their gradients are f32; losses, parameters, the sums of their
/// gradients, and moments are f64. Buffers of codes, the sums of their gradients and their moments are f32.
#[derive(Debug, Clone)]
pub struct ModelTuner {
    arch: ArchSpec,
    rotary: Rotary,
    model: Model,
    tuned: Tuned,
    activations: Activations,
    trained: Trained,
    /// `None` for fixed codes
    codes: Option<TrainedCodes>,
}

impl ModelTuner {
    /// The state before the first step, for sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// `Argument` when `tuning` selects nothing of this model, its settings are out of their range, or codes
    /// are tuned without codebooks and scales; those of [`Model::from_weights`].
    pub fn new(
        arch: &ArchSpec,
        positions: usize,
        weights: &ModelWeights,
        tuning: &ModelTuning,
        activations: Activations,
    ) -> Result<Self> {
        tuning.check_codes()?;
        let mut model = Model::from_weights(arch, weights)?;
        if arch.tied {
            model.lm_head = None;
        }
        let tied = model.lm_head.is_none();
        let mut tuned = tuning.tuned;
        if tied {
            // if tied, embedding and head are one array
            tuned.embedding |= tuned.head;
            tuned.head = tuned.embedding;
        }
        let parameters = Parameter::selected(&arch.blocks, &weights.quantized(), tied, tuned);
        if parameters.is_empty() {
            return Err(AqlmError::argument(
                "parameters to train",
                "some that this model has",
                "none",
            ));
        }
        let codes = match tuning.codes {
            Some(_) if !(tuned.codebooks || tuned.scales) => {
                return Err(AqlmError::argument(
                    "parameters to train",
                    "codebooks or scales beside codes",
                    "neither",
                ));
            }
            Some(settings) => Some(TrainedCodes::new(&model.blocks, settings, tuning.seed)),
            None => None,
        };
        let trained = Trained::new(
            parameters,
            &model.blocks,
            |parameter| outer_values(&model, parameter),
            tuned,
            tuning.optimizer,
        );
        Ok(Self {
            arch: arch.clone(),
            rotary: Rotary::of_model(arch, positions),
            model,
            tuned,
            activations,
            trained,
            codes,
        })
    }

    /// The model in its current state.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The gradients summed so far, in the order of [`Parameter::selected`].
    pub fn gradients(&self) -> impl Iterator<Item = (Parameter, &[f64])> {
        self.trained
            .parameters
            .iter()
            .map(|trained| (trained.parameter, trained.gradient.as_slice()))
    }

    /// Writes the parameters' values into the model.
    fn write_back(&mut self) {
        let model = &mut self.model;
        self.trained.write_back(&mut model.blocks);
        for trained in &self.trained.parameters {
            match trained.parameter {
                Parameter::FinalNorm => narrow(model.norm.iter_mut(), &trained.values),
                Parameter::Embedding => narrow(model.embedding.iter_mut(), &trained.values),
                Parameter::Head => {
                    if let Some(lm_head) = &mut model.lm_head {
                        narrow(lm_head.iter_mut(), &trained.values);
                    }
                }
                // belongs to a block
                _ => {}
            }
        }
    }
}

impl PartSums for ModelTuner {
    fn take(&mut self) -> Vec<f64> {
        let mut taken = self.trained.take_gradients();
        if let Some(codes) = &mut self.codes {
            codes.take_gradients(&mut taken);
        }
        taken
    }

    fn add(&mut self, sums: &[f64]) -> Result<()> {
        let of_codes = self.codes.as_ref().map_or(0, TrainedCodes::len);
        let Some(of_parameters) = sums.len().checked_sub(of_codes) else {
            return Err(AqlmError::Shape {
                what: "sums of gradients".into(),
                expected: vec![of_codes],
                found: vec![sums.len()],
            });
        };
        let (of_parameters, of_codes) = sums.split_at(of_parameters);
        self.trained.add_gradients(of_parameters)?;
        if let Some(codes) = &mut self.codes {
            codes.add_gradients(of_codes);
        }
        Ok(())
    }
}

impl ModelTraining for ModelTuner {
    type WeightGradient = Array2<f32>;

    fn losses(&mut self, sequences: &[&[u32]], targets: &[Target<'_>]) -> Result<Vec<f64>> {
        model_losses(&mut self.model, &self.rotary, sequences, targets)
    }

    fn accumulate(
        &mut self,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        observe: &mut dyn FnMut(usize, LayerId, &Array2<f32>),
    ) -> Result<Vec<f64>> {
        let (trained, codes) = (&mut self.trained, &mut self.codes);
        let tied = self.model.lm_head.is_none();
        // The gradient of a tied head, until the gradient of the embeddings of the same sequences is added.
        let mut of_head: Option<Vec<f64>> = None;
        let mut sink = |model: &Model, gradient: Gradient<'_>| match gradient {
            Gradient::Weight(block, id, weight) => {
                observe(block, id, weight);
                if let Some(layer) = model.blocks[block].quantized(id) {
                    trained.add_weight(block, id, layer, weight);
                    if let Some(codes) = codes {
                        codes.add(block, id, weight);
                    }
                }
            }
            Gradient::BlockNorms(block, norms) => trained.add_norms(block, model.blocks[block].spec(), norms),
            Gradient::FinalNorm(norm) => trained.add(Parameter::FinalNorm, norm.iter().copied()),
            Gradient::Head(head) if tied => of_head = Some(widened(head.iter())),
            Gradient::Head(head) => trained.add(Parameter::Head, head.iter().map(|&part| f64::from(part))),
            Gradient::Embedded(sequences, rows) => {
                let mut sum = of_head
                    .take()
                    .unwrap_or_else(|| vec![0.0f64; model.embedding.len()]);
                let width = model.embedding.ncols();
                for (sequence, rows) in sequences.iter().zip(rows.outer_iter()) {
                    for (&token, row) in sequence.iter().zip(rows.outer_iter()) {
                        let to = &mut sum[token as usize * width..][..width];
                        for (to, &part) in to.iter_mut().zip(row) {
                            *to += f64::from(part);
                        }
                    }
                }
                trained.add(Parameter::Embedding, sum.into_iter());
            }
        };
        model_backward(
            &mut self.model,
            &self.rotary,
            sequences,
            targets,
            scale,
            self.tuned,
            self.activations,
            &mut sink,
        )
    }

    fn step(&mut self, rates: Rates) -> Result<CodeChange> {
        self.trained.step(rates.lr);
        self.write_back();
        let Some(codes) = &mut self.codes else {
            return Ok(CodeChange::default());
        };
        let (trained, blocks) = (&mut self.trained, &mut self.model.blocks);
        codes.step(
            rates.code_lr,
            trained.steps(),
            blocks,
            &mut |block, id, matrix| {
                trained.codes_changed(block, id, matrix);
                trained.codebooks_changed(block, id, matrix);
            },
        )
    }

    fn steps(&self) -> u32 {
        self.trained.steps()
    }

    fn outline(&self) -> Vec<PartOutline> {
        let codes = self.codes.iter();
        let of_codes = codes.flat_map(|codes| codes.outline(&self.arch, &self.model.blocks));
        self.trained.outline(&self.arch).chain(of_codes).collect()
    }

    fn state_part(&self, number: usize) -> Result<StatePart> {
        if let Some(part) = self.trained.part(&self.arch, number) {
            return Ok(StatePart::Parameter(part));
        }
        let number = number - self.trained.parameters.len();
        let codes = self.codes.as_ref();
        let part = codes.and_then(|codes| codes.part(&self.arch, &self.model.blocks, number));
        part.map(StatePart::Codes).ok_or_else(no_part)
    }

    fn check_part(&self, number: usize, part: &StatePart) -> Result<()> {
        self.outline().get(number).ok_or_else(no_part)?.check(part)?;
        if let StatePart::Codes(part) = part
            && let Some(quantized) = self.model.blocks[part.block].quantized(part.layer)
        {
            quantized.matrix().clone().with_codes(part.codes.clone())?;
        }
        Ok(())
    }

    fn restore_part(&mut self, steps: u32, number: usize, part: StatePart) -> Result<()> {
        let of_codes = number.checked_sub(self.trained.parameters.len());
        match (of_codes, part, &mut self.codes) {
            (None, StatePart::Parameter(part), _) => {
                self.trained.restore(steps, number, part);
                Ok(())
            }
            (Some(number), StatePart::Codes(part), Some(codes)) => {
                let (block, id, matrix) = codes.restore(steps, number, part, &self.model.blocks)?;
                self.trained.codes_changed(block, id, &matrix);
                self.model.blocks[block].set_layer(id, matrix)
            }
            _ => Err(no_part()),
        }
    }

    fn restored(&mut self, steps: u32) -> Result<()> {
        self.trained.set_steps(steps);
        self.write_back();
        Ok(())
    }

    fn weights(&self) -> Result<ModelWeights> {
        Ok(self.model.to_weights())
    }

    fn first_not_finite(&mut self, sequences: &[&[u32]]) -> Result<Option<String>> {
        if let Some(parameter) = self.trained.first_not_finite(&self.arch) {
            return Ok(Some(parameter));
        }
        let codes = self.codes.as_ref();
        if let Some(matrix) = codes.and_then(|codes| codes.first_not_finite(&self.arch)) {
            return Ok(Some(matrix));
        }
        first_not_finite(&mut self.model, &self.rotary, sequences)
    }
}

/// A number beyond the parts of a state, or another kind of part than the one checked.
fn no_part() -> AqlmError {
    AqlmError::Internal("a part of a training state that does not exist".into())
}

/// The values of a parameter that belongs to no block, row-major.
fn outer_values(model: &Model, parameter: Parameter) -> Vec<f64> {
    match parameter {
        Parameter::Embedding => widened(model.embedding.iter()),
        Parameter::Head => widened(model.head().iter()),
        _ => widened(model.norm.iter()),
    }
}
