//! What the quantizer's operations share: losses as the reference evaluates them in f64, and what rounding
//! makes of them.

use aqlm_reference::{decode, layer_error};
use aqlm_vocabulary::QuantizedMatrix;
use ndarray::Array2;

use crate::Comparison;
use crate::cases::LayerData;
use crate::compare::Against;
use crate::limits::Measure;
use aqlm_formats::Result;

/// A layer, its weight widened.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) data: LayerData,
    pub(super) weight: Array2<f64>,
}

impl Layer {
    pub(super) fn new(data: LayerData) -> Self {
        Self {
            weight: data.weight.mapv(f64::from),
            data,
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
    pub(super) fn excess(&self, check: Against, found: &QuantizedMatrix, expected: &QuantizedMatrix) -> f64 {
        let terms = 2.0 * self.weight.ncols() as f64;
        let floor = (terms * check.number.epsilon()).powi(2) * self.magnitude(expected);
        ((self.loss(found) + floor) / (self.loss(expected) + floor)).ln()
    }

    /// A loss that must not be above another: by how much it is, as a share of the magnitudes of both.
    pub(super) fn not_above(
        &self,
        check: Against,
        terms: usize,
        what: &str,
        found: &QuantizedMatrix,
        bound: (f64, &QuantizedMatrix),
    ) -> Result<Comparison> {
        let magnitude = self.magnitude(found).max(self.magnitude(bound.1));
        let above = self.loss(found) - bound.0;
        // written so that NaN stays
        let share = if above <= 0.0 { 0.0 } else { above / magnitude };
        check.value(Measure::Loss, terms, what, share)
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
