//! Simple operations on arrays in device memory.

use cudarc::driver::sys;

use super::machine::{Block, Machine, Precision, Product, Real, THREADS, halves};
use crate::cuda::{Buffer, Result};

/// Numbers whose products one block adds up.
const PART: usize = 1 << 15;

impl Machine {
    /// Inner products of consecutive parts of `each` numbers, in f64.
    pub(super) fn part_products<T: Real>(
        &self,
        a: &Buffer<T>,
        b: &Buffer<T>,
        each: usize,
    ) -> Result<Vec<f64>> {
        let parts = a.len().div_ceil(each);
        let sums = self.fresh::<f64>(parts, "part sums")?;
        self.run(
            "layer_dot/k1_block_a_part",
            &[("AQLM_WIDE", T::WIDE)],
            [parts, 1, THREADS, THREADS * 8],
            &[self.address(a), self.address(b), self.address(&sums)],
            &[a.len(), each],
        )?;
        self.download(&sums)
    }

    /// <a, b> in f64, in an order that depends on the length alone.
    pub(super) fn inner<T: Real>(&self, a: &Buffer<T>, b: &Buffer<T>) -> Result<f64> {
        Ok(self.part_products(a, b, PART)?.iter().sum())
    }

    /// y = a x + b y.
    pub(super) fn combine<T: Real>(&self, a: f64, x: &Buffer<T>, b: f64, y: &mut Buffer<T>) -> Result<()> {
        let [[a_low, a_high], [b_low, b_high]] = [halves(a), halves(b)];
        self.run(
            "layer_combine/k1_elementwise",
            &[("AQLM_WIDE", T::WIDE)],
            [x.len().div_ceil(THREADS), 1, THREADS, 0],
            &[self.address(x), self.address(y)],
            &[x.len(), a_low, a_high, b_low, b_high],
        )
    }

    /// The numbers in f32.
    pub(super) fn narrow(&self, from: &Buffer<f64>) -> Result<Buffer<f32>> {
        let to = self.fresh(from.len(), "numbers in f32")?;
        self.cast(0, self.address(from), self.address(&to), from.len())?;
        Ok(to)
    }

    /// The numbers in f64.
    pub(super) fn widen(&self, from: &Buffer<f32>) -> Result<Buffer<f64>> {
        let to = self.fresh(from.len(), "numbers in f64")?;
        self.cast(1, self.address(from), self.address(&to), from.len())?;
        Ok(to)
    }

    fn cast(&self, wide: usize, from: sys::CUdeviceptr, to: sys::CUdeviceptr, count: usize) -> Result<()> {
        self.run(
            "layer_cast/k1_elementwise",
            &[("AQLM_WIDE", wide)],
            [count.div_ceil(THREADS), 1, THREADS, 0],
            &[from, to],
            &[count],
        )
    }

    /// A matrix with columns, and rows if given, in another order.
    pub(super) fn permuted<T: Real>(
        &self,
        from: &Buffer<T>,
        rows: Option<&Buffer<u32>>,
        columns: &Buffer<u32>,
    ) -> Result<Buffer<T>> {
        let width = columns.len();
        let count = rows.map_or(from.len() / width, Buffer::len);
        let to = self.fresh(count * width, "a permuted matrix")?;
        let row_order = rows.map_or(0, |rows| self.address(rows));
        self.run(
            "layer_permute/k1_thread_a_number",
            &[("AQLM_WIDE", T::WIDE), ("AQLM_ROWS", usize::from(rows.is_some()))],
            [width.div_ceil(THREADS), count, THREADS, 0],
            &[
                self.address(from),
                row_order,
                self.address(columns),
                self.address(&to),
            ],
            &[count, width],
        )?;
        Ok(to)
    }

    /// The blocks of `gi` rows and columns on the diagonal of a matrix of this width, in f64: [blocks, gi,
    /// gi].
    pub(super) fn diagonal_blocks<T: Real>(
        &self,
        matrix: &Buffer<T>,
        width: usize,
        gi: usize,
    ) -> Result<Buffer<f64>> {
        let blocks = self.fresh::<f64>(width * gi, "blocks on a diagonal")?;
        self.run(
            "layer_blocks/k1_thread_a_number",
            &[("AQLM_WIDE", T::WIDE)],
            [(width * gi).div_ceil(THREADS), 1, THREADS, 0],
            &[self.address(matrix), self.address(&blocks)],
            &[width, gi],
        )?;
        Ok(blocks)
    }

    /// D H for a dense D of H's width.
    pub(super) fn image<T: Real>(
        &self,
        dense: &Buffer<T>,
        hessian: &Buffer<T>,
        width: usize,
        precision: Precision,
    ) -> Result<Buffer<T>> {
        let image = self.fresh(dense.len(), "an image under H")?;
        let rows = dense.len() / width.max(1);
        let block = |buffer: &Buffer<T>| Block {
            at: self.address(buffer),
            stride: width,
        };
        self.product::<T>(
            &Product {
                precision,
                ..Product::new(rows, width, width)
            },
            [block(dense), block(hessian), block(&image)],
        )?;
        Ok(image)
    }
}
