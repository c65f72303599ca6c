use std::ops::Range;

use aqlm_vocabulary::{AqlmError, ComparedPosition, LogitSpec, NormSpec};
use ndarray::{Array1, Array2};

use super::super::error::check_lengths;
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
    /// what becomes of the products
    logits: LogitSpec,
    /// of the norm, `[hidden]`
    weight: Buffer<f32>,
    /// [vocab, hidden]
    output: Buffer<f32>,
    vocab: usize,
}

impl Head {
    /// The head of the machine's model, from the norm's weight, `[hidden]`, and lm_head, [vocab, hidden].
    ///
    /// # Errors
    /// `Aqlm` with `Shape` when weight and lm_head do not match; `Memory`, `Driver`.
    pub fn new(machine: &Machine, weight: &Array1<f32>, lm_head: &Array2<f32>) -> Result<Self> {
        if weight.len() != lm_head.ncols() {
            return Err(AqlmError::Shape {
                what: "final norm".into(),
                expected: vec![lm_head.ncols()],
                found: vec![weight.len()],
            }
            .into());
        }
        Ok(Self {
            norm: machine.arch().final_norm,
            logits: machine.arch().logits,
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
        matrix(
            (rows, self.width()),
            machine.device().download(&self.rows(machine, x)?)?,
        )
    }

    /// Logits of hidden states: [rows, hidden] to [rows, vocab].
    ///
    /// # Errors
    /// `Memory`, `Driver`, `Library`.
    pub fn logits(&self, machine: &Machine, x: &Buffer<f32>) -> Result<Array2<f32>> {
        let rows = x.len() / self.width();
        let mut all = Vec::with_capacity(rows * self.vocab);
        let x = self.rows(machine, x)?;
        for chunk in Self::chunks(machine, rows) {
            all.extend(machine.device().download(&self.logits_of(machine, &x, chunk)?)?);
        }
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
        let x = self.rows(machine, x)?;
        for rows in Self::chunks(machine, targets.len()) {
            let logits = self.logits_of(machine, &x, rows.clone())?;
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
        }
        Ok(all)
    }

    /// The gradient of the summed negative log-likelihoods of labels, one a row, with respect to hidden
    /// states [rows, hidden].
    ///
    /// # Errors
    /// `Aqlm` with `TokenOutOfRange` when a label exceeds the vocabulary; `Length` unless there is one label
    /// a row; `Memory`, `Driver`, `Library`.
    pub fn label_gradient(&self, machine: &Machine, x: &Buffer<f32>, labels: &[u32]) -> Result<Buffer<f32>> {
        check_tokens(labels, self.vocab)?;
        let (device, width) = (machine.device(), self.width());
        let rows = x.len() / width;
        check_lengths(&[("labels", rows, labels.len())])?;
        let normed = machine.normed(x, &self.weight, self.norm)?;
        let mut grad_normed = machine.space(x.len(), "the gradient of the final norm")?;
        for rows in Self::chunks(machine, rows) {
            let logits = self.logits_of(machine, &normed.y, rows.clone())?;
            let finished = machine.kept_logits(self.logits, &logits)?;
            let labels = machine.upload(&labels[rows.clone()], "labels")?;
            let losses = machine.space::<f64>(rows.len(), "losses")?;
            machine.run(
                &plan::token_loss(rows.len(), self.vocab, Some(1.0)),
                &[
                    address(device, &logits),
                    address(device, &labels),
                    address(device, &losses),
                ],
            )?;
            machine.logits_back(self.logits, finished.as_ref(), &logits)?;
            let mut to = grad_normed.slice_mut(rows.start * width..rows.end * width);
            machine.products.back(
                Precision::Single,
                &self.output,
                &logits,
                &mut to,
                [self.vocab, width, rows.len()],
                false,
            )?;
        }
        let grad = machine.zeros(x.len(), "the gradient of hidden states")?;
        let norm = (self.norm, &self.weight);
        machine.norm_back(x, norm, &normed.roots, &grad_normed, &grad)?;
        Ok(grad)
    }

    /// Compares next-token distributions with those of a dense model on the same device, at rows of hidden
    /// states from `first` on, one for each target. `x` and `dense_x` are [rows, hidden of that model].
    ///
    /// # Errors
    /// `Aqlm` with `Shape` when vocabularies or numbers of rows differ or rows are missing, with
    /// `TokenOutOfRange` when a target exceeds the vocabulary; `Memory`, `Driver`, `Library`.
    pub fn compare(
        &self,
        (machine, x): (&Machine, &Buffer<f32>),
        dense: &Self,
        (dense_machine, dense_x): (&Machine, &Buffer<f32>),
        first: usize,
        targets: &[u32],
    ) -> Result<Vec<ComparedPosition>> {
        check_tokens(targets, self.vocab)?;
        let rows = x.len() / self.width();
        let expected = [rows.max(first + targets.len()), rows, self.vocab];
        let found = [rows, dense_x.len() / dense.width(), dense.vocab];
        if found != expected {
            return Err(AqlmError::Shape {
                what: "two models' rows and vocabulary".into(),
                expected: expected.to_vec(),
                found: found.to_vec(),
            }
            .into());
        }
        let device = machine.device();
        let (x, dense_x) = (self.rows(machine, x)?, dense.rows(dense_machine, dense_x)?);
        let mut all = Vec::with_capacity(targets.len());
        for rows in Self::chunks(machine, targets.len()) {
            let read = first + rows.start..first + rows.end;
            let of_dense = dense.logits_of(dense_machine, &dense_x, read.clone())?;
            // Two machines may compute on streams of their own.
            dense_machine.wait()?;
            let logits = self.logits_of(machine, &x, read)?;
            let targets = machine.upload(&targets[rows.clone()], "targets")?;
            let numbers = machine.space::<f64>(4 * rows.len(), "numbers")?;
            let same = machine.space::<u32>(rows.len(), "same")?;
            machine.run(
                &plan::compare_rows(rows.len(), self.vocab),
                &[
                    address(device, &of_dense),
                    address(device, &logits),
                    address(device, &targets),
                    address(device, &numbers),
                    address(device, &same),
                ],
            )?;
            let (numbers, same) = (device.download(&numbers)?, device.download(&same)?);
            let rows = numbers.as_chunks::<4>().0.iter().zip(&same);
            all.extend(
                rows.map(|(&[kl, dense_loss, loss, dense_top], &same)| ComparedPosition {
                    kl,
                    dense_loss,
                    loss,
                    dense_top,
                    same_top: same == 1,
                }),
            );
        }
        Ok(all)
    }

    /// The input of the output layer, [rows, hidden], from hidden states.
    fn rows(&self, machine: &Machine, x: &Buffer<f32>) -> Result<Buffer<f32>> {
        Ok(machine.normed(x, &self.weight, self.norm)?.y)
    }

    /// Divides rows into as many at once as memory for logits allows.
    fn chunks(machine: &Machine, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let at_once = machine.rows_of_logits();
        (0..rows)
            .step_by(at_once)
            .map(move |first| first..rows.min(first + at_once))
    }

    /// Logits of some rows of the output layer's input, [rows, vocab].
    fn logits_of(&self, machine: &Machine, normed: &Buffer<f32>, rows: Range<usize>) -> Result<Buffer<f32>> {
        let width = self.width();
        let mut logits = machine.space(rows.len() * self.vocab, "logits")?;
        machine.products.forward(
            Precision::Single,
            &self.output,
            &normed.slice(rows.start * width..rows.end * width),
            &mut logits,
            [self.vocab, width, rows.len()],
            false,
        )?;
        machine.finish_logits(self.logits, &logits)?;
        Ok(logits)
    }
}

impl Machine {
    /// Makes logits of the products of states and output layer, in place.
    pub(super) fn finish_logits(&self, spec: LogitSpec, products: &Buffer<f32>) -> Result<()> {
        if spec == LogitSpec::PLAIN {
            return Ok(());
        }
        let plan = plan::finish_logits(products.len(), spec);
        self.run(&plan, &[self.place(products)])
    }

    /// A copy of logits for [`Machine::logits_back`], which needs them with a cap only.
    pub(super) fn kept_logits(&self, spec: LogitSpec, logits: &Buffer<f32>) -> Result<Option<Buffer<f32>>> {
        let copy = spec.cap.map(|_| self.copy(logits, "capped logits"));
        copy.transpose()
    }

    /// Makes gradients with respect to the products from those with respect to logits, in place.
    pub(super) fn logits_back(
        &self,
        spec: LogitSpec,
        logits: Option<&Buffer<f32>>,
        grad: &Buffer<f32>,
    ) -> Result<()> {
        if spec == LogitSpec::PLAIN {
            return Ok(());
        }
        let plan = plan::finish_back(grad.len(), spec);
        // Without a cap the first is not read.
        self.run(&plan, &[self.place(logits.unwrap_or(grad)), self.place(grad)])
    }
}
