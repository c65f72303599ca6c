use aqlm_vocabulary::{BlockSpec, GatedMlp};

use super::super::{Buffer, Result};
use super::gradients::Gradients;
use super::machine::Machine;
use super::pass::{Pass, Rows, outputs};
use super::plan;

/// The values inside a gated MLP, [rows, intermediate].
pub(super) struct Gated {
    /// the gate
    pub(super) gate: Buffer<f32>,
    /// what the activated gate multiplies
    pub(super) up: Buffer<f32>,
    /// the product of both
    pub(super) activated: Buffer<f32>,
}

impl Gated {
    /// From the MLP's input.
    pub(super) fn of(pass: Pass<'_>, mlp: &GatedMlp, x: &Buffer<f32>, rows: usize) -> Result<Self> {
        let inner = pass.block.spec.shape(mlp.down).1;
        let [gate, up] = outputs([mlp.gate, mlp.up], [inner; 2]);
        Self::activated(
            pass.machine,
            mlp,
            pass.apply(gate, x, rows)?,
            pass.apply(up, x, rows)?,
        )
    }

    /// From gate and up.
    pub(super) fn activated(
        machine: &Machine,
        mlp: &GatedMlp,
        gate: Buffer<f32>,
        up: Buffer<f32>,
    ) -> Result<Self> {
        let activated = machine.space(gate.len(), "activated")?;
        machine.run(
            &plan::gate(gate.len(), mlp.activation),
            &[&gate, &up, &activated].map(|buffer| machine.place(buffer)),
        )?;
        Ok(Self { gate, up, activated })
    }

    /// The gradients of gate and up, given that of the activated gate.
    pub(super) fn gate_back(
        &self,
        machine: &Machine,
        mlp: &GatedMlp,
        grad_activated: Buffer<f32>,
    ) -> Result<[Buffer<f32>; 2]> {
        let grad_gate = machine.space(self.gate.len(), "the gradient of gate")?;
        machine.run(
            &plan::gate_back(self.gate.len(), mlp.activation),
            &[&self.gate, &self.up, &grad_activated, &grad_gate].map(|buffer| machine.place(buffer)),
        )?;
        Ok([grad_gate, grad_activated])
    }

    /// The gradients of the layers and of the MLP's input x, given that of its output and the one which that
    /// gives to the activated gate.
    pub(super) fn backward(
        &self,
        gradients: &mut Gradients<'_>,
        mlp: &GatedMlp,
        x: &Rows<'_>,
        grad_out: &Buffer<f32>,
        grad_activated: Buffer<f32>,
        rows: usize,
    ) -> Result<Buffer<f32>> {
        let pass = gradients.pass;
        gradients.add(mlp.down, &self.activated.slice(..), &[&grad_out.slice(..)], rows)?;
        let grads = self.gate_back(pass.machine, mlp, grad_activated)?;
        let views = grads.each_ref().map(|grad| grad.slice(..));
        let layers = [mlp.gate, mlp.up];
        gradients.add_each(&layers, x, &views.each_ref(), rows)?;
        let (inner, width) = (
            pass.block.spec.shape(mlp.down).1,
            pass.block.spec.shape(mlp.gate).1,
        );
        let mut to = pass
            .machine
            .space(rows * width, "the gradient of an MLP's input")?;
        for (number, (of, grad)) in outputs(layers, [inner; 2]).into_iter().zip(&grads).enumerate() {
            pass.back(of, grad, &mut to, rows, number > 0)?;
        }
        Ok(to)
    }
}

impl Gated {
    /// Some rows' parts in the order of computation, each with the layer or module whose output it is and its
    /// width.
    pub(super) fn parts<'a>(
        &'a self,
        spec: &'a BlockSpec,
        mlp: &GatedMlp,
        rows: std::ops::Range<usize>,
    ) -> Vec<(&'a str, Rows<'a>, usize)> {
        let inner = spec.shape(mlp.down).1;
        let of = |values: &'a Buffer<f32>| values.slice(rows.start * inner..rows.end * inner);
        vec![
            (spec.linear(mlp.gate).name.as_str(), of(&self.gate), inner),
            (spec.linear(mlp.up).name.as_str(), of(&self.up), inner),
            (spec.linear(mlp.down).module(), of(&self.activated), inner),
        ]
    }
}
