//! Divergence of a model from the dense model: how far apart their next-token distributions are on a text.
//!
//! The dense model's distributions are computed beside the model's on the same machine, or read from a base
//! file. Only one window's logits of each model are in memory. docs/evaluation.md defines the statistics.

mod base;
mod statistics;

pub use base::{BaseWriter, Computed, DenseRows, Kept, base_key};
pub use statistics::statistics;

use aqlm_vocabulary::ComparedPosition;

use crate::backend_kind::BackendKind;
use crate::backends::OnMachine;
use crate::ops::{DenseStates, TrainOps, Weights};
use crate::position::{compare_all, log_softmax};
use crate::protocol::EvaluationText;
use crate::window_logits::{BehindBlocks, Reading, WindowLogits, last_hidden};
use aqlm_formats::{Error, Result};
use base::scored;

/// Progress: one more block has been passed, or one more window compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DivergenceEvent {
    /// a model's block
    Block,
    /// a window
    Window,
}

/// Origin of the dense model's distributions.
pub enum Dense<'a> {
    /// the model itself, and the base file to be written
    Model(&'a dyn Weights, Option<&'a mut BaseWriter>),
    /// a base file, and the model itself if the noise floor is wanted
    File(Kept<'a>, Option<&'a dyn Weights>),
}

/// Positions of the model against the dense model, and of the dense model, rounded to bf16 behind every
/// block, against itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// the model
    pub model: Vec<ComparedPosition>,
    /// the noise floor, if it was measured
    pub noise: Option<Vec<ComparedPosition>>,
}

/// Compares a model with the dense model at every scored position of a text.
///
/// # Errors
/// `Argument` for a dense model of another vocabulary; those of [`Reading::with_logits`] and of the base
/// file.
pub fn compare(
    backend: BackendKind,
    text: &EvaluationText,
    model: &dyn Weights,
    dense: Dense<'_>,
    noise_floor: bool,
    progress: &dyn Fn(DivergenceEvent),
) -> Result<Compared> {
    let inputs = text.model_inputs();
    let windows: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
    let vocab = model.config().vocab_size;
    if let Dense::Model(weights, _) | Dense::File(_, Some(weights)) = &dense
        && weights.config().vocab_size != vocab
    {
        return Err(Error::argument(
            "dense model",
            &format!("a vocabulary of {vocab} tokens, as the model has"),
            weights.config().vocab_size.to_string(),
        ));
    }
    // All models stay until every window has been compared.
    let against = |rows: &mut dyn DenseRows, noise: Option<&dyn Weights>| {
        reading(backend, model, &windows).with_logits(&mut |_| progress(DivergenceEvent::Block), |model| {
            match noise {
                None => by_window(text, rows, model, None, progress),
                Some(weights) => Reading {
                    behind: BehindBlocks::RoundedToBf16,
                    ..reading(backend, weights, &windows)
                }
                .with_logits(&mut |_| progress(DivergenceEvent::Block), |noise| {
                    by_window(text, rows, model, Some(noise), progress)
                }),
            }
        })
    };
    match dense {
        Dense::Model(weights, None) => {
            let longest = windows.iter().map(|window| window.len()).max().unwrap_or(0);
            let together = Together {
                text,
                windows: &windows,
                longest,
                model,
                dense: weights,
                noise_floor,
                progress,
            };
            backend.run(model.config(), longest, together)
        }
        Dense::Model(weights, save) => reading(backend, weights, &windows).with_logits(
            &mut |_| progress(DivergenceEvent::Block),
            |logits| {
                let first = text.first_scored();
                let mut rows = Computed { logits, first, save };
                against(&mut rows, noise_floor.then_some(weights))
            },
        ),
        Dense::File(mut rows, weights) => against(&mut rows, weights.filter(|_| noise_floor)),
    }
}

/// A reading without rounding.
fn reading<'a>(backend: BackendKind, weights: &'a dyn Weights, windows: &'a [&'a [u32]]) -> Reading<'a> {
    Reading {
        backend,
        weights,
        windows,
        behind: BehindBlocks::Exact,
    }
}

/// [`compare`] on one machine that computes all models, as a job: logits stay where they are computed.
struct Together<'a> {
    text: &'a EvaluationText,
    windows: &'a [&'a [u32]],
    /// tokens in the longest of them
    longest: usize,
    model: &'a dyn Weights,
    dense: &'a dyn Weights,
    noise_floor: bool,
    progress: &'a dyn Fn(DivergenceEvent),
}

impl OnMachine for Together<'_> {
    type Output = Compared;

    fn on<M: TrainOps>(self, machine: M) -> Result<Compared> {
        let windows = self.windows;
        let pass = |machine: &M, weights: &dyn Weights, behind| {
            last_hidden(machine, weights, windows, behind, &mut |_| {
                (self.progress)(DivergenceEvent::Block);
            })
        };
        let of_dense = machine.for_shape(self.dense.config(), self.longest)?;
        let (dense_head, dense_hidden) = pass(&of_dense, self.dense, BehindBlocks::Exact)?;
        let model = pass(&machine, self.model, BehindBlocks::Exact)?;
        let noise = self
            .noise_floor
            .then(|| pass(&of_dense, self.dense, BehindBlocks::RoundedToBf16))
            .transpose()?;
        let dense = DenseStates {
            machine: &of_dense,
            head: &dense_head,
            hidden: &dense_hidden,
        };
        let first = self.text.first_scored();
        let mut compared = Compared {
            model: Vec::with_capacity(self.text.predictions()),
            noise: noise.is_some().then(Vec::new),
        };
        for (window, tokens) in self.text.windows().into_iter().enumerate() {
            // `first` may lie behind a short last window.
            let predicted = tokens.get(first + 1..).unwrap_or_default();
            if !predicted.is_empty() {
                let found = machine.compare((&model.0, &model.1), &dense, window, first, predicted)?;
                compared.model.extend(found);
                if let (Some(noise), Some(positions)) = (&noise, &mut compared.noise) {
                    let noise = (&noise.0, &noise.1);
                    positions.extend(of_dense.compare(noise, &dense, window, first, predicted)?);
                }
            }
            (self.progress)(DivergenceEvent::Window);
        }
        Ok(compared)
    }
}

/// Compares window by window.
fn by_window(
    text: &EvaluationText,
    dense: &mut dyn DenseRows,
    model: &mut dyn WindowLogits,
    mut noise: Option<&mut dyn WindowLogits>,
    progress: &dyn Fn(DivergenceEvent),
) -> Result<Compared> {
    let first = text.first_scored();
    let mut compared = Compared {
        model: Vec::with_capacity(text.predictions()),
        noise: noise.is_some().then(Vec::new),
    };
    for (window, tokens) in text.windows().into_iter().enumerate() {
        // `first` may lie behind a short last window.
        let predicted = tokens.get(first + 1..).unwrap_or_default();
        let rows = dense.log_probabilities(window)?;
        let floor = dense.floor();
        let compare = |logits: &mut dyn WindowLogits, into: &mut Vec<ComparedPosition>| -> Result<()> {
            let mut other = scored(logits.logits(window)?, first);
            log_softmax(&mut other);
            into.extend(compare_all(&rows, &other, predicted, floor));
            Ok(())
        };
        compare(model, &mut compared.model)?;
        if let (Some(noise), Some(positions)) = (&mut noise, &mut compared.noise) {
            compare(*noise, positions)?;
        }
        progress(DivergenceEvent::Window);
    }
    Ok(compared)
}

/// Losses of a model's scored predictions, its logits saved to a base file on the way.
///
/// # Errors
/// Those of the machine and of the base file.
pub fn save_base(
    backend: BackendKind,
    text: &EvaluationText,
    model: &dyn Weights,
    file: &mut BaseWriter,
    progress: &dyn Fn(DivergenceEvent),
) -> Result<Vec<Vec<f64>>> {
    let inputs = text.model_inputs();
    let windows: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
    let first = text.first_scored();
    reading(backend, model, &windows).with_logits(&mut |_| progress(DivergenceEvent::Block), |logits| {
        let mut rows = Computed {
            logits,
            first,
            save: Some(file),
        };
        let losses = text.windows().into_iter().enumerate().map(|(window, tokens)| {
            let rows = rows.log_probabilities(window)?;
            progress(DivergenceEvent::Window);
            let predicted = tokens.iter().skip(first + 1);
            Ok(rows
                .outer_iter()
                .zip(predicted)
                .map(|(row, &token)| -row[token as usize])
                .collect())
        });
        losses.collect()
    })
}

#[cfg(test)]
mod tests;
