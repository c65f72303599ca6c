use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, LayerId, ModelTraining, ModelWeights, Parameter, PartSums, Result,
    Target, Tuned, TuningState,
};
use ndarray::Array2;

use super::model_backward::{Gradient, first_not_finite, model_backward, model_losses};
use super::trained::{Trained, narrow, widened};
use super::{Activations, Model, Rotary};

/// A model whose codebooks, scales, norms, embedding and head are trained for fixed codes (paper appendix A).
///
/// See [`ModelTraining`]. Activations and their gradients are f32; losses, parameters, the sums of their
/// gradients, and moments are f64.
#[derive(Debug, Clone)]
pub struct ModelTuner {
    arch: ArchSpec,
    rotary: Rotary,
    model: Model,
    tuned: Tuned,
    activations: Activations,
    trained: Trained,
}

impl ModelTuner {
    /// The state before the first step, for sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// `Argument` when `tuned` selects nothing of this model; those of [`Model::from_weights`].
    pub fn new(
        arch: &ArchSpec,
        positions: usize,
        weights: &ModelWeights,
        tuned: Tuned,
        decay: AdamDecay,
        activations: Activations,
    ) -> Result<Self> {
        let mut model = Model::from_weights(arch, weights)?;
        if arch.tied {
            model.lm_head = None;
        }
        let tied = model.lm_head.is_none();
        let mut tuned = tuned;
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
        let trained = Trained::new(
            parameters,
            &model.blocks,
            |parameter| outer_values(&model, parameter),
            tuned,
            decay,
        );
        Ok(Self {
            arch: arch.clone(),
            rotary: Rotary::of_model(arch, positions),
            model,
            tuned,
            activations,
            trained,
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
        self.trained.take_gradients()
    }

    fn add(&mut self, sums: &[f64]) -> Result<()> {
        self.trained.add_gradients(sums)
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
        let trained = &mut self.trained;
        let tied = self.model.lm_head.is_none();
        // The gradient of a tied head, until the gradient of the embeddings of the same sequences is added.
        let mut of_head: Option<Vec<f64>> = None;
        let mut sink = |model: &Model, gradient: Gradient<'_>| match gradient {
            Gradient::Weight(block, id, weight) => {
                observe(block, id, weight);
                if let Some(layer) = model.blocks[block].quantized(id) {
                    trained.add_weight(block, id, layer, weight);
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

    fn step(&mut self, lr: f64) {
        self.trained.step(lr);
        self.write_back();
    }

    fn state(&self) -> TuningState {
        self.trained.state(&self.arch)
    }

    fn restore(&mut self, state: &TuningState) -> Result<()> {
        self.trained.restore(&self.arch, state)?;
        self.write_back();
        Ok(())
    }

    fn weights(&self) -> ModelWeights {
        self.model.to_weights()
    }

    fn first_not_finite(&mut self, sequences: &[&[u32]]) -> Result<Option<String>> {
        if let Some(parameter) = self.trained.first_not_finite(&self.arch) {
            return Ok(Some(parameter));
        }
        first_not_finite(&mut self.model, &self.rotary, sequences)
    }
}

/// The values of a parameter that belongs to no block, row-major.
fn outer_values(model: &Model, parameter: Parameter) -> Vec<f64> {
    match parameter {
        Parameter::Embedding => widened(model.embedding.iter()),
        Parameter::Head => widened(model.head().iter()),
        _ => widened(model.norm.iter()),
    }
}
