use ndarray::{Array1, Array2};
use rayon::prelude::*;

use super::{
    Model, ModelGradients, Rotary, block_forward_traced, embed, logits, model_backward, model_loss,
    quantized_gradients,
};
use crate::adam::Moments;
use aqlm_vocabulary::{
    AdamDecay, AqlmError, ArchSpec, LayerId, ModelTraining, ModelWeights, NormPlace, Parameter,
    ParameterState, PartSums, Result, Target, Tuned, TuningState,
};

/// A model whose codebooks, scales, norms, embedding and head are being trained with fixed codes (paper
/// appendix A).
///
/// See [`ModelTraining`]. Gradients are observed whole, one for each sequence.
#[derive(Debug, Clone)]
pub struct ModelTuner {
    model: Model,
    decay: AdamDecay,
    steps: u32,
    parameters: Vec<TunedParameter>,
}

#[derive(Debug, Clone)]
struct TunedParameter {
    parameter: Parameter,
    gradient: Array1<f64>,
    moments: Moments,
}

impl ModelTuner {
    /// The tuner before the first step.
    ///
    /// # Errors
    /// `Argument` when `tuned` selects nothing in this model; those of [`Model::from_weights`].
    pub fn new(arch: &ArchSpec, weights: &ModelWeights, tuned: Tuned, decay: AdamDecay) -> Result<Self> {
        let model = Model::from_weights(arch, weights)?;
        let parameters: Vec<TunedParameter> =
            Parameter::selected(&arch.blocks, &weights.quantized(), arch.tied, tuned)
                .into_iter()
                .map(|parameter| {
                    let len = values(&model, parameter).len();
                    TunedParameter {
                        parameter,
                        gradient: Array1::zeros(len),
                        moments: Moments::new(len),
                    }
                })
                .collect();
        if parameters.is_empty() {
            return Err(AqlmError::argument(
                "parameters to train",
                "some that this model has",
                "none",
            ));
        }
        Ok(Self {
            model,
            decay,
            steps: 0,
            parameters,
        })
    }

    /// The model with its current parameters.
    pub fn model(&self) -> &Model {
        &self.model
    }

    fn add(&mut self, gradients: &ModelGradients) {
        let model = &self.model;
        self.parameters.par_iter_mut().for_each(|tuned| {
            tuned.gradient += &gradient(model, gradients, tuned.parameter);
        });
    }
}

impl PartSums for ModelTuner {
    fn take(&mut self) -> Vec<f64> {
        let take = |tuned: &mut TunedParameter| {
            let zeros = Array1::zeros(tuned.gradient.len());
            std::mem::replace(&mut tuned.gradient, zeros)
        };
        self.parameters.iter_mut().flat_map(take).collect()
    }

    fn add(&mut self, sums: &[f64]) -> Result<()> {
        let expected: usize = self.parameters.iter().map(|tuned| tuned.gradient.len()).sum();
        if sums.len() != expected {
            return Err(AqlmError::Shape {
                what: "sums of gradients".into(),
                expected: vec![expected],
                found: vec![sums.len()],
            });
        }
        let gradients = self.parameters.iter_mut().flat_map(|tuned| &mut tuned.gradient);
        gradients.zip(sums).for_each(|(to, part)| *to += part);
        Ok(())
    }
}

impl ModelTraining for ModelTuner {
    type WeightGradient = Array2<f64>;

    fn losses(&mut self, sequences: &[&[u32]], targets: &[Target<'_>]) -> Result<Vec<f64>> {
        sequences
            .par_iter()
            .zip(targets)
            .map(|(tokens, &target)| model_loss(&self.model, tokens, target))
            .collect()
    }

    fn accumulate(
        &mut self,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        observe: &mut dyn FnMut(usize, LayerId, &Array2<f64>),
    ) -> Result<Vec<f64>> {
        let mut losses = Vec::with_capacity(sequences.len());
        // A wave of sequences at a time bounds the memory. The sums keep the order of the sequences.
        let wave = rayon::current_num_threads().max(1);
        for (sequences, targets) in sequences.chunks(wave).zip(targets.chunks(wave)) {
            let parts = sequences
                .par_iter()
                .zip(targets)
                .map(|(tokens, &target)| model_backward(&self.model, tokens, target, scale))
                .collect::<Result<Vec<_>>>()?;
            for (loss, gradients) in &parts {
                losses.push(*loss);
                self.add(gradients);
                for (index, block) in gradients.blocks.iter().enumerate() {
                    for (layer, weight) in self.model.blocks[index].spec().layers().zip(&block.layers) {
                        observe(index, layer, weight);
                    }
                }
            }
        }
        Ok(losses)
    }

    fn step(&mut self, lr: f64) {
        self.steps = self.steps.saturating_add(1);
        let adam = self.decay.at(lr);
        for tuned in &mut self.parameters {
            let mut moved = values(&self.model, tuned.parameter);
            tuned.moments.step(&adam, moved.view_mut(), &tuned.gradient);
            set_values(&mut self.model, tuned.parameter, &moved);
            tuned.gradient.fill(0.0);
        }
    }

    fn state(&self) -> TuningState {
        let of_parameter = |tuned: &TunedParameter| {
            let (first, second) = tuned.moments.moments();
            ParameterState {
                parameter: tuned.parameter,
                name: tuned.parameter.name(&self.model.arch),
                values: values(&self.model, tuned.parameter).to_vec(),
                first: first.to_vec(),
                second: second.to_vec(),
            }
        };
        TuningState {
            steps: self.steps,
            parameters: self.parameters.iter().map(of_parameter).collect(),
        }
    }

    fn restore(&mut self, state: &TuningState) -> Result<()> {
        let of_state: Vec<Parameter> = state.parameters.iter().map(|state| state.parameter).collect();
        let here: Vec<Parameter> = self.parameters.iter().map(|tuned| tuned.parameter).collect();
        if of_state != here {
            return Err(AqlmError::Shape {
                what: "parameters of a training state".into(),
                expected: vec![here.len()],
                found: vec![of_state.len()],
            });
        }
        for (tuned, state) in self.parameters.iter().zip(&state.parameters) {
            for part in [&state.values, &state.first, &state.second] {
                if part.len() != tuned.gradient.len() {
                    return Err(AqlmError::Shape {
                        what: tuned.parameter.name(&self.model.arch),
                        expected: vec![tuned.gradient.len()],
                        found: vec![part.len()],
                    });
                }
            }
        }
        self.steps = state.steps;
        for (tuned, part) in self.parameters.iter_mut().zip(&state.parameters) {
            tuned.gradient.fill(0.0);
            tuned.moments = Moments::resumed(state.steps, part.first.clone(), part.second.clone());
            set_values(
                &mut self.model,
                tuned.parameter,
                &Array1::from(part.values.clone()),
            );
        }
        Ok(())
    }

    fn weights(&self) -> ModelWeights {
        self.model.to_weights()
    }

    fn first_not_finite(&mut self, sequences: &[&[u32]]) -> Result<Option<String>> {
        let model = &self.model;
        for tuned in &self.parameters {
            if broken(&values(model, tuned.parameter)) {
                return Ok(Some(tuned.parameter.name(&model.arch)));
            }
        }
        for tokens in sequences {
            let rotary = Rotary::of_model(&model.arch, tokens.len());
            let mut x = embed(model.embedding.view(), tokens, model.arch.embedding_scale)?;
            for (index, block) in model.blocks.iter().enumerate() {
                let (y, trace) = block_forward_traced(block, &rotary, x.view());
                for linear in &block.spec().linears {
                    if broken(trace.input(linear.reads)) {
                        return Ok(Some(format!("model.layers.{index}, input of {}", linear.name)));
                    }
                }
                if broken(&y) {
                    return Ok(Some(model.arch.layer_name(index, block.spec().mlp.down)));
                }
                x = y;
            }
            let logits = logits(&model.arch, &model.norm, model.lm_head.view(), x.view());
            if broken(&logits) {
                return Ok(Some("lm_head".into()));
            }
        }
        Ok(None)
    }
}

fn broken<'a>(values: impl IntoIterator<Item = &'a f64>) -> bool {
    values.into_iter().any(|value| !value.is_finite())
}

/// Why a layer with trained codebooks or scales is quantized.
const QUANTIZED_ONLY: &str = "codebooks and scales are selected of quantized layers only";

/// The index of the norm at this place among the block's norms.
fn norm_index(model: &Model, block: usize, place: NormPlace) -> usize {
    let norm = model.blocks[block].spec().norm(place);
    norm.expect("norms are selected of the block's own").0
}

/// A parameter's values, row-major.
fn values(model: &Model, parameter: Parameter) -> Array1<f64> {
    let quantized = |block: usize, kind| model.blocks[block].quantized(kind).expect(QUANTIZED_ONLY);
    match parameter {
        Parameter::Codebooks(block, kind) => quantized(block, kind).codebooks().iter().copied().collect(),
        Parameter::Scales(block, kind) => quantized(block, kind).scales().clone(),
        Parameter::Norm(block, place) => model.blocks[block].norms[norm_index(model, block, place)].clone(),
        Parameter::FinalNorm => model.norm.clone(),
        Parameter::Embedding => model.embedding.iter().copied().collect(),
        Parameter::Head => model.lm_head.iter().copied().collect(),
    }
}

/// Replaces a parameter's values, decodes a quantized layer again, and copies the embedding to a tied head.
fn set_values(model: &mut Model, parameter: Parameter, values: &Array1<f64>) {
    let fill = |to: &mut dyn Iterator<Item = &mut f64>| to.zip(values).for_each(|(to, &value)| *to = value);
    match parameter {
        Parameter::Codebooks(block, kind) => {
            model.blocks[block].tune(kind, |mut codebooks, _| fill(&mut codebooks.iter_mut()));
        }
        Parameter::Scales(block, kind) => {
            model.blocks[block].tune(kind, |_, mut scales| fill(&mut scales.iter_mut()));
        }
        Parameter::Norm(block, place) => {
            let index = norm_index(model, block, place);
            fill(&mut model.blocks[block].norms[index].iter_mut());
        }
        Parameter::FinalNorm => fill(&mut model.norm.iter_mut()),
        Parameter::Embedding => {
            fill(&mut model.embedding.iter_mut());
            if model.arch.tied {
                model.lm_head.assign(&model.embedding);
            }
        }
        Parameter::Head => fill(&mut model.lm_head.iter_mut()),
    }
}

/// A parameter's part of a model's gradients, in the order of [`values`].
fn gradient(model: &Model, gradients: &ModelGradients, parameter: Parameter) -> Array1<f64> {
    let of_layer = |block: usize, layer: LayerId| {
        let matrix = model.blocks[block].quantized(layer).expect(QUANTIZED_ONLY);
        quantized_gradients(matrix, &gradients.blocks[block].layers[layer.index()])
    };
    match parameter {
        Parameter::Codebooks(block, kind) => of_layer(block, kind).0.into_iter().collect(),
        Parameter::Scales(block, kind) => of_layer(block, kind).1,
        Parameter::Norm(block, place) => {
            gradients.blocks[block].norms[norm_index(model, block, place)].clone()
        }
        Parameter::FinalNorm => gradients.norm.clone(),
        Parameter::Embedding if model.arch.tied => {
            (&gradients.embedding + &gradients.lm_head).into_iter().collect()
        }
        Parameter::Embedding => gradients.embedding.iter().copied().collect(),
        Parameter::Head => gradients.lm_head.iter().copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::finite_difference::assert_gradient;
    use crate::llama::test_data::{every_part, model, quantized, random, with_blocks};
    use aqlm_vocabulary::llama::{DOWN, QUERY, VALUE};

    const SEQUENCES: [&[u32]; 3] = [&[3, 1, 4, 1, 10], &[2, 7, 1, 8, 2], &[0, 5, 5, 9, 6]];

    /// Two blocks, three layers quantized.
    fn student(seed: u64, tied: bool) -> Model {
        let mut rng = random(seed);
        let mut model = model(&mut rng, 2, None);
        for (block, kind) in [(0, VALUE), (0, DOWN), (1, QUERY)] {
            let (out, inputs) = model.arch.blocks[block].shape(kind);
            let mut matrix = quantized(&mut rng, out, inputs);
            // Weights as large as the dense ones, and scales of order one. Numerical gradients assume that
            // the loss varies on the scale of a parameter's own size.
            matrix.tune(|mut codebooks, mut scales| {
                codebooks /= (2.0 * inputs as f64).sqrt();
                scales *= 2.0;
            });
            model.blocks[block].set_layer(kind, matrix).unwrap();
        }
        if tied {
            model.arch.tied = true;
            model.lm_head = model.embedding.clone();
            // logits near unit size, as the limit of the numerical gradients assumes
            model.norm /= 12f64.sqrt();
        } else {
            model.lm_head /= 12f64.sqrt();
        }
        model
    }

    fn tuner(model: &Model, tuned: Tuned) -> ModelTuner {
        let mut tuner = ModelTuner::new(&model.arch, &model.to_weights(), tuned, AdamDecay::PAPER).unwrap();
        // undoes the rounding to f32
        tuner.model = model.clone();
        tuner
    }

    #[test]
    fn gradients_of_all_parameters_match_finite_differences() {
        let plain = [false, true].map(|tied| (student(51, tied), tied));
        for (model, tied) in plain {
            let mut tuner = tuner(&model, Tuned::ALL);
            let targets = [Target::NextTokens; 3];
            let mut seen = 0;
            tuner
                .accumulate(&SEQUENCES, &targets, 0.25, &mut |_, _, _| seen += 1)
                .unwrap();
            assert_eq!(seen, 3 * 2 * 7);
            let names: Vec<String> = tuner
                .parameters
                .iter()
                .map(|tuned| tuned.parameter.name(&model.arch))
                .collect();
            assert_eq!(names.len(), 3 * 2 + 5 + if tied { 1 } else { 2 }, "{names:?}");
            for tuned in &tuner.parameters {
                let name = format!("{}, tied {tied}", tuned.parameter.name(&model.arch));
                let at = values(&model, tuned.parameter);
                // 12 losses over 11 logits, each a sum of 12 products after two blocks with weights of 2
                // codewords
                assert_gradient(&name, &tuned.gradient, &at, 12 * 11 * 12 * 2, |at| {
                    let mut model = model.clone();
                    set_values(&mut model, tuned.parameter, at);
                    let loss = |tokens: &&[u32]| model_loss(&model, tokens, Target::NextTokens).unwrap();
                    0.25 * SEQUENCES.iter().map(loss).sum::<f64>()
                });
            }
        }
    }

    #[test]
    fn gradients_of_every_part_match_finite_differences() {
        for (number, block) in every_part().into_iter().enumerate() {
            let mut rng = random(60 + number as u64);
            let mut model = with_blocks(&mut rng, block);
            model.lm_head /= 12f64.sqrt();
            let mut tuner = tuner(&model, Tuned::ALL);
            tuner
                .accumulate(&SEQUENCES, &[Target::NextTokens; 3], 0.25, &mut |_, _, _| ())
                .unwrap();
            for tuned in &tuner.parameters {
                let name = format!("model {number}: {}", tuned.parameter.name(&model.arch));
                let at = values(&model, tuned.parameter);
                // 12 losses over 11 logits, each a sum of 12 products after two blocks, and embeddings that a
                // factor of 1.5 makes larger
                assert_gradient(&name, &tuned.gradient, &at, 12 * 11 * 12 * 2, |at| {
                    let mut model = model.clone();
                    set_values(&mut model, tuned.parameter, at);
                    let loss = |tokens: &&[u32]| model_loss(&model, tokens, Target::NextTokens).unwrap();
                    0.25 * SEQUENCES.iter().map(loss).sum::<f64>()
                });
            }
        }
    }

    fn train(tuner: &mut ModelTuner, steps: usize) -> f64 {
        let mut last = f64::NAN;
        for _ in 0..steps {
            let losses = tuner
                .accumulate(
                    &SEQUENCES,
                    &[Target::NextTokens; 3],
                    1.0 / 12.0,
                    &mut |_, _, _| (),
                )
                .unwrap();
            last = losses.iter().sum();
            tuner.step(1e-2);
        }
        last
    }

    #[test]
    fn training_learns_and_goes_on_from_a_state_exactly() {
        let model = student(52, false);
        let mut whole = tuner(&model, Tuned::ALL);
        let before: f64 = whole
            .losses(&SEQUENCES, &[Target::NextTokens; 3])
            .unwrap()
            .iter()
            .sum();
        train(&mut whole, 6);
        let state = whole.state();
        let after = train(&mut whole, 4);
        assert!(after < 0.7 * before, "{before} to {after}");

        let mut resumed = tuner(&model, Tuned::ALL);
        resumed.restore(&state).unwrap();
        assert_eq!(train(&mut resumed, 4), after);
        assert_eq!(resumed.state(), whole.state());
        assert_eq!(resumed.model, whole.model);
    }

    #[test]
    fn only_what_is_selected_moves() {
        let model = student(53, false);
        assert!(matches!(
            ModelTuner::new(&model.arch, &model.to_weights(), Tuned::NONE, AdamDecay::PAPER),
            Err(AqlmError::Argument { .. })
        ));
        let mut norms = tuner(
            &model,
            Tuned {
                norms: true,
                ..Tuned::NONE
            },
        );
        train(&mut norms, 2);
        let moved = norms.model();
        assert_ne!(moved.norm, model.norm);
        assert_eq!(
            (&moved.embedding, &moved.lm_head),
            (&model.embedding, &model.lm_head)
        );
        for (moved, block) in moved.blocks.iter().zip(&model.blocks) {
            assert_ne!(moved.norms[0], block.norms[0]);
            for kind in block.spec().layers() {
                assert_eq!(moved.layer(kind), block.layer(kind));
            }
        }
        let mut other = tuner(&model, Tuned::ALL);
        assert!(matches!(
            other.restore(&norms.state()),
            Err(AqlmError::Shape { .. })
        ));
    }
}
