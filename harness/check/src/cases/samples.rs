use std::fmt;

use aqlm_vocabulary::{Purpose, stream};
use ndarray::{Array2, Axis};
use rand::RngExt;

use super::id::Fields;
use super::values::{Values, dyadic, with_outliers};
use crate::limits::Sizes;
use aqlm_formats::Result;

/// Rows of numbers: samples of a layer's inputs for hessian, points for kmeans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplesCase {
    /// samples or points
    pub rows: usize,
    /// inputs or coordinates
    pub columns: usize,
    /// number of clusters (kmeans), or of parts in which the samples arrive (hessian)
    pub count: usize,
    /// kind of values
    pub values: Values,
}

impl fmt::Display for SamplesCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}x{}-k{}-{}",
            self.rows, self.columns, self.count, self.values
        )
    }
}

impl SamplesCase {
    pub(super) fn parse(fields: &mut Fields<'_>) -> Result<Self> {
        let (rows, columns) = fields.shape()?;
        Ok(Self {
            rows,
            columns,
            count: fields.number('k', 1..=4096)? as usize,
            values: fields.word()?,
        })
    }

    /// Sizes from which limits count their terms.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            inputs: self.columns,
            rows: self.rows,
            ..Sizes::default()
        }
    }

    /// [rows, columns]; at least one number is not zero.
    pub fn data(&self, seed: u64) -> Array2<f32> {
        let mut rng = stream(seed, 0, None, Purpose::TestData);
        let mut x = Array2::from_shape_simple_fn((self.rows, self.columns), || match self.values {
            Values::Dyadic => dyadic(&mut rng) as f32,
            // every fifth is denormal in f32; the others keep the sums away from zero
            Values::Denormal if rng.random_bool(0.2) => (with_outliers(&mut rng) * 1e-39) as f32,
            _ => with_outliers(&mut rng) as f32,
        });
        match self.values {
            Values::Repeated => {
                for row in (1..self.rows).step_by(2) {
                    let before = x.row(row - 1).to_owned();
                    x.row_mut(row).assign(&before);
                }
            }
            Values::ZeroRows => x
                .axis_iter_mut(Axis(0))
                .skip(1)
                .step_by(3)
                .for_each(|mut row| row.fill(0.0)),
            Values::EqualRows => {
                let first = x.row(0).to_owned();
                x.axis_iter_mut(Axis(0)).for_each(|mut row| row.assign(&first));
            }
            _ => {}
        }
        x[[0, 0]] = 0.5;
        x
    }
}
