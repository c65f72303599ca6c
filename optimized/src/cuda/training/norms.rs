//! RMSNorms of rows, forward and back, and sums over rows.

use aqlm_vocabulary::NormSpec;
use cudarc::driver::DevicePtr;

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::machine::Machine;
use super::plan;

/// The result of a norm whose input is known elsewhere.
pub(super) struct Normed {
    /// [rows, width]
    pub(super) y: Buffer<f32>,
    /// the factor of each piece
    pub(super) roots: Buffer<f32>,
}

/// The input of a norm whose result is known elsewhere.
pub(super) struct Raw {
    /// [rows, width]
    pub(super) x: Buffer<f32>,
    /// the factor of each piece
    pub(super) roots: Buffer<f32>,
}

/// Sums over chunks of rows, which must still be added up.
pub struct Chunks {
    pub(super) sums: Buffer<f64>,
    pub(super) count: usize,
    pub(super) width: usize,
}

impl Machine {
    /// RMSNorm of each row, or of each piece of a row that is as long as the weight, and the factor of each.
    pub(super) fn normed(&self, x: &Buffer<f32>, weight: &Buffer<f32>, spec: NormSpec) -> Result<Normed> {
        let pieces = x.len() / weight.len().max(1);
        let normed = Normed {
            y: self.space(x.len(), "normed")?,
            roots: self.space(pieces, "factors of a norm")?,
        };
        let device = self.device();
        self.run(
            &plan::norm(pieces, weight.len(), spec),
            &[x, weight, &normed.y, &normed.roots].map(|buffer| address(device, buffer)),
        )?;
        Ok(normed)
    }

    /// Adds the gradient of a norm's input, given that of its result.
    pub(super) fn norm_back(
        &self,
        x: &Buffer<f32>,
        (spec, weight): (NormSpec, &Buffer<f32>),
        roots: &Buffer<f32>,
        grad_y: &Buffer<f32>,
        grad_x: &Buffer<f32>,
    ) -> Result<()> {
        let device = self.device();
        self.run(
            &plan::norm_back(x.len() / weight.len().max(1), weight.len(), spec),
            &[x, weight, roots, grad_y, grad_x].map(|buffer| address(device, buffer)),
        )
    }

    /// The gradient of a norm's weight of `width` numbers, given that of its result.
    pub(super) fn norm_sums(
        &self,
        grad_y: &Buffer<f32>,
        x: &Buffer<f32>,
        roots: &Buffer<f32>,
        width: usize,
    ) -> Result<Chunks> {
        self.column_sums(grad_y, Some((x, roots)), width)
    }

    /// Sums of columns over chunks of rows, for a norm's weight with the norm's input and factors.
    pub(super) fn column_sums(
        &self,
        grad: &impl DevicePtr<f32>,
        norm: Option<(&Buffer<f32>, &Buffer<f32>)>,
        width: usize,
    ) -> Result<Chunks> {
        let rows = grad.len() / width.max(1);
        let chunks = plan::column_chunks(rows);
        let sums = self.space(chunks * width, "sums over rows")?;
        let grad = self.place(grad);
        // Without a norm the kernel reads neither, so any address will do.
        let [x, roots] = norm.map_or([grad; 2], |(x, roots)| [self.place(x), self.place(roots)]);
        self.run(
            &plan::column_sums(rows, width, norm.is_some()),
            &[grad, x, roots, self.place(&sums)],
        )?;
        Ok(Chunks {
            sums,
            count: chunks,
            width,
        })
    }

    /// Adds chunks to f64 sums, one number to each.
    pub(super) fn add_chunks(&self, from: &Chunks, total: &impl DevicePtr<f64>) -> Result<()> {
        self.run(
            &plan::add_parts(from.width, from.count, true),
            &[self.place(&from.sums), self.place(total)],
        )
    }

    /// Sums over chunks of rows, added up on the host.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn sums(&self, from: &Chunks) -> Result<Vec<f64>> {
        let total = self.zeros(from.width, "sums")?;
        self.add_chunks(from, &total)?;
        self.device().download(&total)
    }
}
