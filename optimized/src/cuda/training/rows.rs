//! Operations on rows of hidden states that are no part of a block.

use std::ops::Range;

use cudarc::driver::{CudaView, DevicePtr as _};
use half::bf16;

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::machine::Machine;
use super::plan;
use crate::cpu::llama::check_tokens;

impl Machine {
    /// Rows of an embedding, [vocab, width], one for each token, times the model's factor of embeddings.
    ///
    /// # Errors
    /// `Aqlm` with `TokenOutOfRange` when a token has no embedding; `Memory`, `Driver`.
    pub fn embed(&self, embedding: &Buffer<f32>, width: usize, tokens: &[u32]) -> Result<Buffer<f32>> {
        check_tokens(tokens, embedding.len() / width.max(1))?;
        let hidden = self.space(tokens.len() * width, "embedded tokens")?;
        let tokens_there = self.upload(tokens, "tokens")?;
        let device = self.device();
        self.run(
            &plan::embed(width, tokens.len(), self.arch().embedding_scale),
            &[
                address(device, embedding),
                address(device, &tokens_there),
                address(device, &hidden),
            ],
        )?;
        Ok(hidden)
    }

    /// Copies an f32 table to the device.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn table(&self, values: &ndarray::Array2<f32>, name: &str) -> Result<Buffer<f32>> {
        let values = values.as_standard_layout();
        self.upload(values.as_slice().unwrap_or_default(), name)
    }

    /// Rows of hidden states, from the host.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn hidden(&self, values: &[f32]) -> Result<Buffer<f32>> {
        self.upload(values, "hidden states")
    }

    /// Room for hidden states that are copied in next.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn room(&self, count: usize) -> Result<Buffer<f32>> {
        self.zeros(count, "hidden states")
    }

    /// Room for hidden states that are rounded into it next.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn rounded_room(&self, count: usize) -> Result<Buffer<bf16>> {
        self.zeros(count, "hidden states in bf16")
    }

    /// Rounds a range of numbers to bf16, to the nearest, ties to even, and writes them to `to` from `at` on.
    ///
    /// # Errors
    /// `Driver`.
    ///
    /// # Panics
    /// When a range lies outside its buffer.
    pub fn round_rows(
        &self,
        from: &Buffer<f32>,
        range: Range<usize>,
        to: &mut Buffer<bf16>,
        at: usize,
    ) -> Result<()> {
        let (count, stream) = (range.len(), self.device().stream());
        let (from, to) = (from.slice(range), to.slice(at..at + count));
        let (from, to) = (from.device_ptr(stream).0, to.device_ptr(stream).0);
        self.products.round_into(from, to, count)
    }

    /// Writes a range of bf16 numbers to `to` from `at` on, in f32.
    ///
    /// # Errors
    /// `Driver`.
    ///
    /// # Panics
    /// When a range lies outside its buffer.
    pub fn widen_rows(
        &self,
        from: &Buffer<bf16>,
        range: Range<usize>,
        to: &mut Buffer<f32>,
        at: usize,
    ) -> Result<()> {
        let (count, stream) = (range.len(), self.device().stream());
        let (from, to) = (from.slice(range), to.slice(at..at + count));
        let (from, to) = (from.device_ptr(stream).0, to.device_ptr(stream).0);
        self.products.widen_into(from, to, count)
    }

    /// Rounds every number to bf16, in place.
    ///
    /// # Errors
    /// `Driver`.
    pub fn round_to_bf16(&self, x: &mut Buffer<f32>) -> Result<()> {
        self.run(&plan::round(x.len()), &[address(self.device(), x)])
    }

    /// For each row the sums of (a - b)^2 and of b^2.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn row_squares(
        &self,
        a: &Buffer<f32>,
        b: &Buffer<f32>,
        width: usize,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        self.squares(a, b, width, None)
    }

    /// [`Machine::row_squares`]; with a factor, factor (a - b) replaces a.
    pub(super) fn squares(
        &self,
        a: &Buffer<f32>,
        b: &Buffer<f32>,
        width: usize,
        factor: Option<f32>,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        assert_eq!(a.len(), b.len(), "rows that are compared");
        let rows = a.len() / width.max(1);
        let sums = self.space(2 * rows, "squared distances")?;
        let device = self.device();
        self.run(
            &plan::row_squares(rows, width, factor),
            &[address(device, a), address(device, b), address(device, &sums)],
        )?;
        let mut difference = device.download(&sums)?;
        let norm = difference.split_off(rows);
        Ok((difference, norm))
    }

    /// The largest magnitude; NaN is passed over.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn largest(&self, x: &Buffer<f32>, width: usize) -> Result<f32> {
        let (largest, _) = self.scan(&x.slice(..), width)?;
        Ok(largest.into_iter().fold(0.0, f32::max))
    }

    /// The first number that is not finite, with its row and column.
    pub(super) fn first_not_finite(
        &self,
        x: &CudaView<'_, f32>,
        width: usize,
    ) -> Result<Option<([usize; 2], f32)>> {
        let (_, bad) = self.scan(x, width)?;
        let Some(row) = bad.iter().position(|&column| (column as usize) < width) else {
            return Ok(None);
        };
        let column = bad[row] as usize;
        let at = row * width + column;
        let value = self.device().download(&x.slice(at..=at))?;
        Ok(value.first().map(|&value| ([row, column], value)))
    }

    fn scan(&self, x: &CudaView<'_, f32>, width: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let rows = x.len() / width.max(1);
        let largest = self.space(rows, "largest magnitudes")?;
        let bad = self.space(rows, "first numbers that are not finite")?;
        let device = self.device();
        self.run(
            &plan::row_scan(rows, width),
            &[self.place(x), self.place(&largest), self.place(&bad)],
        )?;
        Ok((device.download(&largest)?, device.download(&bad)?))
    }
}
