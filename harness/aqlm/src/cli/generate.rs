use std::path::PathBuf;

use crate::commands::NamedModel;
use crate::commands::generate::Continuation;
use aqlm_engine::backends::BackendKind;
use aqlm_engine::generate::Sampling;
use aqlm_formats::Result;

/// Options of `aqlm generate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
    /// Text to continue
    #[arg(long, allow_hyphen_values = true)]
    prompt: String,
    /// New tokens at most
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// 0 takes the likeliest token every time; above 0 draws
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw only from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f64,
    /// Put the document-start token before the prompt even if the tokenizer does not by default
    #[arg(long)]
    bos: bool,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
}

impl Args {
    /// Opens the model; the text that it is to continue.
    pub(super) fn request(&self) -> Result<(NamedModel, Continuation)> {
        let continuation = Continuation {
            prompt: self.prompt.clone(),
            tokens: self.tokens,
            sampling: Sampling::new(self.temperature, self.top_p)?,
            seed: self.seed,
            document_start: self.bos,
            backend: self.backend,
        };
        Ok((NamedModel::open(&self.model)?, continuation))
    }
}
