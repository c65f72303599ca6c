use std::path::PathBuf;

use super::text::TextArgs;
use crate::commands::eval::EvalJob;
use crate::commands::{NamedModel, warn_of_length};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::{Error, Result};

/// Options of `aqlm eval`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
    /// Text: .txt or .raw, .jsonl ({"text": ...} a line), .gz of either, .parquet (column "text"), or - for
    /// standard input
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// Tokens in a window [default: 2048, or the model's longest context when that is shorter]
    #[arg(long)]
    ctx: Option<usize>,
    /// Use only the first N windows
    #[arg(long)]
    windows: Option<usize>,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
    /// Write the windows' token ids and logits to a safetensors file (input_ids, logits)
    #[arg(long, value_name = "FILE")]
    dump_logits: Option<PathBuf>,
}

impl Args {
    /// Opens the model and reads the text.
    pub(super) fn job(&self) -> Result<EvalJob> {
        self.text.check_needed(&[&self.data])?;
        let model = NamedModel::open(&self.model)?;
        let text = self.text.load(&self.data, &model.tokenizer()?)?;
        let ctx = self
            .ctx
            .unwrap_or_else(|| model.model.config().max_position_embeddings.min(2048));
        if ctx < 2 {
            return Err(Error::argument("--ctx", "2 or more", ctx.to_string()));
        }
        warn_of_length("--ctx", ctx, &model.model);
        if self.windows == Some(0) {
            return Err(Error::argument("--windows", "1 or more", "0"));
        }
        Ok(EvalJob {
            model,
            text,
            ctx,
            windows: self.windows,
            backend: self.backend,
            dump_logits: self.dump_logits.clone(),
        })
    }
}
