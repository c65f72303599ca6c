use aqlm_vocabulary::{AqlmError, NormSpec};
use ndarray::{Array1, Array2};

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::block::matrix;
use super::machine::Machine;
use super::plan;
use super::products::Precision;
use crate::cpu::llama::check_tokens;

/// The RMSNorm before the head, and the head.
pub struct Head {
    norm: NormSpec,
    /// of the norm, `[hidden]`
    weight: Buffer<f32>,
    /// [vocab, hidden]
    output: Buffer<f32>,
    vocab: usize,
}

impl Head {
    /// From the norm, its weight, `[hidden]`, and lm_head, [vocab, hidden].
    ///
    /// # Errors
    /// `Aqlm` with `Shape` when weight and lm_head do not match; `Memory`, `Driver`.
    pub fn new(
        machine: &Machine,
        norm: NormSpec,
        weight: &Array1<f32>,
        lm_head: &Array2<f32>,
    ) -> Result<Self> {
        if weight.len() != lm_head.ncols() {
            return Err(AqlmError::Shape {
                what: "final norm".into(),
                expected: vec![lm_head.ncols()],
                found: vec![weight.len()],
            }
            .into());
        }
        Ok(Self {
            norm,
            weight: machine.upload(&weight.to_vec(), "the final norm")?,
            output: machine.table(lm_head, "lm_head")?,
            vocab: lm_head.nrows(),
        })
    }

    fn width(&self) -> usize {
        self.weight.len()
    }

    /// The input of the output layer: hidden states [rows, hidden] after the norm.
    ///
    /// # Errors
    /// `Memory`, `Driver`.
    pub fn normed(&self, machine: &Machine, x: &Buffer<f32>) -> Result<Array2<f32>> {
        let rows = x.len() / self.width();
        let (normed, _) = machine.normed(x, &self.weight, rows, self.norm.epsilon)?;
        matrix((rows, self.width()), machine.device().download(&normed)?)
    }

    /// Logits of hidden states: [rows, hidden] to [rows, vocab].
    ///
    /// # Errors
    /// `Memory`, `Driver`, `Library`.
    pub fn logits(&self, machine: &Machine, x: &Buffer<f32>) -> Result<Array2<f32>> {
        let rows = x.len() / self.width();
        let mut all = Vec::with_capacity(rows * self.vocab);
        self.each_chunk(machine, x, &mut |logits, _| {
            all.extend(machine.device().download(&logits)?);
            Ok(())
        })?;
        matrix((rows, self.vocab), all)
    }

    /// Negative log-likelihoods in nats of a target for each row of hidden states, [rows, hidden].
    ///
    /// # Errors
    /// `Aqlm` with `TokenOutOfRange` when a target exceeds the vocabulary; `Memory`, `Driver`, `Library`.
    pub fn losses(&self, machine: &Machine, x: &Buffer<f32>, targets: &[u32]) -> Result<Vec<f64>> {
        check_tokens(targets, self.vocab)?;
        let device = machine.device();
        let mut all = Vec::with_capacity(targets.len());
        self.each_chunk(machine, x, &mut |logits, rows| {
            let targets = machine.upload(&targets[rows.clone()], "targets")?;
            let losses = machine.space::<f64>(rows.len(), "losses")?;
            machine.run(
                &plan::token_loss(rows.len(), self.vocab, None),
                &[
                    address(device, &logits),
                    address(device, &targets),
                    address(device, &losses),
                ],
            )?;
            all.extend(device.download(&losses)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// Logits of the rows, as many at once as memory for logits allows.
    fn each_chunk(
        &self,
        machine: &Machine,
        x: &Buffer<f32>,
        each: &mut dyn FnMut(Buffer<f32>, std::ops::Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let width = self.width();
        let rows = x.len() / width;
        let (normed, _) = machine.normed(x, &self.weight, rows, self.norm.epsilon)?;
        let at_once = machine.rows_of_logits();
        for first in (0..rows).step_by(at_once) {
            let last = rows.min(first + at_once);
            let mut logits = machine.space((last - first) * self.vocab, "logits")?;
            machine.products.forward(
                Precision::Single,
                &self.output,
                &normed.slice(first * width..last * width),
                &mut logits,
                [self.vocab, width, last - first],
                false,
            )?;
            each(logits, first..last)?;
        }
        Ok(())
    }
}
