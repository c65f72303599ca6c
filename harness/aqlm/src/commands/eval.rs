use std::path::{Path, PathBuf};

use ndarray::Array2;

use super::progress::Progress;
use super::{NamedModel, Output};
use aqlm_engine::backends::ModelBackend;
use aqlm_engine::evaluate::{Perplexity, evaluate, evaluate_on_gpu};
use aqlm_engine::runs::records::EvalRecord;
use aqlm_engine::with_backend;
use aqlm_formats::model::Model;
use aqlm_formats::texts::TokenStream;
use aqlm_formats::{Error, Result};

/// What to evaluate, and on what.
#[derive(Debug)]
pub(crate) struct EvalJob {
    pub(crate) model: NamedModel,
    pub(crate) text: TokenStream,
    /// tokens in a window, at least 2
    pub(crate) ctx: usize,
    /// only so many windows; all without a number
    pub(crate) windows: Option<usize>,
    pub(crate) backend: ModelBackend,
    /// a safetensors file for token ids and logits
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
    });
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

/// Perplexity with a progress bar; logits into a file when one is named.
pub(super) fn measure(
    model: &Model,
    windows: &[&[u32]],
    backend: ModelBackend,
    dump_logits: Option<&Path>,
) -> Result<Perplexity> {
    let ctx = windows.first().map_or(0, |window| window.len());
    let mut progress = Progress::new(model.config().num_hidden_layers as u64);
    progress.message(format!("{} windows of {ctx}", windows.len()));
    let mut advance = |block| {
        progress.advance(1);
        progress.heartbeat(&format!("evaluation: block {} is done", block + 1));
    };
    let with_logits = dump_logits.is_some();
    let evaluation = match backend.host() {
        Some(kind) => with_backend!(kind, model.config(), ctx, |backend| {
            evaluate(&backend, model, windows, with_logits, &mut advance)
        }),
        None => evaluate_on_gpu(model, windows, with_logits, &mut advance),
    }?;
    if let Some(path) = dump_logits {
        write_logits(path, windows, &evaluation.logits)?;
    }
    Ok(evaluation.perplexity())
}

/// input_ids [windows, ctx] i32 and logits [windows, ctx, vocab] f32.
fn write_logits(path: &Path, windows: &[&[u32]], logits: &[Array2<f64>]) -> Result<()> {
    use safetensors::tensor::{Dtype, TensorView};

    let ctx = windows.first().map_or(0, |window| window.len());
    let vocab = logits.first().map_or(0, Array2::ncols);
    let ids: Vec<u8> = windows
        .iter()
        .copied()
        .flatten()
        .flat_map(|&id| (id as i32).to_le_bytes())
        .collect();
    let values: Vec<u8> = logits
        .iter()
        .flatten()
        .flat_map(|&logit| (logit as f32).to_le_bytes())
        .collect();
    let view = |dtype, shape: Vec<usize>, data| {
        TensorView::new(dtype, shape, data).map_err(|error| {
            Error::invalid(
                "--dump-logits",
                "tensors that fit a safetensors file",
                error.to_string(),
            )
        })
    };
    let tensors = [
        ("input_ids", view(Dtype::I32, vec![windows.len(), ctx], &ids)?),
        (
            "logits",
            view(Dtype::F32, vec![windows.len(), ctx, vocab], &values)?,
        ),
    ];
    let bytes = safetensors::serialize(tensors, None).map_err(|error| {
        Error::invalid(
            "--dump-logits",
            "tensors that fit a safetensors file",
            error.to_string(),
        )
    })?;
    aqlm_formats::durable::write_file(path, |file| std::io::Write::write_all(file, &bytes))
}
