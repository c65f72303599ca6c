use aqlm_vocabulary::{
    AqlmError, FeedbackSettings, GroupOrder, Initialization, LayerSettings, Position, QuantizedMatrix,
    Result, StreamKey, Update,
};
use faer::Par;
use ndarray::Array2;

use super::beam_search::search;
use super::codebook_update::{Stop, update_trial};
use super::em_init::{diagonal_blocks, em_init_of_blocks};
use super::feedback_init::{self, Factor};
use super::problem::{Problem, check_hessian, inner};
use super::residual_init::residual_init;
use super::trial::Trial;
use crate::cpu::matvec::expect_len;
use crate::cpu::product::product;

/// A layer to be quantized, and the steps of its alternation (paper algorithm 1, lines 4 to 12).
///
/// Every step optimises under H with `settings.damping` x mean(diag H) added to its diagonal.
/// [`LayerProblem::loss`] uses H without damping.
#[derive(Debug)]
pub struct LayerProblem {
    /// under the damped H
    problem: Problem,
    /// damped H_jj of every input group, for the initialisation; none for rows with another target
    blocks: Vec<Vec<f64>>,
    /// the factor of the damped H in this order of groups, if the initialization needs it
    factor: Option<(GroupOrder, Factor)>,
    /// the damping's addition to the diagonal
    ridge: f64,
    /// tr(W H W^T) under H without damping
    norm: f64,
    dead_inputs: usize,
}

impl LayerProblem {
    /// The weight is [out_features, in_features], H [in_features, in_features] and symmetric.
    ///
    /// # Errors
    /// `Shape`, `NotFinite` (naming weight or H), `NotPositiveDefinite` when H has a negative diagonal entry,
    /// `Argument` for a damping that is not a finite number >= 0.
    pub fn new(weight: &Array2<f32>, hessian: &Array2<f64>, settings: &LayerSettings) -> Result<Self> {
        validate(weight, hessian, settings.damping)?;
        let ridge = settings.damping * hessian.diag().sum() / hessian.nrows().max(1) as f64;
        let mut damped = hessian.as_standard_layout().into_owned();
        damped.diag_mut().mapv_inplace(|x| x + ridge);
        let problem = Problem::new(weight, &damped)?;
        let factor = match settings.init {
            Initialization::Feedback(FeedbackSettings { order, .. }) => {
                settings.scheme.groups(weight.nrows(), weight.ncols())?;
                Some((order, Factor::new(&damped, settings.scheme.in_group_size, order)?))
            }
            _ => None,
        };
        // The contribution of the damping is known and is subtracted.
        let norm = problem.norm() - ridge * inner(&problem.weight, &problem.weight);
        Ok(Self {
            problem,
            blocks: diagonal_blocks(&damped, settings.scheme.in_group_size),
            factor,
            ridge,
            norm,
            dead_inputs: hessian.diag().iter().filter(|&&x| x == 0.0).count(),
        })
    }

    /// (out_features, in_features).
    pub fn shape(&self) -> (usize, usize) {
        self.problem.weight.dim()
    }

    /// Number of inputs that the calibration data never excite: zeros on the diagonal of H.
    pub fn dead_inputs(&self) -> usize {
        self.dead_inputs
    }

    /// Initial codes and codebooks, with the random numbers of `key`.
    ///
    /// # Errors
    /// `NotDivisible`; `NotPositiveDefinite` when H is indefinite.
    pub fn initialize(&self, settings: &LayerSettings, key: StreamKey) -> Result<Trial> {
        let weight = &self.problem.weight;
        let first = match settings.init {
            Initialization::Residual => residual_init(weight, settings, key)?,
            Initialization::Em { rounds } => em_init_of_blocks(weight, &self.blocks, settings, rounds, key)?,
            Initialization::Feedback(feedback) => {
                let factor = match &self.factor {
                    Some((order, factor)) if *order == feedback.order => factor,
                    _ => {
                        return Err(AqlmError::argument(
                            "init",
                            "the initialization with which the layer was made",
                            "feedback",
                        ));
                    }
                };
                return feedback_init::initialize(&self.problem, factor, settings, &feedback, key);
            }
        };
        Ok(Trial::new(&self.problem, first))
    }

    /// Some rows with a target of their own, [rows, in_features], under the same damped H, which is shared.
    ///
    /// # Errors
    /// `Shape` when the rows have another number of inputs.
    pub fn retargeted(&self, target: &Array2<f32>) -> Result<Self> {
        let problem = self.problem.retargeted(target)?;
        let norm = problem.norm() - self.ridge * inner(&problem.weight, &problem.weight);
        Ok(Self {
            problem,
            blocks: Vec::new(),
            factor: None,
            ridge: self.ridge,
            norm,
            dead_inputs: self.dead_inputs,
        })
    }

    /// D H under the damped H for D [rows, in_features], or H_O D H with an H_O [rows, rows].
    ///
    /// # Errors
    /// `Shape` when the rows have another number of inputs, or H_O does not fit them.
    pub fn image(&self, outer: Option<&Array2<f32>>, dense: &Array2<f32>) -> Result<Array2<f32>> {
        expect_len("inputs of rows", self.problem.weight.ncols(), dense.ncols())?;
        let image = self.problem.image(dense);
        let Some(outer) = outer else {
            return Ok(image);
        };
        check_hessian(outer, dense.nrows())?;
        Ok(product(outer.view(), image.view(), Par::rayon(0)))
    }

    /// A trial of a quantized matrix from any source.
    ///
    /// # Errors
    /// `Shape` when its shape differs from the layer's.
    pub fn trial(&self, matrix: QuantizedMatrix) -> Result<Trial> {
        self.problem.check(&matrix)?;
        Ok(Trial::new(&self.problem, matrix))
    }

    /// The trial with codebooks and scales updated for its codes, only as far as the alternation benefits.
    ///
    /// # Errors
    /// `NotPositiveDefinite` when H is indefinite, `NotFinite` when Adam's parameters overflow.
    pub fn update(&self, trial: Trial, update: &Update) -> Result<Trial> {
        update_trial(&self.problem, trial, update, Stop::ALTERNATION)
    }

    /// The trial with the codes found by one sweep of beam search over `order`.
    ///
    /// # Errors
    /// `Argument` for a beam of 0 or an order with positions outside the matrix.
    pub fn search(&self, trial: Trial, order: &[Position], beam: usize) -> Result<Trial> {
        Ok(Trial::new(
            &self.problem,
            search(&self.problem, trial, order, beam)?,
        ))
    }

    /// The relative layer error, tr((W-Q) H (W-Q)^T) / tr(W H W^T) under H without damping; 0 when both are
    /// zero.
    pub fn loss(&self, trial: &Trial) -> f64 {
        let error = (trial.loss - self.ridge * inner(&trial.error, &trial.error)).max(0.0);
        if error == 0.0 { 0.0 } else { error / self.norm }
    }
}

/// Refuses a weight and an H that cannot belong to a layer.
pub(crate) fn validate(weight: &Array2<f32>, hessian: &Array2<f64>, damping: f64) -> Result<()> {
    check_hessian(hessian, weight.ncols())?;
    let not_finite = |what: &str, (row, column): (usize, usize), value: f64| AqlmError::NotFinite {
        what: what.into(),
        index: vec![row, column],
        value,
    };
    if let Some((at, value)) = weight.indexed_iter().find(|(_, value)| !value.is_finite()) {
        return Err(not_finite("weight", at, f64::from(*value)));
    }
    if let Some((at, value)) = hessian.indexed_iter().find(|(_, value)| !value.is_finite()) {
        return Err(not_finite("hessian", at, *value));
    }
    if let Some(pivot) = hessian.diag().iter().position(|&x| x < 0.0) {
        return Err(AqlmError::NotPositiveDefinite {
            what: "hessian".into(),
            pivot,
        });
    }
    if damping >= 0.0 && damping.is_finite() {
        return Ok(());
    }
    Err(AqlmError::argument(
        "damping",
        "a finite number of at least 0",
        damping,
    ))
}
