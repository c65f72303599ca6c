use std::path::{Path, PathBuf};

use ndarray::Array2;
use serde::Serialize;

use super::progress::Progress;
use super::{Output, open_model};
use aqlm_engine::backends::ModelBackend;
use aqlm_engine::evaluate::{Perplexity, evaluate, evaluate_on_gpu};
use aqlm_engine::with_backend;
use aqlm_formats::model::Model;
use aqlm_formats::safetensors::{self, NewTensor};
use aqlm_formats::texts::TokenStream;
use aqlm_formats::{Error, Result};

/// Options of `aqlm eval`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
    /// Text: .txt, .jsonl ({"text": ...} a line), or .gz of either
    #[arg(long)]
    data: PathBuf,
    /// Tokens in a window [default: 2048, or the model's longest context when that is shorter]
    #[arg(long)]
    ctx: Option<usize>,
    /// Use only the first N windows
    #[arg(long)]
    windows: Option<usize>,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: ModelBackend,
    /// Write the windows' token ids and logits to a safetensors file (input_ids, logits)
    #[arg(long, value_name = "FILE")]
    dump_logits: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Document {
    #[serde(flatten)]
    result: Perplexity,
    model: String,
    data: String,
    backend: ModelBackend,
}

/// The context that is used when none is asked for.
pub(super) fn default_ctx(model: &Model) -> usize {
    model.config().max_position_embeddings.min(2048)
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let model = open_model(&args.model)?;
    let stream = TokenStream::load(&args.data, &model.tokenizer()?)?;
    let ctx = args.ctx.unwrap_or_else(|| default_ctx(&model));
    if ctx < 2 {
        return Err(Error::argument("--ctx", "2 or more", ctx.to_string()));
    }
    if args.windows == Some(0) {
        return Err(Error::argument("--windows", "1 or more", "0"));
    }
    let mut windows = stream.windows(ctx)?;
    windows.truncate(args.windows.unwrap_or(usize::MAX));
    let result = measure(&model, &windows, args.backend, args.dump_logits.as_deref())?;
    let document = Document {
        result,
        model: args.model.display().to_string(),
        data: args.data.display().to_string(),
        backend: args.backend,
    };
    output.result(&document, || {
        format!(
            "{} on {}: perplexity {:.4}, mean loss {:.5} nats over {} tokens ({} windows of {})\n",
            document.model,
            document.data,
            document.result.perplexity,
            document.result.mean_nll,
            document.result.tokens,
            document.result.windows,
            document.result.ctx,
        )
    });
    Ok(true)
}

/// Perplexity with a progress bar; logits into a file when one is named.
pub(super) fn measure(
    model: &Model,
    windows: &[&[u32]],
    backend: ModelBackend,
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
