use ndarray::{Array1, Array2};
use rayon::prelude::*;

use super::{
    Model, ModelGradients, Rotary, block_forward_traced, embed, logits, model_backward, model_loss,
    quantized_gradients,
};
use crate::optimizer::Stepper;
use crate::pv::{TunedCodes, allowances};
use aqlm_vocabulary::{
    AqlmError, ArchSpec, CodeChange, CodeState, LayerId, ModelTraining, ModelTuning, ModelWeights, NormPlace,
    Parameter, ParameterState, PartOutline, PartSums, QuantizedMatrix, Rates, Result, StatePart, StreamKey,
    Target, codebook_order,
};

/// A model whose codebooks, scales, norms, embedding and head are being trained (paper appendix A), with
/// fixed codes or together with its codes (PV-Tuning).
///
/// See [`ModelTraining`]. Gradients are observed whole, one for each sequence.
#[derive(Debug, Clone)]
pub struct ModelTuner {
    model: Model,
    tuning: ModelTuning,
    steps: u32,
    parameters: Vec<TunedParameter>,
    /// of every quantized matrix, if codes are tuned
    codes: Vec<TunedLayer>,
}

#[derive(Debug, Clone)]
struct TunedParameter {
    parameter: Parameter,
    gradient: Array1<f64>,
    stepper: Stepper,
}

/// The codes of one matrix.
#[derive(Debug, Clone)]
struct TunedLayer {
    block: usize,
    layer: LayerId,
    codes: TunedCodes,
    /// of the last step; empty before the first
    margins: Array2<f64>,
}

impl ModelTuner {
    /// The tuner before the first step.
    ///
    /// # Errors
    /// `Argument` when `tuning` selects nothing in this model or its settings are out of their range; those
    /// of [`Model::from_weights`].
    pub fn new(arch: &ArchSpec, weights: &ModelWeights, tuning: &ModelTuning) -> Result<Self> {
        let model = Model::from_weights(arch, weights)?;
        let quantized = weights.quantized();
        let parameters: Vec<TunedParameter> =
            Parameter::selected(&arch.blocks, &quantized, arch.tied, tuning.tuned)
                .into_iter()
                .map(|parameter| {
                    let len = values(&model, parameter).len();
                    TunedParameter {
                        parameter,
                        gradient: Array1::zeros(len),
                        stepper: Stepper::new(tuning.optimizer, len),
                    }
                })
                .collect();
        let mut codes = Vec::new();
        if let Some(settings) = tuning.codes {
            tuning.check_codes()?;
            for (block, layers) in quantized.iter().enumerate() {
                for &layer in layers {
                    let matrix = quantized_layer(&model, block, layer);
                    codes.push(TunedLayer {
                        block,
                        layer,
                        codes: TunedCodes::new(matrix, settings),
                        margins: Array2::zeros((0, 0)),
                    });
                }
            }
        }
        if parameters.is_empty() && codes.is_empty() {
            return Err(AqlmError::argument(
                "parameters to train",
                "some that this model has",
                "none",
            ));
        }
        Ok(Self {
            model,
            tuning: *tuning,
            steps: 0,
            parameters,
            codes,
        })
    }

    /// The model with its current parameters.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How clearly the last step decided on each group's codes, one array a quantized matrix (see
    /// [`Recoded::margins`](crate::pv::Recoded::margins)).
    pub fn margins(&self) -> impl Iterator<Item = &Array2<f64>> {
        self.codes.iter().map(|tuned| &tuned.margins)
    }

    fn add(&mut self, gradients: &ModelGradients) {
        let model = &self.model;
        self.parameters.par_iter_mut().for_each(|tuned| {
            tuned.gradient += &gradient(model, gradients, tuned.parameter);
        });
        self.codes.par_iter_mut().for_each(|tuned| {
            *tuned.codes.gradient_mut() += &gradients.blocks[tuned.block].layers[tuned.layer.index()];
        });
    }

    /// Moves the buffers and chooses new codes, under codebooks and scales that have moved already.
    fn step_codes(&mut self, code_lr: f64) -> Result<CodeChange> {
        let Some(settings) = self.tuning.codes else {
            return Ok(CodeChange::default());
        };
        for tuned in &mut self.codes {
            tuned.codes.move_buffer(code_lr);
        }
        let norms: Vec<Array2<f64>> = self
            .codes
            .iter()
            .map(|tuned| tuned.codes.differences(matrix(&self.model, tuned)))
            .collect();
        let counts = allowances(&norms, settings.max_change, settings.budget);
        let mut change = CodeChange::default();
        for (tuned, count) in self.codes.iter_mut().zip(counts) {
            let matrix = matrix(&self.model, tuned).clone();
            let key = StreamKey {
                seed: self.tuning.seed,
                block: tuned.block,
                layer: Some(tuned.layer),
            };
            let order = codebook_order(key, self.steps, matrix.scheme().num_codebooks);
            let recoded = tuned.codes.recode(&matrix, count, &order);
            change += CodeChange {
                changed: recoded.changed,
                groups: recoded.margins.len(),
            };
            tuned.margins = recoded.margins;
            let matrix = tuned.codes.refitted(matrix.with_codes(recoded.codes)?)?;
            tuned.codes.decay(&matrix);
            self.model.blocks[tuned.block].set_layer(tuned.layer, matrix)?;
        }
        Ok(change)
    }
}

/// A number beyond the parts of a state, or another kind of part than the one checked.
fn no_part() -> AqlmError {
    AqlmError::Internal("a part of a training state that does not exist".into())
}

/// A quantized layer's matrix.
fn quantized_layer(model: &Model, block: usize, layer: LayerId) -> &QuantizedMatrix {
    model.blocks[block].quantized(layer).expect(QUANTIZED_ONLY)
}

/// The matrix whose codes are tuned.
fn matrix<'a>(model: &'a Model, tuned: &TunedLayer) -> &'a QuantizedMatrix {
    quantized_layer(model, tuned.block, tuned.layer)
}

impl PartSums for ModelTuner {
    fn take(&mut self) -> Vec<f64> {
        let take = |tuned: &mut TunedParameter| {
            let zeros = Array1::zeros(tuned.gradient.len());
            std::mem::replace(&mut tuned.gradient, zeros)
        };
        let mut sums: Vec<f64> = self.parameters.iter_mut().flat_map(take).collect();
        for tuned in &mut self.codes {
            let gradient = tuned.codes.gradient_mut();
            sums.extend(gradient.iter());
            gradient.fill(0.0);
        }
        sums
    }

    fn add(&mut self, sums: &[f64]) -> Result<()> {
        let of_parameters: usize = self.parameters.iter().map(|tuned| tuned.gradient.len()).sum();
        let of_codes: usize = self.codes.iter().map(|tuned| tuned.codes.buffer().len()).sum();
        let expected = of_parameters + of_codes;
        if sums.len() != expected {
            return Err(AqlmError::Shape {
                what: "sums of gradients".into(),
                expected: vec![expected],
                found: vec![sums.len()],
            });
        }
        let gradients = self.parameters.iter_mut().flat_map(|tuned| &mut tuned.gradient);
        let of_codes = self.codes.iter_mut().flat_map(|tuned| tuned.codes.gradient_mut());
        gradients
            .chain(of_codes)
            .zip(sums)
            .for_each(|(to, part)| *to += part);
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

    fn step(&mut self, rates: Rates) -> Result<CodeChange> {
        self.steps = self.steps.saturating_add(1);
        for tuned in &mut self.parameters {
            let mut moved = values(&self.model, tuned.parameter);
            tuned.stepper.step(rates.lr, moved.view_mut(), &tuned.gradient);
            set_values(&mut self.model, tuned.parameter, &moved);
            tuned.gradient.fill(0.0);
        }
        self.step_codes(rates.code_lr)
    }

    fn steps(&self) -> u32 {
        self.steps
    }

    fn outline(&self) -> Vec<PartOutline> {
        let arch = &self.model.arch;
        let of_parameter = |tuned: &TunedParameter| PartOutline::Parameter {
            parameter: tuned.parameter,
            name: tuned.parameter.name(arch),
            len: tuned.gradient.len(),
        };
        let of_codes = |tuned: &TunedLayer| {
            let (out_groups, in_groups, codebooks) = matrix(&self.model, tuned).codes().dim();
            PartOutline::Codes {
                block: tuned.block,
                layer: tuned.layer,
                name: arch.layer_name(tuned.block, tuned.layer),
                shape: [out_groups, in_groups, codebooks],
                len: tuned.codes.buffer().len(),
                first: tuned.codes.moments().0.len(),
                metric: tuned.codes.products().len(),
            }
        };
        let parameters = self.parameters.iter().map(of_parameter);
        parameters.chain(self.codes.iter().map(of_codes)).collect()
    }

    fn state_part(&self, number: usize) -> Result<StatePart> {
        if let Some(tuned) = self.parameters.get(number) {
            let (first, second) = tuned.stepper.moments();
            return Ok(StatePart::Parameter(ParameterState {
                parameter: tuned.parameter,
                name: tuned.parameter.name(&self.model.arch),
                values: values(&self.model, tuned.parameter).to_vec(),
                first: first.to_vec(),
                second: second.to_vec(),
            }));
        }
        let tuned = self
            .codes
            .get(number - self.parameters.len())
            .ok_or_else(no_part)?;
        let (first, second) = tuned.codes.moments();
        Ok(StatePart::Codes(CodeState {
            block: tuned.block,
            layer: tuned.layer,
            name: self.model.arch.layer_name(tuned.block, tuned.layer),
            codes: matrix(&self.model, tuned).codes().clone(),
            buffer: tuned.codes.buffer().iter().copied().collect(),
            first: first.to_vec(),
            second: second.to_vec(),
            metric: tuned.codes.products().to_vec(),
        }))
    }

    fn check_part(&self, number: usize, part: &StatePart) -> Result<()> {
        self.outline().get(number).ok_or_else(no_part)?.check(part)?;
        if let StatePart::Codes(part) = part {
            let matrix = quantized_layer(&self.model, part.block, part.layer);
            matrix.clone().with_codes(part.codes.clone())?;
        }
        Ok(())
    }

    fn restore_part(&mut self, steps: u32, number: usize, part: StatePart) -> Result<()> {
        let of_codes = number.checked_sub(self.parameters.len());
        match (of_codes, part) {
            (None, StatePart::Parameter(part)) => {
                let tuned = &mut self.parameters[number];
                tuned.gradient.fill(0.0);
                tuned.stepper = Stepper::resumed(self.tuning.optimizer, steps, part.first, part.second);
                set_values(&mut self.model, tuned.parameter, &Array1::from(part.values));
                Ok(())
            }
            (Some(number), StatePart::Codes(part)) => {
                let tuned = self.codes.get_mut(number).ok_or_else(no_part)?;
                let lists = [&part.buffer, &part.first, &part.second, &part.metric].map(Vec::as_slice);
                tuned.codes.restore(steps, lists)?;
                let block = &mut self.model.blocks[tuned.block];
                let matrix = block.quantized(tuned.layer).expect(QUANTIZED_ONLY);
                let matrix = matrix.clone().with_codes(part.codes)?;
                block.set_layer(tuned.layer, matrix)
            }
            _ => Err(no_part()),
        }
    }

    fn restored(&mut self, steps: u32) -> Result<()> {
        self.steps = steps;
        Ok(())
    }

    fn weights(&self) -> Result<ModelWeights> {
        Ok(self.model.to_weights())
    }

    fn first_not_finite(&mut self, sequences: &[&[u32]]) -> Result<Option<String>> {
        let model = &self.model;
        for tuned in &self.parameters {
            if broken(&values(model, tuned.parameter)) {
                return Ok(Some(tuned.parameter.name(&model.arch)));
            }
        }
        for tuned in &self.codes {
            if broken(tuned.codes.buffer()) {
                return Ok(Some(model.arch.layer_name(tuned.block, tuned.layer)));
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
                    return Ok(Some(last_layer(model, index)));
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

/// The name of the layer whose output a block adds last: of the MLP or, with experts, of the last expert.
fn last_layer(model: &Model, block: usize) -> String {
    let gated = model.arch.blocks[block].mlp.gated();
    let last = gated.last().expect("a block has an MLP");
    model.arch.layer_name(block, last.down)
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
    use aqlm_vocabulary::{AdamDecay, ChangeBudget, CodeSettings, Tuned};

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

    fn continuous(tuned: Tuned) -> ModelTuning {
        ModelTuning::of_parameters(tuned, AdamDecay::PAPER)
    }

    fn tuner(model: &Model, tuned: Tuned) -> ModelTuner {
        let mut tuner = ModelTuner::new(&model.arch, &model.to_weights(), &continuous(tuned)).unwrap();
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
            let rates = Rates {
                lr: 1e-2,
                code_lr: 2.0,
            };
            tuner.step(rates).unwrap();
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
        let state = whole.state().unwrap();
        let after = train(&mut whole, 4);
        assert!(after < 0.7 * before, "{before} to {after}");

        let mut resumed = tuner(&model, Tuned::ALL);
        resumed.restore(&state).unwrap();
        assert_eq!(train(&mut resumed, 4), after);
        assert_eq!(resumed.state().unwrap(), whole.state().unwrap());
        assert_eq!(resumed.model, whole.model);
    }

    #[test]
    fn only_what_is_selected_moves() {
        let model = student(53, false);
        assert!(matches!(
            ModelTuner::new(&model.arch, &model.to_weights(), &continuous(Tuned::NONE)),
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
            other.restore(&norms.state().unwrap()),
            Err(AqlmError::Shape { .. })
        ));
    }

    /// Settings under which codes change in a few steps.
    fn with_codes(model: &Model, change: impl FnOnce(&mut CodeSettings)) -> ModelTuner {
        let mut settings = CodeSettings {
            max_change: 0.2,
            ..CodeSettings::README
        };
        change(&mut settings);
        let tuning = ModelTuning {
            codes: Some(settings),
            seed: 3,
            ..continuous(Tuned::ALL)
        };
        let mut tuner = ModelTuner::new(&model.arch, &model.to_weights(), &tuning).unwrap();
        let start = tuner.state().unwrap();
        let mut exact = self::tuner(model, Tuned::ALL).state().unwrap();
        exact.codes = start.codes;
        tuner.restore(&exact).unwrap();
        tuner
    }

    #[test]
    fn a_budget_of_zero_is_end_to_end_tuning_bit_for_bit() {
        for optimizer in [AdamDecay::PAPER.into(), CodeSettings::README.optimizer] {
            let model = student(54, false);
            let tuning = ModelTuning {
                optimizer,
                ..continuous(Tuned::ALL)
            };
            let settings = CodeSettings {
                max_change: 0.0,
                ..CodeSettings::README
            };
            let with_codes = ModelTuning {
                codes: Some(settings),
                ..tuning
            };
            let of = |tuning: &ModelTuning| {
                let mut tuner = ModelTuner::new(&model.arch, &model.to_weights(), tuning).unwrap();
                let loss = train(&mut tuner, 4);
                (
                    loss,
                    tuner.model,
                    tuner
                        .parameters
                        .into_iter()
                        .map(|tuned| tuned.stepper)
                        .collect::<Vec<_>>(),
                )
            };
            assert_eq!(of(&tuning), of(&with_codes));
        }
    }

    #[test]
    fn codes_change_within_their_budget_and_go_on_from_a_state_exactly() {
        let model = student(55, false);
        for change in [
            |_: &mut CodeSettings| (),
            |settings: &mut CodeSettings| settings.budget = ChangeBudget::Model,
            |settings: &mut CodeSettings| {
                settings.optimizer.decay.beta1 = 0.5;
                settings.trust_ratio = Some(0.05);
                settings.delta_decay = 0.1;
            },
        ] {
            let mut whole = with_codes(&model, change);
            let codes = |tuner: &ModelTuner| -> Vec<ndarray::Array3<u16>> {
                tuner
                    .codes
                    .iter()
                    .map(|tuned| matrix(&tuner.model, tuned).codes().clone())
                    .collect()
            };
            let groups: usize = codes(&whole).iter().map(|codes| codes.len() / 2).sum();
            let before = codes(&whole);
            let targets = [Target::NextTokens; SEQUENCES.len()];
            whole
                .accumulate(&SEQUENCES, &targets, 1.0 / 12.0, &mut |_, _, _| ())
                .unwrap();
            let told = whole
                .step(Rates {
                    lr: 1e-2,
                    code_lr: 2.0,
                })
                .unwrap();
            let changed: usize = before
                .iter()
                .zip(&codes(&whole))
                .map(|(old, new)| {
                    old.lanes(ndarray::Axis(2))
                        .into_iter()
                        .zip(new.lanes(ndarray::Axis(2)))
                        .filter(|(a, b)| a != b)
                        .count()
                })
                .sum();
            // rounded up in each of three matrices
            assert!(changed > 0 && changed <= groups / 5 + 3, "{changed} of {groups}");
            assert_eq!((told.changed, told.groups), (changed, groups));
            train(&mut whole, 2);
            let state = whole.state().unwrap();
            let after = train(&mut whole, 3);
            let mut resumed = with_codes(&model, change);
            resumed.restore(&state).unwrap();
            assert_eq!(train(&mut resumed, 3), after);
            assert_eq!(resumed.state().unwrap(), whole.state().unwrap());
            assert_eq!(resumed.model, whole.model);

            let mut broken = state.clone();
            broken.codes[1].codes[[0, 0, 0]] = 4;
            assert!(matches!(
                resumed.restore(&broken),
                Err(AqlmError::CodeOutOfRange { .. })
            ));
            let mut other = state.clone();
            other.codes.swap(0, 1);
            assert!(matches!(resumed.restore(&other), Err(AqlmError::Shape { .. })));
            assert_eq!(resumed.first_not_finite(&SEQUENCES).unwrap(), None);
            let mut infinite = state.clone();
            infinite.codes[1].buffer.fill(f64::INFINITY);
            let mut tuner = with_codes(&model, change);
            tuner.restore(&infinite).unwrap();
            let name = tuner.first_not_finite(&SEQUENCES).unwrap();
            assert_eq!(name.as_deref(), Some("model.layers.0.mlp.down_proj"));
            assert_eq!(resumed.state().unwrap(), whole.state().unwrap());
        }
    }

    #[test]
    fn sums_of_several_tuners_add_up_to_those_of_one() {
        let model = student(56, false);
        let (mut one, mut two, mut whole) = (
            with_codes(&model, |_| ()),
            with_codes(&model, |_| ()),
            with_codes(&model, |_| ()),
        );
        let targets = [Target::NextTokens; 3];
        let nothing = &mut |_: usize, _: LayerId, _: &Array2<f64>| ();
        whole.accumulate(&SEQUENCES, &targets, 1.0, nothing).unwrap();
        one.accumulate(&SEQUENCES[..1], &targets[..1], 1.0, nothing)
            .unwrap();
        for sequence in 1..3 {
            two.accumulate(&SEQUENCES[sequence..=sequence], &targets[..1], 1.0, nothing)
                .unwrap();
            PartSums::add(&mut one, &two.take()).unwrap();
        }
        assert_eq!(one.take(), whole.take());
        assert!(matches!(
            PartSums::add(&mut one, &[1.0]),
            Err(AqlmError::Shape { .. })
        ));
    }
}
