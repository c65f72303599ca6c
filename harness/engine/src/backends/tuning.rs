use std::path::Path;

use aqlm_optimized::cpu::llama::Sequences;
use aqlm_reference::{llama as reference, llama::rms_norm};
use aqlm_vocabulary::{AdamDecay, LayerId, ModelWeights, Target, Tuned, TuningState};
use ndarray::{Array2, Axis};

use super::{Backend, CpuBackend, Memory, ReferenceBackend};
use aqlm_formats::Result;

/// What end-to-end fine-tuning needs of a machine on top of [`Backend`].
///
/// Gradients are added up over several calls before a step uses them, and parameters and moments travel as a
/// whole: what accumulation over minibatches, data parallelism and resumption have in common. Methods fail as
/// [`Backend`]'s do.
#[allow(clippy::missing_errors_doc, reason = "said once, for all methods, above")]
pub trait ModelTuning: Backend {
    /// a model being trained, with its gradients and Adam's moments
    type Tuner;
    /// the gradient with respect to one decoded weight, [out_features, in_features]
    type WeightGradient;

    /// Bounds the memory of the activations of training in steps of `batch` sequences, and of the hidden
    /// states of a teacher, which beyond the bound lie in a file in the folder `spill`. No result depends on
    /// it.
    fn bound_tuning_memory(&mut self, memory: Memory, spill: &Path, batch: usize) -> Result<()>;

    /// A model before its first step.
    fn tuner(&self, weights: &ModelWeights, tuned: Tuned, decay: AdamDecay) -> Result<Self::Tuner>;

    /// Loss of each sequence, summed over its positions; sequences are of equal length.
    fn losses(
        &self,
        tuner: &mut Self::Tuner,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
    ) -> Result<Vec<f64>>;

    /// [`ModelTuning::losses`], adding `scale` times their gradients to those of earlier calls. `observe` is
    /// given the gradients with respect to the decoded weights, in parts to be added up.
    fn accumulate(
        &self,
        tuner: &mut Self::Tuner,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        observe: &mut dyn FnMut(usize, LayerId, &Self::WeightGradient),
    ) -> Result<Vec<f64>>;

    /// One step of Adam along the gradients added up so far, which are then forgotten.
    fn step(&self, tuner: &mut Self::Tuner, lr: f64);

    /// Everything that training goes on from.
    fn state(&self, tuner: &Self::Tuner) -> TuningState;

    /// Goes on from a state.
    fn restore(&self, tuner: &mut Self::Tuner, state: &TuningState) -> Result<()>;

    /// The model's weights as they are now, at the backend's own precision.
    fn weights(&self, tuner: &Self::Tuner) -> ModelWeights;

    /// The name of what is not finite first on these sequences: a parameter, or a layer's output.
    fn first_not_finite(&self, tuner: &mut Self::Tuner, sequences: &[&[u32]]) -> Result<Option<String>>;

    /// What the output layer is given for one of the sequences: hidden states behind the final norm, [tokens,
    /// hidden].
    fn head_input(&self, head: &Self::Head, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f32>>;
}

impl ModelTuning for ReferenceBackend {
    type Tuner = reference::ModelTuner;
    type WeightGradient = Array2<f64>;

    fn bound_tuning_memory(&mut self, memory: Memory, spill: &Path, batch: usize) -> Result<()> {
        self.bound_memory(memory, spill, batch)
    }

    fn tuner(&self, weights: &ModelWeights, tuned: Tuned, decay: AdamDecay) -> Result<Self::Tuner> {
        Ok(reference::ModelTuner::new(self.config(), weights, tuned, decay)?)
    }

    fn losses(
        &self,
        tuner: &mut Self::Tuner,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
    ) -> Result<Vec<f64>> {
        Ok(tuner.losses(sequences, targets)?)
    }

    fn accumulate(
        &self,
        tuner: &mut Self::Tuner,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        observe: &mut dyn FnMut(usize, LayerId, &Array2<f64>),
    ) -> Result<Vec<f64>> {
        Ok(tuner.accumulate(sequences, targets, scale, observe)?)
    }

    fn step(&self, tuner: &mut Self::Tuner, lr: f64) {
        tuner.step(lr);
    }

    fn state(&self, tuner: &Self::Tuner) -> TuningState {
        tuner.state()
    }

    fn restore(&self, tuner: &mut Self::Tuner, state: &TuningState) -> Result<()> {
        Ok(tuner.restore(state)?)
    }

    fn weights(&self, tuner: &Self::Tuner) -> ModelWeights {
        tuner.model().to_weights()
    }

    fn first_not_finite(&self, tuner: &mut Self::Tuner, sequences: &[&[u32]]) -> Result<Option<String>> {
        Ok(tuner.first_not_finite(sequences)?)
    }

    fn head_input(&self, head: &Self::Head, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f32>> {
        let normed = rms_norm(
            hidden[sequence].view(),
            head.norm.view(),
            self.config().final_norm.epsilon,
        );
        Ok(normed.mapv(|value| value as f32))
    }
}

impl ModelTuning for CpuBackend {
    type Tuner = aqlm_optimized::cpu::llama::ModelTuner;
    type WeightGradient = Array2<f32>;

    fn bound_tuning_memory(&mut self, memory: Memory, spill: &Path, batch: usize) -> Result<()> {
        self.bound_training(memory, spill, batch)
    }

    fn tuner(&self, weights: &ModelWeights, tuned: Tuned, decay: AdamDecay) -> Result<Self::Tuner> {
        let positions = self.positions();
        let activations = self.activations();
        Ok(Self::Tuner::new(
            self.config(),
            positions,
            weights,
            tuned,
            decay,
            activations,
        )?)
    }

    fn losses(
        &self,
        tuner: &mut Self::Tuner,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
    ) -> Result<Vec<f64>> {
        Ok(tuner.losses(sequences, targets)?)
    }

    fn accumulate(
        &self,
        tuner: &mut Self::Tuner,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        observe: &mut dyn FnMut(usize, LayerId, &Array2<f32>),
    ) -> Result<Vec<f64>> {
        Ok(tuner.accumulate(sequences, targets, scale, observe)?)
    }

    fn step(&self, tuner: &mut Self::Tuner, lr: f64) {
        tuner.step(lr);
    }

    fn state(&self, tuner: &Self::Tuner) -> TuningState {
        tuner.state()
    }

    fn restore(&self, tuner: &mut Self::Tuner, state: &TuningState) -> Result<()> {
        Ok(tuner.restore(state)?)
    }

    fn weights(&self, tuner: &Self::Tuner) -> ModelWeights {
        tuner.model().to_weights()
    }

    fn first_not_finite(&self, tuner: &mut Self::Tuner, sequences: &[&[u32]]) -> Result<Option<String>> {
        Ok(tuner.first_not_finite(sequences)?)
    }

    fn head_input(&self, head: &Self::Head, hidden: &Self::Hidden, sequence: usize) -> Result<Array2<f32>> {
        let x = hidden.read(&[sequence])?;
        Ok(head.normed(x.index_axis(Axis(0), 0)))
    }
}
