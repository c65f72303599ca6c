//! One layer's alternation on a GPU.

use std::sync::Arc;

use aqlm_optimized::cuda::Device;
use aqlm_optimized::cuda::quantizer::{Errors, LayerProblem, Layers, Outer, Trial};
use aqlm_vocabulary::{AqlmError, LayerSettings, Position, QuantizedMatrix, StreamKey, Update};
use ndarray::{Array2, Axis};

use crate::ops::{LayerOps, Proposal, TwoSidedLayer, TwoSidedOps};
use aqlm_formats::Result;

/// The steps of the alternation on a GPU, in f32 with decisions in f64.
#[derive(Clone)]
pub struct CudaLayers(Layers);

/// Errors of rows, and how many inputs a row has.
pub struct CudaErrors {
    errors: Errors,
    width: usize,
}

impl CudaLayers {
    /// On this device.
    ///
    /// # Errors
    /// `Device`, with a message that names what is missing.
    pub fn new(device: Arc<Device>) -> Result<Self> {
        Ok(Self(Layers::new(device).map_err(AqlmError::from)?))
    }

    /// For work on several layers at the same time: up to one for each, with a stream of its own, as far as
    /// the device's memory holds layers of so many weights at once.
    ///
    /// # Errors
    /// `Device`.
    pub fn beside(&self, layers: usize, weights: usize) -> Result<Vec<Self>> {
        let beside = self.0.beside(layers, weights).map_err(AqlmError::from)?;
        Ok(beside.into_iter().map(Self).collect())
    }

    /// Waits until the device has done everything that was asked of it, for timings.
    ///
    /// # Errors
    /// `Device`, also when an earlier kernel failed.
    pub fn wait(&self) -> Result<()> {
        Ok(self.0.wait().map_err(AqlmError::from)?)
    }
}

impl LayerOps for CudaLayers {
    type Problem = LayerProblem;
    type Trial = Trial;
    type Outer = Outer;

    fn problem(
        &self,
        weight: &Array2<f32>,
        hessian: &Array2<f64>,
        settings: &LayerSettings,
    ) -> Result<LayerProblem> {
        Ok(self
            .0
            .problem(weight, hessian, settings)
            .map_err(AqlmError::from)?)
    }

    fn shape(&self, problem: &LayerProblem) -> (usize, usize) {
        problem.shape()
    }

    fn dead_inputs(&self, problem: &LayerProblem) -> usize {
        problem.dead_inputs()
    }

    fn initialize(&self, problem: &LayerProblem, settings: &LayerSettings, key: StreamKey) -> Result<Trial> {
        Ok(problem.initialize(settings, key).map_err(AqlmError::from)?)
    }

    fn trial(&self, problem: &LayerProblem, matrix: QuantizedMatrix) -> Result<Trial> {
        Ok(problem.trial(&matrix).map_err(AqlmError::from)?)
    }

    fn update(&self, problem: &LayerProblem, trial: Trial, update: &Update) -> Result<Trial> {
        Ok(problem.update(trial, update).map_err(AqlmError::from)?)
    }

    fn search(&self, problem: &LayerProblem, trial: Trial, order: &[Position], beam: usize) -> Result<Trial> {
        Ok(problem.search(trial, order, beam).map_err(AqlmError::from)?)
    }

    fn loss(&self, problem: &LayerProblem, trial: &Trial) -> f64 {
        problem.loss(trial)
    }

    fn matrix(&self, problem: &LayerProblem, trial: &Trial) -> Result<QuantizedMatrix> {
        Ok(problem.matrix(trial).map_err(AqlmError::from)?)
    }

    fn retargeted(&self, problem: &LayerProblem, target: &Array2<f32>) -> Result<LayerProblem> {
        Ok(problem.retargeted(target).map_err(AqlmError::from)?)
    }

    fn outer(&self, outer: &Array2<f64>) -> Result<Outer> {
        Ok(self.0.outer(outer).map_err(AqlmError::from)?)
    }

    fn image(
        &self,
        problem: &LayerProblem,
        outer: Option<&Outer>,
        dense: &Array2<f64>,
    ) -> Result<Array2<f64>> {
        let image = problem.image(outer, &dense.mapv(|value| value as f32));
        Ok(image.map_err(AqlmError::from)?.mapv(f64::from))
    }
}

impl TwoSidedOps for CudaLayers {
    type Errors = CudaErrors;

    fn update_two_sided(
        &self,
        problem: &LayerProblem,
        outer: &Outer,
        _layer: &TwoSidedLayer,
        matrix: &QuantizedMatrix,
        update: &Update,
    ) -> Result<QuantizedMatrix> {
        Ok(problem
            .update_two_sided(outer, matrix, update)
            .map_err(AqlmError::from)?)
    }
    fn loss_two_sided(
        &self,
        problem: &LayerProblem,
        outer: &Outer,
        _layer: &TwoSidedLayer,
        matrix: &QuantizedMatrix,
    ) -> Result<f64> {
        Ok(problem.loss_two_sided(outer, matrix).map_err(AqlmError::from)?)
    }

    fn errors(
        &self,
        problem: &LayerProblem,
        _layer: &TwoSidedLayer,
        matrix: &QuantizedMatrix,
    ) -> Result<CudaErrors> {
        let errors = problem.errors(matrix).map_err(AqlmError::from)?;
        let width = problem.shape().1;
        Ok(CudaErrors { errors, width })
    }

    fn propose(
        &self,
        problem: &LayerProblem,
        outer: &Outer,
        _layer: &TwoSidedLayer,
        (errors, matrix, rows): (&CudaErrors, &QuantizedMatrix, &[usize]),
        order: &[Position],
        beam: usize,
    ) -> Result<Proposal<CudaErrors>> {
        let from = (&errors.errors, matrix, rows);
        let found = problem
            .propose(outer, from, order, beam)
            .map_err(AqlmError::from)?;
        let moved = found.codes.outer_iter().zip(rows);
        let moved = moved.map(|(row, &at)| row != matrix.codes().index_axis(Axis(0), at));
        Ok(Proposal {
            moved: moved.collect(),
            linear: found.linear,
            products: found.products.mapv(f64::from),
            codes: found.codes,
            errors: CudaErrors {
                errors: found.errors,
                width: errors.width,
            },
        })
    }

    fn accept(
        &self,
        errors: &mut CudaErrors,
        proposal: &Proposal<CudaErrors>,
        rows: &[usize],
        accepted: &[usize],
    ) -> Result<()> {
        let found = &proposal.errors.errors;
        let taken = self
            .0
            .accept(errors.width, &mut errors.errors, found, rows, accepted);
        Ok(taken.map_err(AqlmError::from)?)
    }
}
