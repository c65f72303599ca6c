use aqlm_vocabulary::{AqlmError, PartSums, Result};
use faer::Accum;
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::triangle::{lower_triangle, triangle_length, triangle_rows};
use crate::cpu::product::product_on_this_thread;

/// Samples whose outer products are summed in f32 before the sum is added in f64. A sum of this many products
/// of f32 has a relative error of at most 2^10 x 2^-24 without cancellation (the diagonal), and typically 2^5
/// x 2^-24.
const SAMPLES: usize = 1024;

/// Side of the tiles that tasks own. Only tiles on and below the diagonal are computed.
const TILE: usize = 192;

const MADE_HERE: &str = "standard layout: made here";

/// H of a layer: the mean of x xT over the layer's input samples, [in_features, in_features], in f64.
///
/// Every call of [`Hessian::add`] adds one number to each element of the sum. So sums over parts of the
/// samples, made elsewhere and added in the order of the parts, have the same bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Hessian {
    /// valid on and below the diagonal, tile by tile
    sum: Array2<f64>,
    samples: usize,
}

impl Hessian {
    /// No samples yet.
    pub fn new(in_features: usize) -> Self {
        Self {
            sum: Array2::zeros((in_features, in_features)),
            samples: 0,
        }
    }

    /// Adds inputs, [samples, in_features].
    ///
    /// # Errors
    /// `Shape` when the number of columns differs, `NotFinite` for NaN or infinite inputs; then nothing was
    /// added.
    pub fn add(&mut self, x: ArrayView2<'_, f32>) -> Result<()> {
        if x.ncols() != self.sum.ncols() {
            return Err(AqlmError::Shape {
                what: "inputs of a layer".into(),
                expected: vec![x.nrows(), self.sum.ncols()],
                found: x.shape().to_vec(),
            });
        }
        let bad = x
            .axis_chunks_iter(Axis(0), SAMPLES)
            .into_par_iter()
            .enumerate()
            .find_map_first(|(i, rows)| {
                let (at, value) = rows.indexed_iter().find(|(_, value)| !value.is_finite())?;
                Some((vec![i * SAMPLES + at.0, at.1], *value))
            });
        if let Some((index, value)) = bad {
            return Err(AqlmError::NotFinite {
                what: "inputs of a layer".into(),
                index,
                value: f64::from(value),
            });
        }
        let tiles = self.sum.ncols().div_ceil(TILE);
        let mut tasks = Vec::with_capacity(tiles * (tiles + 1) / 2);
        for (row, mut band) in self.sum.axis_chunks_iter_mut(Axis(0), TILE).enumerate() {
            for column in 0..=row {
                let width = TILE.min(band.ncols());
                let (tile, rest) = band.split_at(Axis(1), width);
                band = rest;
                tasks.push((row, column, tile));
            }
        }
        tasks.into_par_iter().for_each(|(row, column, mut tile)| {
            let mut part = Array2::<f32>::zeros(tile.dim());
            let mut added = Array2::<f64>::zeros(tile.dim());
            for samples in x.axis_chunks_iter(Axis(0), SAMPLES) {
                let left = samples.slice(s![.., row * TILE..row * TILE + tile.nrows()]);
                let right = samples.slice(s![.., column * TILE..column * TILE + tile.ncols()]);
                product_on_this_thread(part.view_mut(), Accum::Replace, left.t(), right, 1.0);
                added.zip_mut_with(&part, |sum, &part| *sum += f64::from(part));
            }
            tile += &added;
        });
        self.samples += x.nrows();
        Ok(())
    }

    /// Adds as many samples as if the outer product of each were the mean of another accumulator's.
    ///
    /// # Errors
    /// `Shape` when the other accumulator has another number of inputs.
    pub fn add_mean_of(&mut self, other: &Self, samples: usize) -> Result<()> {
        if other.sum.dim() != self.sum.dim() {
            return Err(AqlmError::Shape {
                what: "hessian".into(),
                expected: self.sum.shape().to_vec(),
                found: other.sum.shape().to_vec(),
            });
        }
        let factor = samples as f64 / other.samples.max(1) as f64;
        self.sum.scaled_add(factor, &other.sum);
        self.samples += samples;
        Ok(())
    }

    /// Number of samples added.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The mean of x xT, symmetric to the last bit; zero before the first sample.
    pub fn mean(&self) -> Array2<f64> {
        let count = self.samples.max(1) as f64;
        Array2::from_shape_fn(self.sum.dim(), |(r, c)| {
            // A tile on the diagonal contains both halves; the lower one is used for both.
            self.sum[[r.max(c), r.min(c)]] / count
        })
    }
}

impl PartSums for Hessian {
    /// The elements on and below the diagonal, row by row, then the number of samples.
    fn take(&mut self) -> Vec<f64> {
        let samples = std::mem::take(&mut self.samples) as f64;
        let zeros = Array2::zeros(self.sum.dim());
        let sum = std::mem::replace(&mut self.sum, zeros);
        let mut sums = lower_triangle(sum.as_slice().expect(MADE_HERE), sum.nrows(), 1);
        sums.push(samples);
        sums
    }

    fn add(&mut self, sum: &[f64]) -> Result<()> {
        let (samples, sum) = match sum.split_last() {
            Some((samples, sum)) if sum.len() == triangle_length(self.sum.nrows()) => (*samples, sum),
            _ => {
                return Err(AqlmError::Shape {
                    what: "the sum of a Hessian".into(),
                    expected: vec![triangle_length(self.sum.nrows()) + 1],
                    found: vec![sum.len()],
                });
            }
        };
        for (row, numbers) in triangle_rows(sum, self.sum.nrows()) {
            let to = self.sum.row_mut(row);
            to.into_iter().zip(numbers).for_each(|(to, part)| *to += part);
        }
        self.samples += samples as usize;
        Ok(())
    }
}
