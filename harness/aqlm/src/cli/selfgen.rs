use std::path::PathBuf;

use super::text::TextArgs;
use crate::commands::selfgen::{self, PromptSource, SelfgenJob};
use crate::commands::{NamedModel, Output};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::generate::Sampling;
use aqlm_formats::Result;

/// Options of `aqlm selfgen`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
    /// Write texts until they have N tokens
    #[arg(long, value_name = "N")]
    tokens: usize,
    /// Most tokens of a text [default: 512, or what a prompt leaves of the model's longest context]
    #[arg(long, value_name = "N")]
    seqlen: Option<usize>,
    /// 0 takes the likeliest token every time; above 0 draws
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw only from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Texts continue the beginnings of this file's documents, which they do not repeat [default: texts are
    /// documents from their first token]
    #[arg(long, value_name = "TEXT")]
    prompts: Option<PathBuf>,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 24)]
    prompt_tokens: usize,
    #[command(flatten)]
    text: TextArgs,
    /// File for the texts: .jsonl or .jsonl.gz
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
    /// Continue an unfinished run of this same command, whose texts lie in FILE.unfinished
    #[arg(long)]
    resume: bool,
}

/// Runs `aqlm selfgen`.
pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    if let Some(path) = &args.prompts {
        args.text.check_needed(&[path])?;
    }
    let job = SelfgenJob {
        model: NamedModel::open(&args.model)?,
        tokens: args.tokens,
        seqlen: args.seqlen,
        sampling: Sampling::new(args.temperature, args.top_p)?,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        prompts: args.prompts.clone().map(|path| PromptSource {
            path,
            format: args.text.stated(),
            tokens: args.prompt_tokens,
        }),
        out: args.out.clone(),
        backend: args.backend,
        resume: args.resume,
    };
    selfgen::run(&job, output)
}
