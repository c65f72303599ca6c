use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, LayerId, ModelWeights, Parameter, ParameterState, Result, Target, Tuned,
    TuningState,
};
use ndarray::Array2;
use rayon::prelude::*;

use super::model_backward::{Gradient, first_not_finite, model_backward, model_losses};
use super::{Activations, Model, Rotary};
use crate::cpu::adam::{Adam, Moments};
use crate::cpu::quantizer::{Places, quantized_gradients};

/// A model whose codebooks, scales, norms, embedding and head are being trained, codes fixed (paper appendix
/// A).
///
/// Gradients are added up by [`ModelTuner::accumulate`] until [`ModelTuner::step`] uses them, so that a step
/// may see more sequences than fit in memory, or sums from several machines. Activations and their gradients
/// are f32; losses, parameters, the sums of their gradients, and moments are f64.
#[derive(Debug, Clone)]
pub struct ModelTuner {
    arch: ArchSpec,
    rotary: Rotary,
    model: Model,
    tuned: Tuned,
    decay: AdamDecay,
    activations: Activations,
    steps: u32,
    /// in the order of [`Parameter::selected`], which is sorted by block
    parameters: Vec<TunedParameter>,
    /// of each block's quantized layers, where they are trained
    places: Vec<Vec<Option<Places>>>,
}

#[derive(Debug, Clone)]
struct TunedParameter {
    parameter: Parameter,
    values: Vec<f64>,
    gradient: Vec<f64>,
    moments: Moments,
}

impl ModelTuner {
    /// Before the first step, for sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// `Unsupported` when `tuned` selects nothing of this model; those of [`Model::from_weights`].
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
            // one array, reached from both ends
            tuned.embedding |= tuned.head;
            tuned.head = tuned.embedding;
        }
        let parameters: Vec<TunedParameter> = Parameter::selected(&weights.quantized(), tied, tuned)
            .into_iter()
            .map(|parameter| {
                let values = values(&model, parameter);
                TunedParameter {
                    parameter,
                    gradient: vec![0.0; values.len()],
                    moments: Moments::new(values.len()),
                    values,
                }
            })
            .collect();
        if parameters.is_empty() {
            return Err(AqlmError::Unsupported(
                "training a model of which nothing is selected".into(),
            ));
        }
        let places = model
            .blocks
            .iter()
            .map(|block| {
                let of_layer = |layer: LayerId| {
                    let layer = block.quantized(layer)?;
                    (tuned.codebooks || tuned.scales).then(|| Places::of(layer.matrix()))
                };
                block.spec().layers().map(of_layer).collect()
            })
            .collect();
        Ok(Self {
            arch: arch.clone(),
            rotary: Rotary::new(arch.attention(), positions),
            model,
            tuned,
            decay,
            activations,
            steps: 0,
            parameters,
            places,
        })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Loss of each sequence, summed over its positions.
    ///
    /// # Errors
    /// As [`model_losses`](super::model_losses).
    pub fn losses(&mut self, sequences: &[&[u32]], targets: &[Target<'_>]) -> Result<Vec<f64>> {
        model_losses(&mut self.model, &self.rotary, sequences, targets)
    }

    /// Adds `scale` times the gradients of [`ModelTuner::losses`] and returns those. `observe` is given every
    /// gradient with respect to a decoded weight, [out_features, in_features], in parts to be added up: what
    /// methods that change codes, or weigh Hessians by gradients, start from.
    ///
    /// # Errors
    /// As [`model_backward`](super::model_backward); gradients added before an error stay.
    pub fn accumulate(
        &mut self,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        observe: &mut dyn FnMut(usize, LayerId, &Array2<f32>),
    ) -> Result<Vec<f64>> {
        let (parameters, places) = (&mut self.parameters, &self.places);
        let mut add = |parameter: Parameter, part: &mut dyn Iterator<Item = f64>| {
            if let Some(tuned) = parameters.iter_mut().find(|tuned| tuned.parameter == parameter) {
                for (sum, part) in tuned.gradient.iter_mut().zip(part) {
                    *sum += part;
                }
            }
        };
        let tied = self.model.lm_head.is_none();
        let mut sink = |model: &Model, gradient: Gradient<'_>| match gradient {
            Gradient::Weight(block, id, weight) => {
                observe(block, id, weight);
                if let (Some(layer), Some(places)) =
                    (model.blocks[block].quantized(id), &places[block][id.index()])
                {
                    let (codebooks, scales) =
                        quantized_gradients(layer.matrix(), places, layer.decoded(), weight);
                    add(Parameter::Codebooks(block, id), &mut codebooks.iter().copied());
                    add(Parameter::Scales(block, id), &mut scales.iter().copied());
                }
            }
            Gradient::BlockNorms(block, [input, post_attention]) => {
                add(Parameter::InputNorm(block), &mut input.iter().copied());
                add(
                    Parameter::PostAttentionNorm(block),
                    &mut post_attention.iter().copied(),
                );
            }
            Gradient::FinalNorm(norm) => add(Parameter::FinalNorm, &mut norm.iter().copied()),
            Gradient::Head(head) => {
                let parameter = if tied {
                    Parameter::Embedding
                } else {
                    Parameter::Head
                };
                add(parameter, &mut head.iter().map(|&part| f64::from(part)));
            }
            Gradient::Embedded(sequences, rows) => {
                let mut sum = vec![0.0f64; model.embedding.len()];
                let width = model.embedding.ncols();
                for (sequence, rows) in sequences.iter().zip(rows.outer_iter()) {
                    for (&token, row) in sequence.iter().zip(rows.outer_iter()) {
                        let to = &mut sum[token as usize * width..][..width];
                        for (to, &part) in to.iter_mut().zip(row) {
                            *to += f64::from(part);
                        }
                    }
                }
                add(Parameter::Embedding, &mut sum.into_iter());
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

    /// The gradients added up so far, in the order of [`Parameter::selected`].
    pub fn gradients(&self) -> impl Iterator<Item = (Parameter, &[f64])> {
        self.parameters
            .iter()
            .map(|tuned| (tuned.parameter, tuned.gradient.as_slice()))
    }

    /// One step of Adam with this learning rate along the gradients added up so far, which are then
    /// forgotten.
    pub fn step(&mut self, lr: f64) {
        self.steps = self.steps.saturating_add(1);
        let adam = Adam {
            lr,
            beta1: self.decay.beta1,
            beta2: self.decay.beta2,
            eps: self.decay.eps,
            amsgrad: false,
        };
        self.parameters.par_iter_mut().for_each(|tuned| {
            adam.step(&mut tuned.moments, tuned.values.iter_mut(), tuned.gradient.iter());
            tuned.gradient.fill(0.0);
        });
        self.write_back();
    }

    /// Puts the parameters' values into the model.
    fn write_back(&mut self) {
        for tuned in &self.parameters {
            set_values(&mut self.model, tuned.parameter, &tuned.values);
        }
    }

    /// Everything that training goes on from, apart from gradients not used yet.
    pub fn state(&self) -> TuningState {
        let of_parameter = |tuned: &TunedParameter| {
            let (first, second) = tuned.moments.first_and_second();
            ParameterState {
                parameter: tuned.parameter,
                name: tuned.parameter.name(&self.arch),
                values: tuned.values.clone(),
                first,
                second,
            }
        };
        TuningState {
            steps: self.steps,
            parameters: self.parameters.iter().map(of_parameter).collect(),
        }
    }

    /// Goes on from a state of the same model and selection; gradients not used yet are forgotten.
    ///
    /// # Errors
    /// `Shape` when the state is of something else. Nothing is changed then.
    pub fn restore(&mut self, state: &TuningState) -> Result<()> {
        let shape = |what: String, expected: usize, found: usize| AqlmError::Shape {
            what,
            expected: vec![expected],
            found: vec![found],
        };
        if state.parameters.len() != self.parameters.len() {
            let what = "parameters of a training state".into();
            return Err(shape(what, self.parameters.len(), state.parameters.len()));
        }
        for (tuned, part) in self.parameters.iter().zip(&state.parameters) {
            let expected = tuned.values.len();
            let fits = |values: &Vec<f64>| values.len() == expected && tuned.parameter == part.parameter;
            if ![&part.values, &part.first, &part.second].into_iter().all(fits) {
                return Err(shape(
                    tuned.parameter.name(&self.arch),
                    expected,
                    part.values.len(),
                ));
            }
        }
        self.steps = state.steps;
        for (tuned, part) in self.parameters.iter_mut().zip(&state.parameters) {
            tuned.values.clone_from(&part.values);
            tuned.moments = Moments::resumed(state.steps, &part.first, &part.second);
            tuned.gradient.fill(0.0);
        }
        self.write_back();
        Ok(())
    }

    /// What is not finite first, by its name in the checkpoint: a trained parameter, or else a layer's output
    /// on these sequences.
    ///
    /// # Errors
    /// As [`model_losses`](super::model_losses).
    pub fn first_not_finite(&mut self, sequences: &[&[u32]]) -> Result<Option<String>> {
        let broken = |tuned: &&TunedParameter| tuned.values.iter().any(|value| !value.is_finite());
        if let Some(tuned) = self.parameters.iter().find(broken) {
            return Ok(Some(tuned.parameter.name(&self.arch)));
        }
        first_not_finite(&mut self.model, &self.rotary, sequences)
    }
}

/// A parameter's values, row-major.
fn values(model: &Model, parameter: Parameter) -> Vec<f64> {
    let matrix = |block: usize, kind| {
        model.blocks[block]
            .quantized(kind)
            .map(super::QuantizedLayer::matrix)
    };
    let widened = |values: &mut dyn Iterator<Item = &f32>| values.map(|&value| f64::from(value)).collect();
    match parameter {
        Parameter::Codebooks(block, kind) => matrix(block, kind)
            .map(|matrix| matrix.codebooks.iter().copied().collect())
            .unwrap_or_default(),
        Parameter::Scales(block, kind) => matrix(block, kind)
            .map(|matrix| matrix.scales.to_vec())
            .unwrap_or_default(),
        Parameter::InputNorm(block) => widened(&mut model.blocks[block].input_layernorm.iter()),
        Parameter::PostAttentionNorm(block) => {
            widened(&mut model.blocks[block].post_attention_layernorm.iter())
        }
        Parameter::FinalNorm => widened(&mut model.norm.iter()),
        Parameter::Embedding => widened(&mut model.embedding.iter()),
        Parameter::Head => widened(&mut model.head().iter()),
    }
}

/// Replaces a parameter's values.
fn set_values(model: &mut Model, parameter: Parameter, values: &[f64]) {
    let fill = |to: &mut dyn Iterator<Item = &mut f64>| to.zip(values).for_each(|(to, &value)| *to = value);
    let narrow =
        |to: &mut dyn Iterator<Item = &mut f32>| to.zip(values).for_each(|(to, &value)| *to = value as f32);
    match parameter {
        Parameter::Codebooks(block, kind) => {
            if let Some(layer) = model.blocks[block].quantized_mut(kind) {
                layer.tune(|matrix| fill(&mut matrix.codebooks.iter_mut()));
            }
        }
        Parameter::Scales(block, kind) => {
            if let Some(layer) = model.blocks[block].quantized_mut(kind) {
                layer.tune(|matrix| fill(&mut matrix.scales.iter_mut()));
            }
        }
        Parameter::InputNorm(block) => narrow(&mut model.blocks[block].input_layernorm.iter_mut()),
        Parameter::PostAttentionNorm(block) => {
            narrow(&mut model.blocks[block].post_attention_layernorm.iter_mut());
        }
        Parameter::FinalNorm => narrow(&mut model.norm.iter_mut()),
        Parameter::Embedding => narrow(&mut model.embedding.iter_mut()),
        Parameter::Head => {
            if let Some(lm_head) = &mut model.lm_head {
                narrow(&mut lm_head.iter_mut());
            }
        }
    }
}
