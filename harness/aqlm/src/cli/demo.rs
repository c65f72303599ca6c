use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::Output;
use super::eval::measure;
use super::generate::continue_text;
use super::quantize::{quantize_into, summary};
use super::table::{Table, bytes};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::generate::Sampling;
use aqlm_engine::{Preset, QuantizeSettings, check_scheme};
use aqlm_formats::model::{Model, embedded};
use aqlm_formats::texts::TokenStream;
use aqlm_formats::{Error, Result};

const PROMPT: &str = "Once upon a time, there was a little girl named";

/// Options of `aqlm demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Keep the quantized model in this folder [default: a temporary one that is removed]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of every random stream
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
}

#[derive(Debug, Serialize)]
struct Document {
    scheme: String,
    perplexity_before: f64,
    perplexity_after: f64,
    bits_per_parameter: f64,
    bytes_before: u64,
    bytes_after: u64,
    text_before: String,
    text_after: String,
    seconds: f64,
    out: Option<String>,
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let started = Instant::now();
    args.backend.check_runs()?;
    let model = Model::embedded()?;
    let tokenizer = model.tokenizer()?;
    let settings = settings(args.seed)?;
    check_scheme(
        model.config(),
        settings.layer.scheme,
        settings.layer.allow_degenerate,
    )?;
    let calibration_path = Path::new("tiny-stories-4m/calibration.jsonl");
    let evaluation_path = Path::new("tiny-stories-4m/eval.jsonl");
    let calibration_stream =
        TokenStream::from_bytes(calibration_path, embedded::CALIBRATION_TEXT, &tokenizer)?;
    let calibration = calibration_stream.calibration_sequences(settings.seqlen, settings.sequences)?;
    let ctx = model.config().max_position_embeddings;
    let evaluation_stream = TokenStream::from_bytes(evaluation_path, embedded::EVALUATION_TEXT, &tokenizer)?;
    let windows = evaluation_stream.windows(ctx)?;

    eprintln!(
        "tiny-stories-4m, a Llama of 4.3 million weights: perplexity, then {} on {} sequences of {} tokens",
        settings.layer.scheme, settings.sequences, settings.seqlen
    );
    let before = measure(&model, &windows, args.backend, None)?;
    let temporary = tempfile::tempdir().map_err(Error::io(std::env::temp_dir(), "make a folder in"))?;
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| temporary.path().join("tiny-stories-4m-aqlm"));
    let (report, _folder) = quantize_into(
        &model,
        calibration_path,
        &calibration,
        &settings,
        args.backend,
        &out,
        &out,
        None,
        false,
    )?;
    let quantized = Model::open(&out)?;
    let after = measure(&quantized, &windows, args.backend, None)?;
    let write = |model: &Model| -> Result<String> {
        let (_, text, _) = continue_text(
            model,
            PROMPT,
            60,
            Sampling::Greedy,
            args.seed,
            true,
            args.backend,
            &mut |_| {},
        )?;
        Ok(format!("{PROMPT}{text}"))
    };
    let document = Document {
        scheme: report.scheme.to_string(),
        perplexity_before: before.perplexity,
        perplexity_after: after.perplexity,
        bits_per_parameter: report.bits_per_parameter,
        bytes_before: model.inventory().bytes,
        bytes_after: quantized.inventory().bytes,
        text_before: write(&model)?,
        text_after: write(&quantized)?,
        seconds: started.elapsed().as_secs_f64(),
        out: args.out.as_ref().map(|out| out.display().to_string()),
    };
    output.result(&document, || {
        let mut table = Table::new(["", "dense f16", &format!("AQLM {}", document.scheme)]);
        table.row([
            "bits per parameter (quantized layers)".into(),
            "16.000".into(),
            format!("{:.3}", document.bits_per_parameter),
        ]);
        table.row([
            format!("perplexity ({} tokens, ctx {ctx})", before.tokens),
            format!("{:.4}", before.perplexity),
            format!("{:.4}", after.perplexity),
        ]);
        table.row([
            "model size, embedding and head included".into(),
            bytes(document.bytes_before),
            bytes(document.bytes_after),
        ]);
        format!(
            "\n{}\n{}\ndense:     {}\n\nquantized: {}\n\n{:.0} s in all\n",
            summary(&report),
            table.render(),
            document.text_before,
            document.text_after,
            document.seconds
        )
    });
    Ok(true)
}

/// 2x6g8 with everything else as measured best within the demo's minutes.
fn settings(seed: u64) -> Result<QuantizeSettings> {
    let mut settings = QuantizeSettings::preset(Preset::Project, "2x6g8".parse()?);
    settings.seqlen = 256;
    settings.sequences = 128;
    settings.validation = 16;
    settings.seed = seed;
    Ok(settings)
}
