//! matmul: Y = X W^T for a batch. Every weight is decoded only once.

use aqlm_vocabulary::{AqlmError, Result};
use faer::{Accum, Par};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::layout::{PackedMatrix, TILE};
use super::product::product_into;
use super::row_major::elements_mut;

/// Bytes of decoded rows that are multiplied at a time: half of a 2 MiB L2 cache, so that a tile is still
/// there when it is read back.
const TILE_BYTES: usize = 1 << 20;

impl PackedMatrix {
    /// `Y = X W^T` for X [batch, in_features] -> [batch, out_features], on the current rayon pool. The same
    /// bytes for any number of threads.
    ///
    /// # Errors
    /// `Shape` when X has another width.
    pub fn matmul(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let mut y = Array2::zeros((x.nrows(), self.out_features()));
        self.matmul_into(x, y.view_mut())?;
        Ok(y)
    }

    /// [`Self::matmul`] into `y` [batch, out_features], which is overwritten.
    ///
    /// # Errors
    /// `Shape` when X or Y has another shape.
    pub fn matmul_into(&self, x: ArrayView2<'_, f32>, mut y: ArrayViewMut2<'_, f32>) -> Result<()> {
        let batch = x.nrows();
        let shapes = [
            ("x", [batch, self.in_features()], x.dim()),
            ("y", [batch, self.out_features()], y.dim()),
        ];
        for (what, expected, found) in shapes {
            if found != (expected[0], expected[1]) {
                return Err(AqlmError::Shape {
                    what: what.into(),
                    expected: expected.to_vec(),
                    found: vec![found.0, found.1],
                });
            }
        }
        if batch <= self.plan.largest_matvec_batch {
            let mut output = vec![0.0; self.out_features()];
            for (x, mut y) in x.outer_iter().zip(y.outer_iter_mut()) {
                match x.as_slice() {
                    Some(x) => self.matvec(x, &mut output)?,
                    None => self.matvec(&x.to_vec(), &mut output)?,
                }
                y.assign(&ndarray::aview1(&output));
            }
            return Ok(());
        }
        let (columns, out_group) = (self.in_features(), self.scheme.out_group_size);
        if y.is_empty() {
            return Ok(());
        }
        // Whole tiles of codes if they fit, so that tiled codes are read only once.
        let fitting = TILE_BYTES / (columns * out_group * size_of::<f32>()).max(1);
        let groups = if fitting >= TILE {
            fitting / TILE * TILE
        } else {
            fitting.max(16)
        };
        y.axis_chunks_iter_mut(Axis(1), groups * out_group)
            .into_par_iter()
            .enumerate()
            .for_each_init(
                || Array2::zeros((groups * out_group, columns)),
                |decoded, (index, y)| {
                    let first = index * groups;
                    let rows = y.ncols();
                    let mut weight = decoded.slice_mut(s![..rows, ..]);
                    self.decode_groups(first..first + rows / out_group, elements_mut(&mut weight));
                    product_into(y, Accum::Replace, x, weight.t(), 1.0, Par::Seq);
                },
            );
        Ok(())
    }
}
