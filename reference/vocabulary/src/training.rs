//! What can be done with a block or a model that is being trained, on every machine alike.

use ndarray::Array2;

use crate::{
    AqlmError, CodeChange, LayerId, ModelWeights, PartOutline, Rates, Result, StatePart, Target, TuningState,
};

/// Sums over sequences. Every part of the sequences adds one number per element.
///
/// Sums gathered from several devices and added in the order of the parts therefore have the same bits as
/// sums computed on one device.
pub trait PartSums {
    /// Takes the sums and resets them to zero.
    fn take(&mut self) -> Vec<f64>;

    /// Adds sums that another device returned from [`PartSums::take`].
    ///
    /// # Errors
    /// `Shape` when the other sums belong to other quantities. Then nothing has been added.
    fn add(&mut self, sums: &[f64]) -> Result<()>;

    /// [`PartSums::add`] of sums on the same device, which therefore need not pass through the host.
    ///
    /// # Errors
    /// As [`PartSums::add`].
    fn merge(&mut self, mut other: Self) -> Result<()>
    where
        Self: Sized,
    {
        self.add(&other.take())
    }

    /// Lets `add` fill sums that begin at zero, then adds these to the sums so far: one number per element,
    /// however often `add` adds.
    ///
    /// # Errors
    /// Those of `add`; as [`PartSums::add`].
    fn apart<E: From<AqlmError>>(
        &mut self,
        add: impl FnOnce(&mut Self) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E>
    where
        Self: Sized,
    {
        let before = self.take();
        add(self)?;
        let part = self.take();
        self.add(&before)?;
        Ok(self.add(&part)?)
    }
}

impl PartSums for Vec<f64> {
    fn take(&mut self) -> Vec<f64> {
        let zeros = vec![0.0; self.len()];
        std::mem::replace(self, zeros)
    }

    fn add(&mut self, sums: &[f64]) -> Result<()> {
        if sums.len() != self.len() {
            return Err(AqlmError::Shape {
                what: "sums".into(),
                expected: vec![self.len()],
                found: vec![sums.len()],
            });
        }
        for (to, part) in self.iter_mut().zip(sums) {
            *to += part;
        }
        Ok(())
    }
}

/// A block that is being trained on target outputs: its parameters, Adam's moments, and sums of gradients.
pub trait BlockTraining: PartSums {
    /// the block, resident
    type Block;

    /// Whether no parameter is trained.
    fn is_idle(&self) -> bool;

    /// One Adam step with this learning rate along the sums of gradients; then resets the sums.
    fn step(&mut self, lr: f64);

    /// The block with its current parameters.
    fn block(&self) -> &Self::Block;
}

/// A model whose codebooks, scales, norms, embedding and head are being trained (paper appendix A), with
/// fixed codes or together with its codes (PV-Tuning).
///
/// [`ModelTraining::accumulate`] adds up gradients until [`ModelTraining::step`] uses them. A step may thus
/// cover more sequences than fit in memory, or sums from several machines.
pub trait ModelTraining: PartSums {
    /// the gradient with respect to one decoded weight, [out_features, in_features]
    type WeightGradient;

    /// Loss of each sequence, summed over its positions; sequences are of equal length.
    ///
    /// # Errors
    /// `Shape` when targets do not fit the sequences, `TokenOutOfRange` when a token has no embedding.
    fn losses(&mut self, sequences: &[&[u32]], targets: &[Target<'_>]) -> Result<Vec<f64>>;

    /// Returns [`ModelTraining::losses`] and adds `scale` times their gradients to the sums. `observe`
    /// receives the gradients with respect to decoded weights, with block and layer, in parts that add up to
    /// the whole. Methods that weight Hessians by gradients start from these gradients.
    ///
    /// # Errors
    /// As [`ModelTraining::losses`]; gradients added before an error remain.
    fn accumulate(
        &mut self,
        sequences: &[&[u32]],
        targets: &[Target<'_>],
        scale: f64,
        observe: &mut dyn FnMut(usize, LayerId, &Self::WeightGradient),
    ) -> Result<Vec<f64>>;

    /// One step of the optimizer along the sums of gradients, which are then reset. Where codes are tuned,
    /// the step ends with the choice of new codes; it says how many groups changed.
    ///
    /// # Errors
    /// Errors of the machine. What was trained must not be used then.
    fn step(&mut self, rates: Rates) -> Result<CodeChange>;

    /// Number of steps taken.
    fn steps(&self) -> u32;

    /// The parts of the state that training needs to continue, except gradients that are not used yet: the
    /// parameters in the order of [`Parameter::selected`](crate::Parameter::selected), then every quantized
    /// matrix, block by block, if codes are tuned.
    fn outline(&self) -> Vec<PartOutline>;

    /// One part of the state, by its number in [`ModelTraining::outline`].
    ///
    /// # Errors
    /// Errors of the machine; `Internal` for a number that is none.
    fn state_part(&self, number: usize) -> Result<StatePart>;

    /// Rejects a part that does not belong at this number.
    ///
    /// # Errors
    /// `Shape` when it belongs to another model or selection, `CodeOutOfRange` for a code that its codebook
    /// does not have; errors of the machine.
    fn check_part(&self, number: usize, part: &StatePart) -> Result<()>;

    /// Takes over a part that [`ModelTraining::check_part`] accepts, of a state after `steps` steps.
    /// Gradients that are not used yet are discarded. After all parts, [`ModelTraining::restored`] must
    /// follow.
    ///
    /// # Errors
    /// Errors of the machine. What was trained must not be used then.
    fn restore_part(&mut self, steps: u32, number: usize, part: StatePart) -> Result<()>;

    /// Ends the taking over of a state after `steps` steps.
    ///
    /// # Errors
    /// Errors of the machine.
    fn restored(&mut self, steps: u32) -> Result<()>;

    /// All parts of the state.
    ///
    /// # Errors
    /// Errors of the machine.
    fn state(&self) -> Result<TuningState> {
        let mut state = TuningState {
            steps: self.steps(),
            parameters: Vec::new(),
            codes: Vec::new(),
        };
        for number in 0..self.outline().len() {
            match self.state_part(number)? {
                StatePart::Parameter(part) => state.parameters.push(part),
                StatePart::Codes(part) => state.codes.push(part),
            }
        }
        Ok(state)
    }

    /// Continues from a state of the same model and selection; gradients that are not used yet are discarded.
    ///
    /// # Errors
    /// `Shape` when the state belongs to another model or selection, `CodeOutOfRange` for a code that its
    /// codebook does not have. Then nothing is changed. Errors of the machine.
    fn restore(&mut self, state: &TuningState) -> Result<()> {
        let outline = self.outline();
        let is_parameter = |part: &&PartOutline| matches!(part, PartOutline::Parameter { .. });
        let parameters = outline.iter().filter(is_parameter).count();
        for (what, expected, found) in [
            (
                "parameters of a training state",
                parameters,
                state.parameters.len(),
            ),
            (
                "matrices with codes of a training state",
                outline.len() - parameters,
                state.codes.len(),
            ),
        ] {
            if expected != found {
                return Err(AqlmError::Shape {
                    what: what.into(),
                    expected: vec![expected],
                    found: vec![found],
                });
            }
        }
        let part = |number: usize| match number.checked_sub(parameters) {
            None => StatePart::Parameter(state.parameters[number].clone()),
            Some(number) => StatePart::Codes(state.codes[number].clone()),
        };
        for number in 0..outline.len() {
            self.check_part(number, &part(number))?;
        }
        for number in 0..outline.len() {
            self.restore_part(state.steps, number, part(number))?;
        }
        self.restored(state.steps)
    }

    /// The model's current weights, at the machine's own precision.
    ///
    /// # Errors
    /// Errors of the machine.
    fn weights(&self) -> Result<ModelWeights>;

    /// The checkpoint name of the first trained parameter, or matrix with a buffer, that is not finite. If
    /// all are finite, the first layer whose output on these sequences is not.
    ///
    /// # Errors
    /// As [`ModelTraining::losses`].
    fn first_not_finite(&mut self, sequences: &[&[u32]]) -> Result<Option<String>>;
}

/// Sums over the gradients G of one layer's weight, [out_features, in_features].
#[derive(Debug, Clone, PartialEq)]
pub struct GradientSums {
    /// of G G^T, [out_features, out_features]
    pub outer: Array2<f64>,
    /// of G^T G, [in_features, in_features]
    pub inner: Array2<f64>,
}

impl GradientSums {
    /// Before the first gradient of a weight of this shape.
    pub fn zeros((out_features, in_features): (usize, usize)) -> Self {
        Self {
            outer: Array2::zeros((out_features, out_features)),
            inner: Array2::zeros((in_features, in_features)),
        }
    }
}
