//! H_O, which weights the rows of a layer's error against each other.

use ndarray::{Array2, Axis};

use super::machine::{Block, Machine, Precision, Product};
use crate::cuda::error::check_lengths;
use crate::cuda::{Buffer, Result};

/// A symmetric H_O, [out_features, out_features].
pub struct Outer {
    matrix: Buffer<f32>,
    /// H_O\[i,j\] / H_O\[i,i\]
    relative: Buffer<f32>,
    pub(super) diagonal: Vec<f64>,
}

impl Outer {
    pub(super) fn new(machine: &Machine, outer: &Array2<f64>) -> Result<Self> {
        let diagonal = outer.diag();
        let relative = outer / &diagonal.insert_axis(Axis(1));
        Ok(Self {
            relative: machine.upload_rows(&relative.mapv(|value| value as f32), "relative H_O")?,
            matrix: machine.upload_rows(&outer.mapv(|value| value as f32), "H_O")?,
            diagonal: diagonal.to_vec(),
        })
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.diagonal.len()
    }

    /// Scales that carry the weight of their row in the loss: `s_o sqrt(H_O[o,o])`.
    pub(super) fn weighted(&self, machine: &Machine, scales: &Buffer<f64>) -> Result<Buffer<f64>> {
        let mut scales = machine.download(scales)?;
        for (scale, weight) in scales.iter_mut().zip(&self.diagonal) {
            *scale *= weight.max(0.0).sqrt();
        }
        machine.upload(&scales, "weighted scales")
    }

    /// H_O D for D [out_features, width].
    ///
    /// # Errors
    /// `Length` when D has another number of rows; `Library`.
    pub(super) fn left(
        &self,
        machine: &Machine,
        dense: &Buffer<f32>,
        width: usize,
        precision: Precision,
    ) -> Result<Buffer<f32>> {
        self.times(machine, &self.matrix, dense, width, precision)
    }

    /// H_O D with every row divided by its H_O\[i,i\].
    ///
    /// # Errors
    /// As [`Outer::left`].
    pub(super) fn relative_left(
        &self,
        machine: &Machine,
        dense: &Buffer<f32>,
        width: usize,
    ) -> Result<Buffer<f32>> {
        self.times(machine, &self.relative, dense, width, Precision::Full)
    }

    fn times(
        &self,
        machine: &Machine,
        matrix: &Buffer<f32>,
        dense: &Buffer<f32>,
        width: usize,
        precision: Precision,
    ) -> Result<Buffer<f32>> {
        let rows = self.rows();
        check_lengths(&[("rows under H_O", rows * width, dense.len())])?;
        let image = machine.fresh(rows * width, "H_O D")?;
        let block = |buffer: &Buffer<f32>, stride| Block {
            at: machine.address(buffer),
            stride,
        };
        machine.product::<f32>(
            &Product {
                precision,
                ..Product::new(rows, width, rows)
            },
            [block(matrix, rows), block(dense, width), block(&image, width)],
        )?;
        Ok(image)
    }
}
