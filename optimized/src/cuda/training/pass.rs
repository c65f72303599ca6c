//! The linear layers of a block at work on rows, and what a block adds to its input.

use aqlm_vocabulary::{LayerId, NormPlace};
use cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};

use super::super::{Buffer, Result};
use super::block::{Block, Decoded};
use super::machine::Machine;
use super::norms::{Normed, Raw};
use super::plan;
use super::products::Precision;

/// Rows of f32 numbers: all of a buffer's or some.
pub(super) type Rows<'a> = CudaView<'a, f32>;

/// Consecutive outputs of a linear layer: all, or one of several parts that one layer computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outputs {
    pub(super) layer: LayerId,
    first: usize,
    pub(super) count: usize,
}

/// Whether these are parts of one layer.
pub(super) fn is_one(layers: &[LayerId]) -> bool {
    layers.len() > 1 && layers.iter().all(|layer| layer == &layers[0])
}

/// The outputs of layers that read the same input, each with its own weight, or as parts of one layer whose
/// outputs stand one after another.
pub(super) fn outputs<const N: usize>(layers: [LayerId; N], widths: [usize; N]) -> [Outputs; N] {
    let one = is_one(&layers);
    let mut before = 0;
    std::array::from_fn(|i| {
        let first = if one { before } else { 0 };
        before += widths[i];
        Outputs {
            layer: layers[i],
            first,
            count: widths[i],
        }
    })
}

/// A block at work: forward, or back over what the way forward has kept.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) machine: &'a Machine,
    pub(super) precision: Precision,
    pub(super) block: &'a Block,
    pub(super) weights: &'a Decoded,
}

impl Pass<'_> {
    /// All outputs of a layer.
    pub(super) fn whole(&self, layer: LayerId) -> Outputs {
        let count = self.block.spec.shape(layer).0;
        outputs([layer], [count])[0]
    }

    /// x W^T + b, [rows, count].
    pub(super) fn apply(&self, of: Outputs, x: &impl DevicePtr<f32>, rows: usize) -> Result<Buffer<f32>> {
        let mut y = self.machine.space(rows * of.count, "the output of a layer")?;
        self.multiply(of, x, &mut y, rows, false)?;
        self.add_bias(of, &y, rows)?;
        Ok(y)
    }

    /// y = x W^T, or y += x W^T.
    pub(super) fn multiply(
        &self,
        of: Outputs,
        x: &impl DevicePtr<f32>,
        y: &mut impl DevicePtrMut<f32>,
        rows: usize,
        add: bool,
    ) -> Result<()> {
        let (weight, shape) = self.weight(of, rows);
        let products = &self.machine.products;
        products.forward(self.precision, &weight, x, y, shape, add)
    }

    /// dx = dy W, or dx += dy W.
    pub(super) fn back(
        &self,
        of: Outputs,
        grad: &impl DevicePtr<f32>,
        to: &mut impl DevicePtrMut<f32>,
        rows: usize,
        add: bool,
    ) -> Result<()> {
        let (weight, shape) = self.weight(of, rows);
        let products = &self.machine.products;
        products.back(self.precision, &weight, grad, to, shape, add)
    }

    /// The weight of some outputs, and the shape of their product.
    fn weight(&self, of: Outputs, rows: usize) -> (Rows<'_>, [usize; 3]) {
        let inputs = self.block.spec.shape(of.layer).1;
        let range = of.first * inputs..(of.first + of.count) * inputs;
        (
            self.weights.weight(of.layer).slice(range),
            [of.count, inputs, rows],
        )
    }

    fn add_bias(&self, of: Outputs, y: &Buffer<f32>, rows: usize) -> Result<()> {
        let Some(bias) = self.block.bias(of.layer) else {
            return Ok(());
        };
        let machine = self.machine;
        let bias = bias.slice(of.first..of.first + of.count);
        machine.run(
            &plan::add_bias(rows, of.count),
            &[machine.place(&bias), machine.place(y)],
        )
    }

    /// The block's norm at this place, if there is one, applied to x.
    pub(super) fn normed(&self, place: NormPlace, x: &Buffer<f32>) -> Result<Option<Normed>> {
        let norm = self.block.norm(place);
        norm.map(|norm| self.machine.normed(x, norm.weight, norm.spec))
            .transpose()
    }

    /// The block's norm at this place applied to x, with what its way back needs; x where there is none.
    pub(super) fn normed_or_same(
        &self,
        place: NormPlace,
        x: Buffer<f32>,
    ) -> Result<(Buffer<f32>, Option<Raw>)> {
        Ok(match self.normed(place, &x)? {
            Some(Normed { y, roots }) => (y, Some(Raw { x, roots })),
            None => (x, None),
        })
    }

    /// `residual` + r n(x W^T + b), with r the block's factor and n the norm at this place, if there is one.
    pub(super) fn add_layer(
        &self,
        layer: LayerId,
        x: &Buffer<f32>,
        residual: &Buffer<f32>,
        place: NormPlace,
    ) -> Result<(Buffer<f32>, Option<Raw>)> {
        let of = self.whole(layer);
        let rows = residual.len() / of.count;
        if self.block.spec.residual_scale != 1.0 || self.block.norm(place).is_some() {
            return self.add_output(self.apply(of, x, rows)?, residual, place);
        }
        let mut y = self.machine.copy(residual, "hidden states")?;
        self.multiply(of, x, &mut y, rows, true)?;
        self.add_bias(of, &y, rows)?;
        Ok((y, None))
    }

    /// `residual` + r n(out).
    pub(super) fn add_output(
        &self,
        out: Buffer<f32>,
        residual: &Buffer<f32>,
        place: NormPlace,
    ) -> Result<(Buffer<f32>, Option<Raw>)> {
        let machine = self.machine;
        let y = machine.copy(residual, "hidden states")?;
        let (out, raw) = self.normed_or_same(place, out)?;
        machine.add_scaled(&out, self.block.spec.residual_scale, &y)?;
        Ok((y, raw))
    }
}

impl Machine {
    /// Adds a multiple of numbers to others.
    pub(super) fn add_scaled(&self, from: &Buffer<f32>, factor: f64, to: &Buffer<f32>) -> Result<()> {
        self.run(
            &plan::add_scaled(to.len(), factor, false),
            &[self.place(from), self.place(to)],
        )
    }

    /// A multiple of numbers.
    pub(super) fn scaled(&self, from: &Buffer<f32>, factor: f64, name: &str) -> Result<Buffer<f32>> {
        let to = self.zeros(from.len(), name)?;
        self.add_scaled(from, factor, &to)?;
        Ok(to)
    }
}
