use std::cell::RefCell;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};

use super::progress::Progress;
use super::{NamedModel, Output};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::divergence::{BaseWriter, base_key, save_base};
use aqlm_engine::evaluate::{Evaluation, Perplexity, Streamed};
use aqlm_engine::protocol::EvaluationText;
use aqlm_engine::runs::records::{EvalRecord, StrictPerplexity};
use aqlm_formats::model::Model;
use aqlm_formats::safetensors::{self, NewTensor};
use aqlm_formats::{Error, Result};

/// The model and text of an evaluation.
#[derive(Debug)]
pub(crate) struct EvalJob {
    pub(crate) model: NamedModel,
    pub(crate) text: EvaluationText,
    pub(crate) backend: BackendKind,
    /// safetensors file for token ids and logits
    pub(crate) dump_logits: Option<PathBuf>,
    /// safetensors file for the loss of every prediction
    pub(crate) save_losses: Option<PathBuf>,
    /// base file for the model's log-probabilities
    pub(crate) save_base: Option<PathBuf>,
}

pub(crate) fn run(job: &EvalJob, output: Output) -> Result<bool> {
    let record = eval(job)?;
    output.result(&record, || {
        let measured = format!(
            "{} on {}: perplexity {:.4}, mean loss {:.5} nats over {} tokens ({} windows of {}, protocol {})\n",
            record.model,
            record.data,
            record.perplexity,
            record.mean_nll,
            record.tokens,
            record.windows,
            record.ctx,
            record.protocol.name(),
        );
        let strict = record.strict.as_ref().map(|strict| {
            format!(
                "AQLM's own code leaves out the last window: perplexity {:.4} over {}\n",
                strict.perplexity, strict.windows
            )
        });
        let not_finite = match record.not_finite {
            0 => String::new(),
            count => format!("{count} losses are not finite\n"),
        };
        measured + &strict.unwrap_or_default() + &not_finite
    })?;
    Ok(record.not_finite == 0)
}

/// Measures the perplexity of a model on a text.
fn eval(job: &EvalJob) -> Result<EvalRecord> {
    let losses = match &job.save_base {
        Some(path) => losses_and_base(job, path)?,
        None => losses(job)?,
    };
    if let Some(path) = &job.save_losses {
        write_losses(path, &job.text, &losses)?;
    }
    let of = |losses: &[Array1<f64>]| {
        let losses = losses.to_vec();
        let logits = Vec::new();
        Evaluation { losses, logits }.perplexity()
    };
    let Perplexity {
        perplexity,
        mean_nll,
        tokens,
        windows,
        ..
    } = of(&losses);
    Ok(EvalRecord {
        perplexity,
        mean_nll,
        tokens,
        not_finite: losses.iter().flatten().filter(|loss| !loss.is_finite()).count(),
        windows,
        ctx: job.text.ctx(),
        protocol: job.text.protocol(),
        strict: job.text.strict_windows().map(|windows| StrictPerplexity {
            perplexity: of(&losses[..windows]).perplexity,
            windows,
        }),
        model: job.model.name.clone(),
        data: job.text.path().display().to_string(),
        backend: job.backend,
    })
}

/// Losses of the predictions that count, by window.
fn losses(job: &EvalJob) -> Result<Vec<Array1<f64>>> {
    let inputs = job.text.model_inputs();
    let windows: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
    let evaluation = evaluate(
        &job.model.model,
        &windows,
        job.backend,
        job.dump_logits.as_deref(),
    )?;
    let first = job.text.first_scored();
    let scored = |losses: Array1<f64>| losses.into_iter().skip(first).collect();
    Ok(evaluation.losses.into_iter().map(scored).collect())
}

/// The same; the model's log-probabilities go to a base file.
fn losses_and_base(job: &EvalJob, path: &Path) -> Result<Vec<Array1<f64>>> {
    let model = &job.model.model;
    let key = base_key(model.fingerprint()?, &job.text, job.backend);
    let mut file = BaseWriter::new(path, &key, job.backend, model.config().vocab_size, &job.text)?;
    let windows = job.text.windows().len();
    let progress = RefCell::new(Progress::new((model.config().blocks.len() + windows) as u64));
    let losses = save_base(job.backend, &job.text, model, &mut file, &|_| {
        let mut progress = progress.borrow_mut();
        progress.advance(1);
        progress.heartbeat("evaluation");
    })?;
    file.finish()?;
    Ok(losses.into_iter().map(Array1::from_vec).collect())
}

/// Measures perplexity over all predictions of windows, with a progress bar.
pub(super) fn measure(model: &Model, windows: &[&[u32]], backend: BackendKind) -> Result<Perplexity> {
    Ok(evaluate(model, windows, backend, None)?.perplexity())
}

/// Evaluates a model on windows with a progress bar; writes logits to a file if one is named.
fn evaluate(
    model: &Model,
    windows: &[&[u32]],
    backend: BackendKind,
    dump_logits: Option<&Path>,
) -> Result<Evaluation> {
    let ctx = windows.first().map_or(0, |window| window.len());
    let mut progress = Progress::new(model.config().blocks.len() as u64);
    progress.message(format!("{} windows of {ctx}", windows.len()));
    let mut advance = |block| {
        progress.advance(1);
        progress.heartbeat(&format!("evaluation: block {} is done", block + 1));
    };
    let with_logits = dump_logits.is_some();
    let job = Streamed {
        weights: model,
        windows,
        with_logits,
        progress: &mut advance,
    };
    let evaluation = backend.run(model.config(), ctx, job)?;
    if let Some(path) = dump_logits {
        write_logits(path, windows, &evaluation.logits)?;
    }
    Ok(evaluation)
}

/// input_ids [windows, ctx] i32 and logits [windows, ctx, vocab] f32.
fn write_logits(path: &Path, windows: &[&[u32]], logits: &[Array2<f64>]) -> Result<()> {
    let ctx = windows.first().map_or(0, |window| window.len());
    if let Some(shorter) = windows.iter().find(|window| window.len() != ctx) {
        return Err(Error::argument(
            "--dump-logits",
            "windows of equal length",
            format!("windows of {ctx} and {} tokens", shorter.len()),
        ));
    }
    let vocab = logits.first().map_or(0, Array2::ncols);
    let ids = windows.iter().copied().flatten().map(|&id| id as i32);
    let values = logits.iter().flatten().map(|&logit| logit as f32);
    let tensors = vec![
        NewTensor::new("input_ids", &[windows.len(), ctx], ids),
        NewTensor::new("logits", &[windows.len(), ctx, vocab], values),
    ];
    safetensors::write(path, tensors).map(|_| ())
}

/// One row per prediction that counts: loss f64 in nats, the predicted token, its window, and its position
/// there, i32.
fn write_losses(path: &Path, text: &EvaluationText, losses: &[Array1<f64>]) -> Result<()> {
    let first = text.first_scored() + 1;
    let windows = text.windows();
    let places = || {
        losses.iter().enumerate().flat_map(move |(window, losses)| {
            (first..first + losses.len()).map(move |position| (window, position))
        })
    };
    let count = losses.iter().map(Array1::len).sum();
    let column = |name: &str, value: &dyn Fn((usize, usize)) -> i32| {
        NewTensor::new(name, &[count], places().map(value))
    };
    let tensors = vec![
        NewTensor::new("losses", &[count], losses.iter().flatten().copied()),
        column("tokens", &|(window, position)| windows[window][position] as i32),
        column("windows", &|(window, _)| window as i32),
        column("positions", &|(_, position)| position as i32),
    ];
    safetensors::write(path, tensors).map(|_| ())
}
