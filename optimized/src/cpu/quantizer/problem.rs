use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Result};
use faer::Par;
use ndarray::Array2;
use rayon::prelude::*;

use super::decode::decode;
use crate::cpu::matvec::expect_len;
use crate::cpu::product::product;
use crate::cpu::row_major::elements;
use crate::cpu::vectorize::dot_in_f64;

/// Rows whose losses one task adds up.
const ROWS: usize = 16;

/// Codebooks are updated in f64 if a product with H takes at most this many multiply-adds. That is half a
/// millisecond of one core, and a quarter of the count for the smallest layers of real models
/// (tiny-stories-4m: 2^24).
pub(crate) const WIDE: usize = 1 << 22;

/// One layer's weight and the metric of its error, in f32.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    /// [out_features, in_features], standard layout
    pub(crate) weight: Array2<f32>,
    /// H, [in_features, in_features], standard layout
    pub(crate) hessian: Arc<Array2<f32>>,
    /// H in f64, kept only if a product with it is cheap ([`WIDE`])
    pub(crate) wide: Option<Array2<f64>>,
    /// W H, [out_features, in_features], standard layout
    pub(crate) weight_image: Array2<f32>,
}

impl Problem {
    /// # Errors
    /// `Shape` when H is not square in the weight's inputs.
    pub(crate) fn new(weight: &Array2<f32>, hessian: &Array2<f64>) -> Result<Self> {
        check_hessian(hessian, weight.ncols())?;
        let weight = weight.as_standard_layout().into_owned();
        let small = weight.len() * weight.ncols() <= WIDE;
        let wide = small.then(|| hessian.as_standard_layout().into_owned());
        let hessian = hessian.as_standard_layout().mapv(|h| h as f32);
        let weight_image = product(weight.view(), hessian.view(), Par::rayon(0));
        Ok(Self {
            weight,
            hessian: Arc::new(hessian),
            wide,
            weight_image,
        })
    }

    /// Other rows under the same H. Codebooks are not updated for them, so H in f64 is not kept.
    ///
    /// # Errors
    /// `Shape` when the rows have another number of inputs.
    pub(crate) fn retargeted(&self, target: &Array2<f32>) -> Result<Self> {
        expect_len("inputs of rows", self.weight.ncols(), target.ncols())?;
        let weight = target.as_standard_layout().into_owned();
        let weight_image = product(weight.view(), self.hessian.view(), Par::rayon(0));
        Ok(Self {
            weight,
            hessian: Arc::clone(&self.hessian),
            wide: None,
            weight_image,
        })
    }

    /// # Errors
    /// `Shape` when the matrix's shape differs from the weight's.
    pub(crate) fn check(&self, matrix: &QuantizedMatrix) -> Result<()> {
        let found = (matrix.out_features(), matrix.in_features());
        if found == self.weight.dim() {
            return Ok(());
        }
        Err(AqlmError::Shape {
            what: "weight".into(),
            expected: vec![found.0, found.1],
            found: self.weight.shape().to_vec(),
        })
    }

    /// W - Q.
    pub(crate) fn error(&self, matrix: &QuantizedMatrix) -> Array2<f32> {
        let mut error = decode(matrix);
        ndarray::Zip::from(&mut error)
            .and(&self.weight)
            .par_for_each(|q, w| *q = w - *q);
        error
    }

    /// D H.
    pub(crate) fn image(&self, dense: &Array2<f32>) -> Array2<f32> {
        product(dense.view(), self.hessian.view(), Par::rayon(0))
    }

    /// tr(W H WT).
    pub(crate) fn norm(&self) -> f64 {
        inner(&self.weight_image, &self.weight)
    }
}

/// # Errors
/// `Shape` when H is not [inputs, inputs].
pub(crate) fn check_hessian<T>(hessian: &Array2<T>, inputs: usize) -> Result<()> {
    if hessian.dim() == (inputs, inputs) {
        return Ok(());
    }
    Err(AqlmError::Shape {
        what: "hessian".into(),
        expected: vec![inputs, inputs],
        found: hessian.shape().to_vec(),
    })
}

/// <a, b> over all elements, in f64, in an order that depends on the shape alone.
pub(crate) fn inner(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let width = a.ncols().max(1);
    let (a, b) = (elements(a), elements(b));
    let parts: Vec<f64> = a
        .par_chunks(ROWS * width)
        .zip(b.par_chunks(ROWS * width))
        .map(|(a, b)| dot_in_f64(a, b))
        .collect();
    parts.iter().sum()
}
