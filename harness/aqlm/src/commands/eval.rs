use std::path::{Path, PathBuf};

use ndarray::Array2;

use super::progress::Progress;
use super::{NamedModel, Output};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::evaluate::{Perplexity, Streamed, resident};
use aqlm_engine::runs::records::EvalRecord;
use aqlm_formats::Result;
use aqlm_formats::model::Model;
use aqlm_formats::safetensors::{self, NewTensor};
use aqlm_formats::texts::TokenStream;

/// The model and text of an evaluation.
#[derive(Debug)]
pub(crate) struct EvalJob {
    pub(crate) model: NamedModel,
    pub(crate) text: TokenStream,
    /// tokens per window, at least 2
    pub(crate) ctx: usize,
    /// maximum number of windows; `None` for all
    pub(crate) windows: Option<usize>,
    pub(crate) backend: BackendKind,
    /// safetensors file for token ids and logits
    pub(crate) dump_logits: Option<PathBuf>,
}

pub(crate) fn run(job: &EvalJob, output: Output) -> Result<bool> {
    let record = eval(job)?;
    output.result(&record, || {
        format!(
            "{} on {}: perplexity {:.4}, mean loss {:.5} nats over {} tokens ({} windows of {})\n",
            record.model,
            record.data,
            record.perplexity,
            record.mean_nll,
            record.tokens,
            record.windows,
            record.ctx,
        )
    })?;
    Ok(true)
}

/// Measures the perplexity of a model on a text.
fn eval(job: &EvalJob) -> Result<EvalRecord> {
    let mut windows = job.text.windows(job.ctx)?;
    windows.truncate(job.windows.unwrap_or(usize::MAX));
    let Perplexity {
        perplexity,
        mean_nll,
        tokens,
        windows,
        ctx,
    } = measure(
        &job.model.model,
        &windows,
        job.backend,
        job.dump_logits.as_deref(),
    )?;
    Ok(EvalRecord {
        perplexity,
        mean_nll,
        tokens,
        windows,
        ctx,
        model: job.model.name.clone(),
        data: job.text.path().display().to_string(),
        backend: job.backend,
    })
}

/// Measures perplexity with a progress bar; writes logits to a file if one is named.
pub(super) fn measure(
    model: &Model,
    windows: &[&[u32]],
    backend: BackendKind,
    dump_logits: Option<&Path>,
) -> Result<Perplexity> {
    let ctx = windows.first().map_or(0, |window| window.len());
    let mut progress = Progress::new(model.config().blocks.len() as u64);
    progress.message(format!("{} windows of {ctx}", windows.len()));
    let mut advance = |block| {
        progress.advance(1);
        progress.heartbeat(&format!("evaluation: block {} is done", block + 1));
    };
    let with_logits = dump_logits.is_some();
    let evaluation = match backend {
        BackendKind::Reference | BackendKind::Cpu => {
            let job = Streamed {
                weights: model,
                windows,
                with_logits,
                progress: &mut advance,
            };
            backend.run(model.config(), ctx, job)
        }
        BackendKind::Cuda => {
            let machine = backend.models(model.config(), ctx)?;
            resident(machine.as_ref(), model, windows, with_logits, &mut advance)
        }
    }?;
    if let Some(path) = dump_logits {
        write_logits(path, windows, &evaluation.logits)?;
    }
    Ok(evaluation.perplexity())
}

/// input_ids [windows, ctx] i32 and logits [windows, ctx, vocab] f32.
fn write_logits(path: &Path, windows: &[&[u32]], logits: &[Array2<f64>]) -> Result<()> {
    let ctx = windows.first().map_or(0, |window| window.len());
    let vocab = logits.first().map_or(0, Array2::ncols);
    let ids = windows.iter().copied().flatten().map(|&id| id as i32);
    let values = logits.iter().flatten().map(|&logit| logit as f32);
    let tensors = vec![
        NewTensor::new("input_ids", &[windows.len(), ctx], ids),
        NewTensor::new("logits", &[windows.len(), ctx, vocab], values),
    ];
    safetensors::write(path, tensors).map(|_| ())
}
