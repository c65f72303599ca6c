use std::ops::Range;

use aqlm_vocabulary::{AqlmError, Target, TopTokens};
use ndarray::ArrayView2;
use rayon::prelude::*;

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::machine::Machine;
use super::plan;
use super::products::Precision;
use crate::cpu::llama::check_tokens;

/// The output layer of a teacher, kept on the device from one step to the next.
#[derive(Default)]
pub(super) struct TeacherHead {
    /// as it came, to notice another one
    host: Vec<f32>,
    there: Option<Buffer<f32>>,
    /// where the layer lies that has been compared in this call; nothing can change there before the call
    /// ends
    compared: Option<(usize, usize)>,
}

impl TeacherHead {
    /// Begins a call with targets of its own.
    pub(super) fn begin(&mut self) {
        self.compared = None;
    }

    /// The layer [vocab, hidden] on the device; copied there unless it is the one that already is.
    fn resident(&mut self, machine: &Machine, head: &ArrayView2<'_, f32>) -> Result<&Buffer<f32>> {
        let place = (head.as_ptr().addr(), head.len());
        if self.compared != Some(place) {
            let head = head.as_standard_layout();
            let values = head.as_slice().unwrap_or_default();
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            let known = self.host.len() == values.len() && self.host.par_iter().zip(values).all(same);
            if !known || self.there.is_none() {
                self.there = Some(machine.upload(values, "the teacher's lm_head")?);
                self.host = values.to_vec();
            }
            self.compared = Some(place);
        }
        match &self.there {
            Some(there) => Ok(there),
            None => Err(AqlmError::Device("the teacher's lm_head is gone".into()).into()),
        }
    }
}

/// A target of one sequence in the form that kernels read.
enum Known<'a> {
    Tokens(Buffer<u32>),
    /// the teacher's hidden states after its norm, and its output layer
    Teacher(Buffer<f32>, &'a Buffer<f32>),
    Top {
        tokens: Buffer<u32>,
        log_probabilities: Buffer<f32>,
        rest: Buffer<f32>,
        listed: usize,
    },
}

/// What the losses of one sequence's positions are computed from.
pub(super) struct Scored<'a, 't> {
    /// after the final norm, [positions, hidden]
    pub(super) normed: &'a Buffer<f32>,
    /// the output layer, [vocab, hidden]
    pub(super) head: &'a Buffer<f32>,
    pub(super) tokens: &'a [u32],
    pub(super) target: Target<'t>,
}

/// Where the gradients of losses go: scale times that of the normed states, [positions, hidden], and that of
/// the output layer, which is added if wanted.
pub(super) struct LossGradients<'a> {
    pub(super) scale: f64,
    pub(super) normed: &'a mut Buffer<f32>,
    pub(super) head: Option<&'a mut Buffer<f32>>,
}

impl Machine {
    /// The loss of one sequence, summed over its positions, and its gradients if they are wanted. Logits
    /// exist for a few rows at a time.
    pub(super) fn loss(
        &self,
        precision: Precision,
        scored: &Scored<'_, '_>,
        teacher: &mut TeacherHead,
        mut gradients: Option<LossGradients<'_>>,
    ) -> Result<f64> {
        let arch = self.arch();
        let (vocab, width) = (arch.vocab_size, arch.hidden_size);
        let positions = scored.normed.len() / width;
        let known = self.known(scored.tokens, scored.target, positions, teacher)?;
        let at_once = self.rows_of_logits();
        let device = self.device();
        let losses = self.space(positions, "losses")?;
        for first in (0..positions).step_by(at_once) {
            let rows = first..positions.min(first + at_once);
            let of_rows = rows.start * width..rows.end * width;
            let normed = scored.normed.slice(of_rows.clone());
            let shape = [vocab, width, rows.len()];
            let mut logits = self.space(rows.len() * vocab, "logits")?;
            self.products
                .forward(precision, scored.head, &normed, &mut logits, shape, false)?;
            self.finish_logits(arch.logits, &logits)?;
            let finished = match gradients {
                Some(_) => self.kept_logits(arch.logits, &logits)?,
                None => None,
            };
            let scale = gradients.as_ref().map(|gradients| gradients.scale);
            self.row_losses(precision, &known, &logits, &losses, rows, scale)?;
            if let Some(gradients) = &mut gradients {
                self.logits_back(arch.logits, finished.as_ref(), &logits)?;
                if let Some(head) = &mut gradients.head {
                    self.products
                        .weight(precision, &logits, &normed, *head, shape, true)?;
                }
                let mut to = gradients.normed.slice_mut(of_rows);
                self.products
                    .back(precision, scored.head, &logits, &mut to, shape, false)?;
            }
        }
        Ok(device.download(&losses)?.iter().sum())
    }

    /// Losses of some rows; with a scale, gradients replace the logits.
    fn row_losses(
        &self,
        precision: Precision,
        known: &Known<'_>,
        logits: &Buffer<f32>,
        losses: &Buffer<f64>,
        rows: Range<usize>,
        scale: Option<f64>,
    ) -> Result<()> {
        let device = self.device();
        let (vocab, count) = (self.arch().vocab_size, rows.len());
        let losses = address(device, losses) + (rows.start * size_of::<f64>()) as u64;
        let words = |buffer: u64, width: usize| buffer + (rows.start * width * size_of::<u32>()) as u64;
        let logits_there = address(device, logits);
        match known {
            Known::Tokens(targets) => self.run(
                &plan::token_loss(count, vocab, scale),
                &[logits_there, words(address(device, targets), 1), losses],
            ),
            Known::Teacher(states, head) => {
                let width = head.len() / vocab;
                let mut teacher = self.space(count * vocab, "the teacher's logits")?;
                let states = states.slice(rows.start * width..rows.end * width);
                self.products.forward(
                    precision,
                    *head,
                    &states,
                    &mut teacher,
                    [vocab, width, count],
                    false,
                )?;
                // A teacher's logits are made of its states as the model's own.
                self.finish_logits(self.arch().logits, &teacher)?;
                self.run(
                    &plan::teacher_loss(count, vocab, scale),
                    &[logits_there, address(device, &teacher), losses],
                )
            }
            Known::Top {
                tokens,
                log_probabilities,
                rest,
                listed,
            } => {
                let before = self.space::<f32>(count * listed, "listed logits")?;
                self.run(
                    &plan::top_loss(count, vocab, *listed, scale),
                    &[
                        logits_there,
                        words(address(device, tokens), *listed),
                        words(address(device, log_probabilities), *listed),
                        words(address(device, rest), 1),
                        address(device, &before),
                        losses,
                    ],
                )
            }
        }
    }

    fn known<'a>(
        &self,
        tokens: &[u32],
        target: Target<'_>,
        positions: usize,
        teacher: &'a mut TeacherHead,
    ) -> Result<Known<'a>> {
        let vocab = self.arch().vocab_size;
        match target {
            Target::NextTokens => {
                let targets = &tokens[tokens.len() - positions..];
                check_tokens(targets, vocab)?;
                Ok(Known::Tokens(self.upload(targets, "targets")?))
            }
            Target::Teacher { states, head } => {
                let expected = [positions, head.ncols(), vocab];
                let found = [states.nrows(), states.ncols(), head.nrows()];
                if found != expected {
                    return Err(AqlmError::Shape {
                        what: "the teacher's states".into(),
                        expected: expected.to_vec(),
                        found: found.to_vec(),
                    }
                    .into());
                }
                let states = states.as_standard_layout();
                let states = self.upload(states.as_slice().unwrap_or_default(), "the teacher's states")?;
                Ok(Known::Teacher(states, teacher.resident(self, &head)?))
            }
            Target::Top(top) => self.listed(top, positions),
        }
    }

    fn listed<'a>(&self, top: &TopTokens, positions: usize) -> Result<Known<'a>> {
        let listed = top.tokens.ncols();
        let shapes = [
            top.tokens.shape(),
            top.log_probabilities.shape(),
            &[top.rest.len(), listed],
        ];
        for found in shapes {
            if found != [positions, listed] {
                return Err(AqlmError::Shape {
                    what: "the teacher's likeliest tokens".into(),
                    expected: vec![positions, listed],
                    found: found.to_vec(),
                }
                .into());
            }
        }
        let tokens: Vec<u32> = top.tokens.iter().copied().collect();
        check_tokens(&tokens, self.arch().vocab_size)?;
        let log_probabilities: Vec<f32> = top.log_probabilities.iter().copied().collect();
        Ok(Known::Top {
            tokens: self.upload(&tokens, "listed tokens")?,
            log_probabilities: self.upload(&log_probabilities, "their probabilities")?,
            rest: self.upload(&top.rest.to_vec(), "the rest's probability")?,
            listed,
        })
    }
}
