use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, PartSums};
use cudarc::driver::CudaView;
use ndarray::Array2;
use rayon::prelude::*;

use super::super::llama::address;
use super::super::{Buffer, CudaError, Result};
use super::machine::Machine;
use super::plan;
use super::products::Precision;
use crate::cpu::quantizer::triangle::{lower_triangle, triangle_length, triangle_rows};

/// Samples whose outer products are summed in f32 before the sum is added in f64. A sum of this many products
/// of f32 has a relative error of at most 2^10 x 2^-24 without cancellation (the diagonal), and typically 2^5
/// x 2^-24.
const SAMPLES: usize = 1024;

/// The same on tensor cores, whose factors are rounded by up to 2^-8 (bf16). A sum of this many products has
/// a relative error of at most 2^12 x 2^-24 without cancellation, and twice that where a tensor core cuts
/// bits off. Each such sum is read and added in f64, so fewer of them save time.
const ROUNDED_SAMPLES: usize = 4096;

/// Maximum bytes of the f32 sums of several chunks of samples.
const CHUNK_BYTES: usize = 1 << 29;

/// Side of the tiles in which a triangle is mirrored on the host.
const TILE: usize = 64;

/// H of a layer on the device: the mean of x xT over the layer's input samples, [in_features, in_features],
/// in f64.
///
/// Every call of [`Hessian::add`] adds one number to each element of the sum.
pub struct Hessian {
    machine: Arc<Machine>,
    width: usize,
    /// valid on and below the diagonal; `None` before the first sample
    sum: Option<Buffer<f64>>,
    samples: usize,
}

impl Hessian {
    /// No samples yet.
    pub fn new(machine: &Arc<Machine>, in_features: usize) -> Self {
        Self {
            machine: Arc::clone(machine),
            width: in_features,
            sum: None,
            samples: 0,
        }
    }

    /// Adds inputs, [samples, in_features].
    ///
    /// # Errors
    /// `Length` when they are no whole number of samples, `Aqlm` with `NotFinite` for NaN or infinite inputs;
    /// then nothing was added. `Memory`, `Driver`, `Library`.
    pub fn add(&mut self, x: &Buffer<f32>) -> Result<()> {
        self.add_rows(&x.slice(..))
    }

    /// [`Hessian::add`] of some rows of a buffer.
    ///
    /// # Errors
    /// As [`Hessian::add`].
    pub fn add_rows(&mut self, x: &CudaView<'_, f32>) -> Result<()> {
        let (machine, width) = (&*self.machine, self.width);
        let rows = x.len() / width.max(1);
        if rows * width != x.len() {
            return Err(CudaError::Length {
                what: "inputs of a layer",
                expected: rows * width,
                found: x.len(),
            });
        }
        if rows == 0 {
            return Ok(());
        }
        if let Some((index, value)) = machine.first_not_finite(x, width)? {
            return Err(AqlmError::NotFinite {
                what: "inputs of a layer".into(),
                index: index.to_vec(),
                value: f64::from(value),
            }
            .into());
        }
        let added = machine.zeros(width * width, "a part of a Hessian")?;
        if machine.calibration() == Precision::Bf16 {
            self.add_rounded(x, &added)?;
        } else {
            self.add_single(x, &added)?;
        }
        match &self.sum {
            Some(sum) => machine.add_wide(&added, sum)?,
            // A sum of zeros and this is this.
            None => self.sum = Some(added.named("a Hessian")),
        }
        self.samples += rows;
        Ok(())
    }

    /// Adds the products of f32 inputs to sums.
    fn add_single(&self, x: &CudaView<'_, f32>, added: &Buffer<f64>) -> Result<()> {
        let (machine, width) = (&*self.machine, self.width);
        let (size, rows) = (width * width, x.len() / width.max(1));
        let together = (CHUNK_BYTES / (size * size_of::<f32>()).max(1)).max(1);
        let mut first = 0;
        while first < rows {
            // Whole chunks go together; the last one may be shorter and goes alone.
            let chunks = ((rows - first) / SAMPLES).min(together);
            let [chunks, samples] = if chunks > 0 {
                [chunks, SAMPLES]
            } else {
                [1, rows - first]
            };
            let last = first + chunks * samples;
            let mut parts = machine.space(chunks * size, "parts of a Hessian")?;
            let from = x.slice(first * width..last * width);
            machine
                .products
                .grams(&from, &mut parts, [chunks, samples, width])?;
            machine.add_parts(&parts, added, chunks)?;
            first = last;
        }
        Ok(())
    }

    /// Adds the products of inputs rounded to bf16 to sums, below the diagonal and on it.
    fn add_rounded(&self, x: &CudaView<'_, f32>, added: &Buffer<f64>) -> Result<()> {
        let (machine, width) = (&*self.machine, self.width);
        let x = machine.products.rounded(x)?;
        let mut part = machine.space(width * width, "a part of a Hessian in f32")?;
        let step = (ROUNDED_SAMPLES * width).max(1);
        for first in (0..x.len()).step_by(step) {
            let from = x.slice(first..(first + step).min(x.len()));
            let shape = [from.len() / width, width];
            machine.products.gram(&from, &mut part, shape)?;
            machine.add_triangle(&part, added, width)?;
        }
        Ok(())
    }

    /// Adds G^T G of a gradient G [terms, in_features], or G G^T of G [in_features, terms] if it is
    /// `transposed`, in one product of f32. A sum over gradients adds one such product to each element for
    /// each gradient.
    ///
    /// # Errors
    /// `Length` when G is no whole number of rows; `Memory`, `Driver`, `Library`.
    pub fn add_gradient(&mut self, gradient: &Buffer<f32>, transposed: bool) -> Result<()> {
        let (machine, width) = (Arc::clone(&self.machine), self.width);
        let terms = gradient.len() / width.max(1);
        let mut part = machine.space(width * width, "a product of gradients")?;
        let products = &machine.products;
        if transposed {
            // G [width, terms]: G G^T
            products.forward(
                Precision::Single,
                gradient,
                gradient,
                &mut part,
                [width, terms, width],
                false,
            )?;
        } else {
            products.weight(
                Precision::Single,
                gradient,
                gradient,
                &mut part,
                [width, width, terms],
                false,
            )?;
        }
        let sum = match self.sum.take() {
            Some(sum) => sum,
            None => machine.zeros(width * width, "sums over gradients")?,
        };
        machine.add_parts(&part, &sum, 1)?;
        self.sum = Some(sum);
        self.samples += terms;
        Ok(())
    }

    /// Adds as many samples as if the outer product of each were the mean of another accumulator's.
    ///
    /// # Errors
    /// `Aqlm` with `Shape` when the other accumulator has another number of inputs; `Memory`, `Driver`.
    pub fn add_mean_of(&mut self, other: &Self, samples: usize) -> Result<()> {
        let (machine, size) = (Arc::clone(&self.machine), self.width * self.width);
        if other.width != self.width {
            return Err(AqlmError::Shape {
                what: "hessian".into(),
                expected: vec![self.width; 2],
                found: vec![other.width; 2],
            }
            .into());
        }
        if let Some(from) = &other.sum {
            let sum = match self.sum.take() {
                Some(sum) => sum,
                None => machine.zeros(size, "a Hessian")?,
            };
            let factor = samples as f64 / other.samples.max(1) as f64;
            let added = machine.run(
                &plan::add_scaled(size, factor, true),
                &[from, &sum].map(|buffer| machine.place(buffer)),
            );
            self.sum = Some(sum);
            added?;
        }
        self.samples += samples;
        Ok(())
    }

    /// Number of samples added.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The sum on the device, [in_features, in_features], valid on and below the diagonal; `None` before the
    /// first sample.
    pub fn sum(&self) -> Option<&Buffer<f64>> {
        self.sum.as_ref()
    }

    /// The mean of x xT on the host, symmetric to the last bit; zero before the first sample.
    ///
    /// # Errors
    /// `Driver`.
    pub fn mean(&self) -> Result<Array2<f64>> {
        let count = self.samples.max(1) as f64;
        let sum = self.to_host()?;
        let width = self.width;
        let mut mean = vec![0.0; width * width];
        // A tile at a time, so that what is read across rows stays in the cache.
        let bands = mean.par_chunks_mut((TILE * width).max(1)).enumerate();
        bands.for_each(|(band, values)| {
            let first = band * TILE;
            for tile in (0..width).step_by(TILE) {
                for (row, values) in (first..).zip(values.chunks_mut(width)) {
                    let columns = tile..(tile + TILE).min(width);
                    for (column, value) in columns.clone().zip(&mut values[columns]) {
                        *value = sum[row.max(column) * width + row.min(column)] / count;
                    }
                }
            }
        });
        let found = vec![mean.len()];
        Array2::from_shape_vec((width, width), mean).map_err(|_| {
            AqlmError::Shape {
                what: "hessian".into(),
                expected: vec![width; 2],
                found,
            }
            .into()
        })
    }

    fn to_host(&self) -> Result<Vec<f64>> {
        match &self.sum {
            Some(sum) => self.machine.device().download(sum),
            None => Ok(vec![0.0; self.width * self.width]),
        }
    }
}

impl PartSums for Hessian {
    /// The elements on and below the diagonal, row by row, then the number of samples. Nothing if the device
    /// fails: no other rank accepts that.
    fn take(&mut self) -> Vec<f64> {
        let samples = std::mem::take(&mut self.samples) as f64;
        let sum = self.to_host();
        self.sum = None;
        sum.map_or_else(
            |_| Vec::new(),
            |sum| {
                let mut sums = lower_triangle(&sum, self.width, 1);
                sums.push(samples);
                sums
            },
        )
    }

    fn add(&mut self, sum: &[f64]) -> aqlm_vocabulary::Result<()> {
        let (samples, triangle) = match sum.split_last() {
            Some((samples, part)) if part.len() == triangle_length(self.width) => (*samples, part),
            _ => {
                return Err(AqlmError::Shape {
                    what: "the sum of a Hessian".into(),
                    expected: vec![triangle_length(self.width) + 1],
                    found: vec![sum.len()],
                });
            }
        };
        // What is above the diagonal is never read.
        let mut part = vec![0.0; self.width * self.width];
        for (row, numbers) in triangle_rows(triangle, self.width) {
            part[row * self.width..][..=row].copy_from_slice(numbers);
        }
        let part = self.machine.upload(&part, "a Hessian")?;
        match &self.sum {
            Some(sum) => self.machine.add_wide(&part, sum)?,
            None => self.sum = Some(part),
        }
        self.samples += samples as usize;
        Ok(())
    }

    fn merge(&mut self, other: Self) -> aqlm_vocabulary::Result<()> {
        if other.width != self.width {
            return Err(AqlmError::Shape {
                what: "the sum of a Hessian".into(),
                expected: vec![self.width, self.width],
                found: vec![other.width, other.width],
            });
        }
        match (&self.sum, other.sum) {
            (Some(sum), Some(part)) => self.machine.add_wide(&part, sum)?,
            (None, part) => self.sum = part,
            (Some(_), None) => {}
        }
        self.samples += other.samples;
        Ok(())
    }
}

impl Machine {
    /// Adds f32 parts, each as long as the total, to f64 sums.
    pub(super) fn add_parts(&self, parts: &Buffer<f32>, total: &Buffer<f64>, count: usize) -> Result<()> {
        let device = self.device();
        self.run(
            &plan::add_parts(total.len(), count, false),
            &[address(device, parts), address(device, total)],
        )
    }

    /// Adds the lower triangle of a square f32 matrix to that of f64 sums.
    fn add_triangle(&self, part: &Buffer<f32>, total: &Buffer<f64>, width: usize) -> Result<()> {
        let device = self.device();
        self.run(
            &plan::add_triangle(width),
            &[address(device, part), address(device, total)],
        )
    }

    /// Adds f64 numbers to f64 sums.
    pub(super) fn add_wide(&self, part: &Buffer<f64>, total: &Buffer<f64>) -> Result<()> {
        let device = self.device();
        self.run(
            &plan::add_parts(total.len(), 1, true),
            &[part, total].map(|buffer| address(device, buffer)),
        )
    }
}
