//! Gradients of a block's parameters on their way to whoever wants them.

use aqlm_vocabulary::{LayerId, NormPlace};

use super::super::{Buffer, Result};
use super::norms::{Chunks, Raw};
use super::pass::{Pass, Rows, is_one};
use crate::cpu::llama::Wanted;

/// A gradient of a block's parameter, over all rows of a pass.
pub enum BlockGradient {
    /// with respect to the decoded weight, [out_features, in_features]
    Weight(LayerId, Buffer<f32>),
    /// with respect to the bias: sums over chunks of rows, [chunks, out_features]
    Bias(LayerId, Chunks),
    /// with respect to the weight of one of the block's norms, by its index there
    Norm(usize, Chunks),
}

/// The way back through a block, and where gradients of its parameters go.
pub(super) struct Gradients<'a> {
    pub(super) pass: Pass<'a>,
    pub(super) wanted: &'a Wanted,
    pub(super) sink: &'a mut dyn FnMut(BlockGradient) -> Result<()>,
}

impl Gradients<'_> {
    /// Those of layers that read the same x, [rows, in_features], given those of their outputs, [rows,
    /// out_features] each: of different layers, or of the parts of one.
    pub(super) fn add_each(
        &mut self,
        layers: &[LayerId],
        x: &Rows<'_>,
        grads: &[&Rows<'_>],
        rows: usize,
    ) -> Result<()> {
        if is_one(layers) {
            return self.add(layers[0], x, grads, rows);
        }
        let mut each = layers.iter().zip(grads);
        each.try_for_each(|(&layer, grad)| self.add(layer, x, &[grad], rows))
    }

    /// Those of a layer, given those of its outputs in parts, one after another. Without rows they are zero.
    pub(super) fn add(
        &mut self,
        layer: LayerId,
        x: &Rows<'_>,
        grads: &[&Rows<'_>],
        rows: usize,
    ) -> Result<()> {
        let Pass {
            machine,
            precision,
            block,
            ..
        } = self.pass;
        let (out, inputs) = block.spec.shape(layer);
        if self.wanted.weights[layer.index()] {
            let name = "the gradient of a weight";
            let weight = if rows == 0 {
                machine.zeros(out * inputs, name)?
            } else {
                let mut weight = machine.space(out * inputs, name)?;
                let mut first = 0;
                for grad in grads {
                    let last = first + grad.len() / rows.max(1);
                    let mut to = weight.slice_mut(first * inputs..last * inputs);
                    let shape = [last - first, inputs, rows];
                    machine
                        .products
                        .weight(precision, *grad, x, &mut to, shape, false)?;
                    first = last;
                }
                weight
            };
            (self.sink)(BlockGradient::Weight(layer, weight))?;
        }
        if self.wanted.biases && block.bias(layer).is_some() {
            let sums = self.bias(out, grads, rows)?;
            (self.sink)(BlockGradient::Bias(layer, sums))?;
        }
        Ok(())
    }

    fn bias(&self, out: usize, grads: &[&Rows<'_>], rows: usize) -> Result<Chunks> {
        let machine = self.pass.machine;
        if let [grad] = grads {
            return machine.column_sums(*grad, None, out);
        }
        let sums = machine.zeros(out, "the gradient of a bias")?;
        let mut first = 0;
        for grad in grads {
            let last = first + grad.len() / rows.max(1);
            let part = machine.column_sums(*grad, None, last - first)?;
            machine.add_chunks(&part, &sums.slice(first..last))?;
            first = last;
        }
        Ok(Chunks {
            sums,
            count: 1,
            width: out,
        })
    }

    /// The gradient of the output of attention or of the MLP, given that of what the block adds to the
    /// residual stream; `None` where they are the same.
    pub(super) fn through_branch(
        &mut self,
        place: NormPlace,
        raw: Option<&Raw>,
        grad: &Buffer<f32>,
    ) -> Result<Option<Buffer<f32>>> {
        let (machine, factor) = (self.pass.machine, self.pass.block.spec.residual_scale);
        let scaled = (factor != 1.0)
            .then(|| machine.scaled(grad, factor, "the gradient of a branch"))
            .transpose()?;
        match raw {
            Some(raw) => self
                .through_norm(place, raw, scaled.as_ref().unwrap_or(grad))
                .map(Some),
            None => Ok(scaled),
        }
    }

    /// The gradient of the input of the norm at this place, given that of its result.
    pub(super) fn through_norm(
        &mut self,
        place: NormPlace,
        raw: &Raw,
        grad: &Buffer<f32>,
    ) -> Result<Buffer<f32>> {
        let to = self
            .pass
            .machine
            .zeros(grad.len(), "the gradient of a norm's input")?;
        self.add_through_norm(place, &raw.x, Some(&raw.roots), grad, Some(&to))?;
        Ok(to)
    }

    /// Adds the gradient through the norm at this place, whose input is x, to that of x, if wanted, given
    /// that of its result. Without such a norm, adds the gradient itself.
    pub(super) fn add_through_norm(
        &mut self,
        place: NormPlace,
        x: &Buffer<f32>,
        roots: Option<&Buffer<f32>>,
        grad: &Buffer<f32>,
        to: Option<&Buffer<f32>>,
    ) -> Result<()> {
        let machine = self.pass.machine;
        let (Some(norm), Some(roots)) = (self.pass.block.norm(place), roots) else {
            return to.map_or(Ok(()), |to| machine.add_scaled(grad, 1.0, to));
        };
        if let Some(to) = to {
            machine.norm_back(x, (norm.spec, norm.weight), roots, grad, to)?;
        }
        if self.wanted.norms {
            let sums = machine.norm_sums(grad, x, roots, norm.weight.len())?;
            (self.sink)(BlockGradient::Norm(norm.index, sums))?;
        }
        Ok(())
    }
}
