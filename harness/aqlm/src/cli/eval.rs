use std::path::PathBuf;

use super::text::TextArgs;
use crate::commands::divergence::{self, BaseUse, DivergenceJob};
use crate::commands::eval::{self, EvalJob};
use crate::commands::fetch::text_file;
use crate::commands::{NamedModel, Output, warn_of_length};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::protocol::{EvaluationText, Protocol};
use aqlm_formats::Result;

/// Options of `aqlm eval`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
    /// Text: .txt or .raw, .jsonl ({"text": ...} a line), .gz of either, .parquet (column "text"), - for
    /// standard input, or a data set of the Hub: wikitext2:test, wikitext2:train, c4:train, c4:validation
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// How the text becomes windows, and which predictions count (docs/evaluation.md)
    #[arg(long, value_enum, default_value = "gptq")]
    protocol: Protocol,
    /// Tokens in a window [default: 2048, llama-cpp 512, or the model's longest context when that is shorter]
    #[arg(long)]
    ctx: Option<usize>,
    /// Use only the first N windows
    #[arg(long)]
    windows: Option<usize>,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
    /// Measure the divergence from this dense model: KL and its percentiles, same top token, paired ratios
    #[arg(long, value_name = "DENSE", conflicts_with_all = ["dump_logits", "save_losses"])]
    against: Option<PathBuf>,
    /// Read the dense model's log-probabilities from a base file, ours or llama.cpp's
    #[arg(long, value_name = "FILE", conflicts_with_all = ["save_base", "bases", "dump_logits", "save_losses"])]
    base: Option<PathBuf>,
    /// Save the log-probabilities of DENSE, or of MODEL without --against: lossless in FILE.safetensors, in
    /// llama.cpp's format in any other FILE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bases", "dump_logits"])]
    save_base: Option<PathBuf>,
    /// Keep lossless base files in a folder: each dense model is computed once per text, protocol and backend
    #[arg(long, value_name = "DIR", requires = "against")]
    bases: Option<PathBuf>,
    /// Skip the noise floor: the divergence of the dense model, rounded to bf16 behind blocks, from itself
    #[arg(long)]
    no_noise_floor: bool,
    /// Write the loss of every prediction to a safetensors file (losses, tokens, windows, positions)
    #[arg(long, value_name = "FILE")]
    save_losses: Option<PathBuf>,
    /// Write the windows' token ids and logits to a safetensors file (input_ids, logits)
    #[arg(long, value_name = "FILE")]
    dump_logits: Option<PathBuf>,
}

/// Runs `aqlm eval`.
pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    args.text.check_needed(&[&args.data])?;
    let model = NamedModel::open(&args.model)?;
    if args.against.is_none() && args.base.is_none() {
        let job = EvalJob {
            text: args.text(&model)?,
            model,
            backend: args.backend,
            dump_logits: args.dump_logits.clone(),
            save_losses: args.save_losses.clone(),
            save_base: args.save_base.clone(),
        };
        return eval::run(&job, output);
    }
    let base = match (&args.base, &args.save_base, &args.bases) {
        (Some(path), ..) => BaseUse::Read(path.clone()),
        (_, Some(path), _) => BaseUse::Save(path.clone()),
        (.., Some(folder)) => BaseUse::Folder(folder.clone()),
        _ => BaseUse::Nowhere,
    };
    let job = DivergenceJob {
        dense: args.against.as_deref().map(NamedModel::open).transpose()?,
        base,
        text: args.text(&model)?,
        model,
        backend: args.backend,
        noise_floor: !args.no_noise_floor,
    };
    divergence::run(&job, output)
}

impl Args {
    /// Reads the text and cuts it into windows.
    fn text(&self, model: &NamedModel) -> Result<EvaluationText> {
        let longest = model.model.config().max_position_embeddings;
        let ctx = self.ctx.unwrap_or_else(|| self.protocol.default_ctx(longest));
        warn_of_length("--ctx", ctx, &model.model);
        let format = self.text.stated();
        self.protocol.cut(
            &text_file(&self.data)?,
            format,
            &model.tokenizer()?,
            ctx,
            self.windows,
        )
    }
}
