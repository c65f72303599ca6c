use std::sync::Arc;

use aqlm_vocabulary::{AqlmError, CodeMetric, CodeSettings, LinearWeight, ModelTuning, ModelWeights, Scheme};

use super::super::error::check_lengths;
use super::super::llama::address;
use super::super::{Buffer, Result};
use super::machine::Machine;
use super::plan::{self, codes};
use super::quantized::Quantized;
use super::selection::Chosen;
use super::stepper::Stepper;
use super::trained::reset;

/// The straight-through buffer of one matrix on the device, with its moments and the gradient summed so far,
/// all f32 (Malinovskii et al. 2024; rules of Vahe1994/AQLM at e79a896, `src/pv_optimizer.py`).
pub(super) struct CodeBuffer {
    machine: Arc<Machine>,
    settings: CodeSettings,
    /// [out_features, in_features]
    buffer: Buffer<f32>,
    gradient: Buffer<f32>,
    stepper: Stepper<f32>,
    /// length of a row
    width: usize,
}

/// How a matrix differs from its buffer.
pub(super) struct Differences {
    /// the squared norm of each group's difference, [out_groups, in_groups]
    pub(super) norms: Buffer<f64>,
    /// parts of the squared norm of the decoded weight
    squares: Buffer<f64>,
}

impl CodeBuffer {
    /// Before the first step: the buffer is the decoded weight.
    ///
    /// # Errors
    /// `Aqlm` with `Unsupported` for a beam that is too wide for the device; `Memory`, `Driver`.
    pub(super) fn new(machine: &Arc<Machine>, quantized: &Quantized, settings: CodeSettings) -> Result<Self> {
        check_plain(settings)?;
        check_beam(machine, quantized.scheme, settings)?;
        let buffer = quantized.decoded(machine)?.named("a buffer of codes");
        Ok(Self {
            machine: Arc::clone(machine),
            settings,
            gradient: machine.zeros(buffer.len(), "the gradient of a buffer of codes")?,
            stepper: Stepper::lean(machine, settings.optimizer, buffer.len())?,
            buffer,
            width: quantized.shape().1,
        })
    }

    /// Number of weights.
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The buffer, row-major, on the host.
    pub(super) fn on_host(&self) -> Result<Vec<f32>> {
        self.machine.device().download(&self.buffer)
    }

    /// First and second moments on the host; no first ones if their decay is 0.
    pub(super) fn moments(&self) -> Result<[Vec<f64>; 2]> {
        self.stepper.moments()
    }

    /// Whether all its numbers are finite.
    pub(super) fn is_finite(&self) -> Result<bool> {
        Ok(self
            .machine
            .first_not_finite(&self.buffer.slice(..), self.width)?
            .is_none())
    }

    /// Adds to the gradient with respect to the decoded weight.
    ///
    /// # Errors
    /// `Length` for a gradient of another length; `Driver`.
    pub(super) fn add(&self, gradient: &Buffer<f32>) -> Result<()> {
        check_lengths(&[("a weight's gradient", self.len(), gradient.len())])?;
        let device = self.machine.device();
        self.machine.run(
            &codes::add(self.len()),
            &[address(device, gradient), address(device, &self.gradient)],
        )
    }

    /// Takes the sum of the gradients out, which restarts at zero.
    pub(super) fn take_gradient(&mut self) -> Result<Vec<f64>> {
        let taken = self.machine.device().download(&self.gradient)?;
        reset(&self.machine, &mut self.gradient)?;
        Ok(taken.into_iter().map(f64::from).collect())
    }

    /// Adds sums that [`CodeBuffer::take_gradient`] returned. They are numbers of f32.
    pub(super) fn add_sums(&self, sums: &[f64]) -> Result<()> {
        let narrow: Vec<f32> = sums.iter().map(|&sum| sum as f32).collect();
        self.add(&self.machine.upload(&narrow, "gradients of a buffer of codes")?)
    }

    /// Number of first moments: none if their decay is 0.
    pub(super) fn firsts(&self) -> usize {
        let [firsts, _] = self.stepper.lens();
        firsts
    }

    /// Takes over buffer and moments, row-major; a gradient that was not used is discarded.
    pub(super) fn restore(&mut self, [buffer, first, second]: [&[f64]; 3]) -> Result<()> {
        let narrow: Vec<f32> = buffer.iter().map(|&value| value as f32).collect();
        self.buffer.write(0, &narrow)?;
        self.stepper.restore(first, second)?;
        reset(&self.machine, &mut self.gradient)
    }

    /// Moves the buffer along the gradient, which is then reset; `number` counts the steps from 1.
    pub(super) fn move_buffer(&self, lr: f64, number: u32) -> Result<()> {
        self.stepper.step(lr, number, &self.buffer, &self.gradient)
    }

    /// How the matrix, with codebooks and scales after the step, differs from the buffer.
    pub(super) fn differences(&self, quantized: &Quantized) -> Result<Differences> {
        let (machine, device) = (&*self.machine, self.machine.device());
        let (out, inputs) = quantized.shape();
        let count = quantized.count();
        let norms = machine.space(count, "differences of groups")?;
        let squares = machine.space(codes::norm_blocks(count), "squares of a weight")?;
        machine.run(
            &codes::norms(quantized.scheme, out, inputs),
            &[
                address(device, &self.buffer),
                address(device, quantized.codes()),
                address(device, &quantized.codebooks),
                address(device, &quantized.scales),
                address(device, &norms),
                address(device, &squares),
            ],
        )?;
        Ok(Differences { norms, squares })
    }

    /// [`CodeBuffer::differences`], and the groups that may change of a budget for this matrix: the share of
    /// its groups, rounded up, in the official order of multiplication.
    pub(super) fn of_matrix(&self, quantized: &Quantized) -> Result<(Differences, Chosen)> {
        let differences = self.differences(quantized)?;
        let (out_groups, in_groups) = quantized.groups;
        let count = (self.settings.max_change * out_groups as f64 * in_groups as f64).ceil() as usize;
        let count = count.min(quantized.count());
        let ordered = self.settings.trust_ratio.is_some();
        let chosen = self.machine.largest_of(&differences.norms, count, ordered)?;
        Ok((differences, chosen))
    }

    /// Gives chosen groups the codes nearest to the buffer's group divided by its scale. With a trust ratio
    /// only the first of them change, by size, until the norm of all changes passes that share of the
    /// weight's norm. At the address `visits` are the numbers of the codebooks in the order of their visits.
    /// The number of groups that change is added to the integer at `changed`.
    ///
    /// Groups whose target is not finite, as under a scale of zero, keep their codes.
    pub(super) fn recode(
        &self,
        quantized: &mut Quantized,
        differences: &Differences,
        chosen: &Chosen,
        visits: u64,
        changed: u64,
    ) -> Result<()> {
        let (machine, device) = (&*self.machine, self.machine.device());
        let scheme = quantized.scheme;
        let (books, inputs, count) = (scheme.num_codebooks, quantized.shape().1, chosen.len());
        if count == 0 {
            return Ok(());
        }
        let narrow: Buffer<f32> = machine.space(quantized.codebooks.len(), "codebooks in f32")?;
        let forms: Buffer<f32> = machine.space(books * scheme.codebook_size(), "lengths of codewords")?;
        let found: Buffer<u16> = machine.space(count * books, "new codes")?;
        let places = address(device, &chosen.places);
        let [codebooks, scales] =
            [&quantized.codebooks, &quantized.scales].map(|buffer| address(device, buffer));
        machine.run(
            &plan::narrow(narrow.len()),
            &[codebooks, address(device, &narrow)],
        )?;
        machine.run(
            &codes::forms(scheme),
            &[address(device, &narrow), 0, address(device, &forms)],
        )?;
        let own = address(device, quantized.own_codes()?);
        machine.run(
            &self.search(scheme, inputs, count)?,
            &[
                address(device, &self.buffer),
                scales,
                address(device, &narrow),
                address(device, &forms),
                own,
                places,
                visits,
                address(device, &found),
            ],
        )?;
        let order = machine.by_size(chosen)?;
        let kept: Buffer<u32> = machine.zeros(1, "the number of changes that are kept")?;
        if let (Some(order), Some(ratio)) = (&order, self.settings.trust_ratio) {
            let changes: Buffer<f64> = machine.space(count, "changes of groups")?;
            machine.run(
                &codes::changes(scheme, inputs, count),
                &[
                    own,
                    address(device, &found),
                    places,
                    codebooks,
                    scales,
                    address(device, &changes),
                ],
            )?;
            machine.run(
                &codes::trust(count, differences.squares.len(), ratio),
                &[
                    address(device, &changes),
                    address(device, order),
                    address(device, &differences.squares),
                    address(device, &kept),
                ],
            )?;
        }
        machine.run(
            &codes::adopt(count, books, order.is_some()),
            &[
                own,
                address(device, &found),
                places,
                order.as_ref().map_or(0, |order| address(device, order)),
                address(device, &kept),
                changed,
            ],
        )
    }

    fn search(&self, scheme: Scheme, inputs: usize, count: usize) -> Result<plan::Plan> {
        search(&self.machine, scheme, inputs, count, self.settings)
    }

    /// What remains of the buffer, given the matrix with its new codes: (1 - d) B + d W.
    pub(super) fn decay(&self, quantized: &Quantized) -> Result<()> {
        let d = self.settings.delta_decay;
        if d == 0.0 {
            return Ok(());
        }
        let device = self.machine.device();
        let (out, inputs) = quantized.shape();
        self.machine.run(
            &codes::decay(quantized.scheme, out, inputs, d),
            &[
                address(device, &self.buffer),
                address(device, quantized.codes()),
                address(device, &quantized.codebooks),
                address(device, &quantized.scales),
            ],
        )
    }
}

fn search(
    machine: &Machine,
    scheme: Scheme,
    inputs: usize,
    count: usize,
    settings: CodeSettings,
) -> Result<plan::Plan> {
    let shared_bytes = machine.device().target().shared_bytes;
    let (beam, residuals) = (settings.beam, settings.residuals);
    // With one codebook one hypothesis is all there is.
    let beam = if scheme.num_codebooks == 1 { 1 } else { beam };
    Ok(codes::search(
        scheme,
        inputs,
        count,
        beam,
        residuals,
        shared_bytes,
    )?)
}

/// Rejects what no kernel does: another metric than Euclid, and the fit of codebooks to buffers.
fn check_plain(settings: CodeSettings) -> Result<()> {
    let refused = [
        (
            settings.metric != CodeMetric::Euclid,
            "codes that are nearest by the gradients' metric",
        ),
        (settings.refit > 0.0, "codebooks that are fitted to buffers"),
    ];
    match refused.into_iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(AqlmError::Unsupported(format!(
            "the cuda backend does not tune {what}; the cpu and the reference backend do"
        ))
        .into()),
        None => Ok(()),
    }
}

/// Rejects a beam that the device cannot search with.
fn check_beam(machine: &Machine, scheme: Scheme, settings: CodeSettings) -> Result<()> {
    search(machine, scheme, scheme.in_group_size, 1, settings).map(drop)
}

impl Machine {
    /// Rejects settings of codes that no device follows, whatever the weights.
    ///
    /// # Errors
    /// `Aqlm` with `Unsupported` for a metric or a fit of codebooks that no kernel does.
    pub fn check_tuning(&self, tuning: &ModelTuning) -> Result<()> {
        tuning.codes.map_or(Ok(()), check_plain)
    }

    /// Rejects settings of codes that this device cannot follow for these weights.
    ///
    /// # Errors
    /// `Aqlm` with `Argument` when settings are out of their range, with `Unsupported` for a beam that is too
    /// wide, and for a metric or a fit of codebooks that no kernel does.
    pub fn check_codes(&self, weights: &ModelWeights, tuning: &ModelTuning) -> Result<()> {
        let Some(settings) = tuning.codes else {
            return Ok(());
        };
        tuning.check_codes()?;
        self.check_tuning(tuning)?;
        for linear in weights.blocks.iter().flat_map(|block| &block.layers) {
            if let LinearWeight::Quantized(matrix) = &linear.weight {
                check_beam(self, matrix.scheme(), settings)?;
            }
        }
        Ok(())
    }
}
