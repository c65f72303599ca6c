//! What the quantizer's operations share: losses as the reference evaluates them in f64, and what rounding
//! makes of them.

use aqlm_reference::{decode, layer_error};
use aqlm_vocabulary::{LayerSettings, Purpose, QuantizedMatrix, StreamKey, sweep_order};
use ndarray::Array2;

use super::Cost;
use crate::Comparison;
use crate::cases::{Case, LayerCase, LayerData};
use crate::compare::{Against, Findings};
use crate::keep::{Operands, Tensors};
use crate::limits::Measure;
use aqlm_formats::Result;

/// A layer, its weight widened.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(super) problem: LayerCase,
    pub(super) data: LayerData,
    pub(super) weight: Array2<f64>,
    /// the random streams of the operation itself
    pub(super) key: StreamKey,
}

impl Operands for Layer {
    fn add_to(&self, tensors: &mut Tensors) {
        tensors.layer(&self.data);
    }
}

impl Layer {
    pub(super) fn new(case: &Case) -> Result<Self> {
        let problem = case.layer()?;
        let data = problem.data(case.seed);
        Ok(Self {
            problem,
            weight: data.weight.mapv(f64::from),
            data,
            key: problem.key(case.seed),
        })
    }

    pub(super) fn settings(&self) -> LayerSettings {
        self.problem.settings()
    }

    /// The order in which a search visits (input group, codebook).
    pub(super) fn order(&self) -> Vec<(usize, usize)> {
        let matrix = &self.data.matrix;
        let mut rng = self.key.stream(Purpose::Sweep);
        sweep_order(&mut rng, matrix.groups().1, matrix.scheme().num_codebooks)
    }

    /// The weight and H; the product of both.
    pub(super) fn cost(&self) -> Cost {
        let (out, inputs) = self.weight.dim();
        Cost {
            bytes: (out * inputs + inputs * inputs) * size_of::<f32>(),
            products: vec![[out, inputs, inputs]],
        }
    }

    /// The layer error of a matrix.
    pub(super) fn loss(&self, matrix: &QuantizedMatrix) -> f64 {
        layer_error(&self.weight, &decode(matrix), &self.data.hessian)
    }

    /// tr(R |H| RT) with R = |W| + |Q|: the size of what a loss is the sum of, which its rounding is relative
    /// to.
    pub(super) fn magnitude(&self, matrix: &QuantizedMatrix) -> f64 {
        let mut absolute = matrix.clone();
        absolute.tune(|mut codebooks, mut scales| {
            codebooks.mapv_inplace(f64::abs);
            scales.mapv_inplace(f64::abs);
        });
        let rows = self.weight.mapv(f64::abs) + decode(&absolute);
        (rows.dot(&self.data.hessian.mapv(f64::abs)) * &rows).sum()
    }

    /// ln of the ratio of two losses, both raised by what an error of one epsilon in every number comes to,
    /// so that optima of (nearly) zero are not compared by their rounding.
    pub(super) fn excess(
        &self,
        check: Against,
        found: &QuantizedMatrix,
        expected: &QuantizedMatrix,
    ) -> Result<f64> {
        let floor = check.floor(self.magnitude(expected))?;
        Ok(((self.loss(found) + floor) / (self.loss(expected) + floor)).ln())
    }

    /// Comparisons of a search, and where they hold, how far its loss is above the reference's.
    pub(super) fn findings(
        &self,
        check: Against,
        comparisons: Vec<Comparison>,
        found: &QuantizedMatrix,
        expected: &QuantizedMatrix,
    ) -> Result<Findings> {
        let excess = if comparisons.iter().all(Comparison::holds) {
            Some(self.excess(check, found, expected)?)
        } else {
            None
        };
        Ok(Findings { comparisons, excess })
    }

    /// A loss that must not be above another: by how much it is, as a share of the magnitudes of both.
    pub(super) fn not_above(
        &self,
        check: Against,
        what: &str,
        found: &QuantizedMatrix,
        bound: (f64, &QuantizedMatrix),
    ) -> Result<Comparison> {
        let magnitude = self.magnitude(found).max(self.magnitude(bound.1));
        let above = self.loss(found) - bound.0;
        // written so that NaN stays
        let share = if above <= 0.0 { 0.0 } else { above / magnitude };
        check.value(Measure::Loss, what, share)
    }
}

/// NaN unless a matrix has the scheme, shapes, and codes in range and finite numbers that it must have.
pub(super) fn malformed(matrix: &QuantizedMatrix, like: &QuantizedMatrix) -> f64 {
    let rebuilt = QuantizedMatrix::new(
        matrix.scheme(),
        matrix.codes().clone(),
        matrix.codebooks().clone(),
        matrix.scales().clone(),
    );
    let fits = matrix.scheme() == like.scheme() && matrix.codes().dim() == like.codes().dim();
    if rebuilt.is_ok() && fits { 0.0 } else { f64::NAN }
}
