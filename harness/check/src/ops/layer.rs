//! Shared by the quantizer's operations: losses, evaluated by the reference in f64, and limits for their
//! rounding.

use aqlm_reference::{decode, layer_error};
use aqlm_vocabulary::{LayerSettings, Position, Purpose, QuantizedMatrix, StreamKey, sweep_order};
use ndarray::Array2;

use super::{CaseData, Cost};
use crate::Comparison;
use crate::cases::{Case, LayerCase, LayerData};
use crate::compare::{Against, Findings};
use crate::keep::{Operands, Tensors};
use crate::limits::Measure;
use aqlm_formats::Result;

/// A layer with its weight in f64.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(super) problem: LayerCase,
    pub(super) data: LayerData,
    pub(super) weight: Array2<f64>,
    /// the operation's own random streams
    pub(super) key: StreamKey,
}

impl Operands for Layer {
    fn add_to(&self, tensors: &mut Tensors) {
        tensors.layer(&self.data);
    }
}

impl CaseData for Layer {
    fn new(case: &Case) -> Result<Self> {
        let problem = case.layer()?;
        let data = problem.data(case.seed);
        Ok(Self {
            problem,
            weight: data.weight.mapv(f64::from),
            data,
            key: problem.key(case.seed),
        })
    }

    /// The weight and H, and the product of both.
    fn cost(&self) -> Cost {
        let (out, inputs) = self.weight.dim();
        Cost {
            bytes: (out * inputs + inputs * inputs) * size_of::<f32>(),
            products: vec![[out, inputs, inputs]],
        }
    }
}

impl Layer {
    pub(super) fn settings(&self) -> LayerSettings {
        self.problem.settings()
    }

    /// The steps of a sweep of beam search.
    pub(super) fn order(&self) -> Vec<Position> {
        let matrix = &self.data.matrix;
        let mut rng = self.key.stream(Purpose::Sweep);
        let (in_groups, codebooks) = (matrix.groups().1, matrix.scheme().num_codebooks);
        sweep_order(&mut rng, in_groups, codebooks, self.settings().searches_pairs())
    }

    /// The layer error of a matrix.
    pub(super) fn loss(&self, matrix: &QuantizedMatrix) -> f64 {
        layer_error(&self.weight, &decode(matrix), &self.data.hessian)
    }

    /// tr(R |H| RT) with R = |W| + |Q|: the sum of magnitudes of a loss's terms; roundings of a loss are
    /// relative to it.
    pub(super) fn magnitude(&self, matrix: &QuantizedMatrix) -> f64 {
        let mut absolute = matrix.clone();
        absolute.tune(|mut codebooks, mut scales| {
            codebooks.mapv_inplace(f64::abs);
            scales.mapv_inplace(f64::abs);
        });
        let rows = self.weight.mapv(f64::abs) + decode(&absolute);
        (rows.dot(&self.data.hessian.mapv(f64::abs)) * &rows).sum()
    }

    /// ln of the ratio of two losses. Both are raised by the effect of an error of one epsilon in every
    /// number, so that rounding does not decide between optima of (nearly) zero.
    pub(super) fn excess(
        &self,
        check: Against,
        found: &QuantizedMatrix,
        expected: &QuantizedMatrix,
    ) -> Result<f64> {
        let floor = check.floor(self.magnitude(expected))?;
        Ok(((self.loss(found) + floor) / (self.loss(expected) + floor)).ln())
    }

    /// The comparisons of a search and, if they hold, how far its loss is above the reference's.
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

    /// Compares a loss with its upper bound: the excess as a share of the magnitudes of both.
    pub(super) fn not_above(
        &self,
        check: Against,
        what: &str,
        found: &QuantizedMatrix,
        bound: (f64, &QuantizedMatrix),
    ) -> Result<Comparison> {
        let magnitude = self.magnitude(found).max(self.magnitude(bound.1));
        let above = self.loss(found) - bound.0;
        // written so that NaN stays NaN
        let share = if above <= 0.0 { 0.0 } else { above / magnitude };
        check.value(Measure::Loss, what, share)
    }
}

/// NaN if a matrix differs from `like` in scheme or shapes, has codes out of range, or numbers that are not
/// finite.
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
