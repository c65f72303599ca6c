use std::io::Write;
use std::path::PathBuf;

use aqlm_optimized::cuda::llama::{Options, Rung};
use aqlm_vocabulary::{Purpose, stream};
use serde::Serialize;

use super::{Output, open_model};
use aqlm_engine::backends::{ModelBackend, cuda};
use aqlm_engine::generate::{Generated, Generator, Sampling, Writer};
use aqlm_engine::with_backend;
use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};

/// Options of `aqlm generate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
    /// Text to continue
    #[arg(long)]
    prompt: String,
    /// New tokens at most
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// 0 takes the likeliest token every time; above 0 draws
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Draw only from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.95)]
    top_p: f64,
    /// Put the document-start token before the prompt even if the tokenizer does not by default
    #[arg(long)]
    bos: bool,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: ModelBackend,
}

#[derive(Debug, Serialize)]
struct Document {
    model: String,
    prompt: String,
    text: String,
    tokens: Vec<u32>,
    prompt_tokens: usize,
    seconds: f64,
    tokens_per_second: f64,
    backend: ModelBackend,
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let sampling = Sampling::new(args.temperature, args.top_p)?;
    let model = open_model(&args.model)?;
    let live = !output.json;
    let mut shown = false;
    let (generated, text, prompt_tokens) = continue_text(
        &model,
        &args.prompt,
        args.tokens,
        sampling,
        args.seed,
        args.bos,
        args.backend,
        &mut |piece| {
            if live {
                shown = true;
                print!("{piece}");
                // A closed pipe ends the show, not the computation.
                let _ = std::io::stdout().flush();
            }
        },
    )
    .inspect_err(|_| {
        if shown {
            println!();
        }
    })?;
    let tokens_per_second = generated.tokens.len() as f64 / generated.seconds.max(1e-9);
    let document = Document {
        model: args.model.display().to_string(),
        prompt: args.prompt.clone(),
        text,
        prompt_tokens,
        seconds: generated.seconds,
        tokens_per_second,
        backend: args.backend,
        tokens: generated.tokens,
    };
    output.result(&document, || "\n".to_owned());
    if live {
        eprintln!(
            "{} tokens, {tokens_per_second:.1} tokens per second",
            document.tokens.len()
        );
    }
    Ok(true)
}

/// The continuation of a prompt, its text, and the number of the prompt's tokens; `each` is shown the
/// prompt and then the text as it grows.
#[expect(clippy::too_many_arguments, reason = "the options of a command, one by one")]
pub(super) fn continue_text(
    model: &Model,
    prompt: &str,
    tokens: usize,
    sampling: Sampling,
    seed: u64,
    document_start: bool,
    backend: ModelBackend,
    each: &mut dyn FnMut(&str),
) -> Result<(Generated, String, usize)> {
    let tokenizer = model.tokenizer()?;
    let mut ids = tokenizer.encode(prompt, true)?;
    if let Some(bos) = tokenizer
        .bos()
        .filter(|_| document_start && !tokenizer.adds_bos())
    {
        ids.insert(0, bos);
    }
    let positions = ids.len() + tokens;
    let longest = model.config().max_position_embeddings;
    if positions > longest {
        return Err(Error::argument(
            "--tokens",
            &format!("prompt and new tokens within the model's context of {longest}"),
            format!("{} + {tokens}", ids.len()),
        ));
    }
    each(prompt);
    let mut rng = stream(seed, 0, None, Purpose::Generation);
    let mut pieces = tokenizer.stream();
    let mut write = |writer: &mut dyn Writer| {
        aqlm_engine::generate::generate(
            writer,
            &ids,
            tokens,
            tokenizer.stops(),
            sampling,
            &mut rng,
            &mut |token| {
                // A token that can't be shown now is part of the whole text, where its error is not lost.
                each(&pieces.push(token).unwrap_or_default());
            },
        )
    };
    let generated = if let Some(kind) = backend.host() {
        with_backend!(kind, model.config(), positions, |backend| {
            write(&mut Generator::new(&backend, model)?.session())
        })
    } else {
        let device = cuda::open(None)?;
        let options = Options {
            positions,
            prompts: true,
            rung: Rung::Joined,
        };
        write(&mut cuda::load(&device, model, options, &mut |_| {})?)
    }?;
    let text = tokenizer.decode(&generated.tokens, true)?;
    Ok((generated, text, ids.len()))
}
