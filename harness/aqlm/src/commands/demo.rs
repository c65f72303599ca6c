use std::path::{Path, PathBuf};
use std::time::Instant;

use super::eval::measure;
use super::generate::{Continuation, continue_text};
use super::quantize::{quantize, summary};
use super::table::{Table, bytes};
use super::{Job, Output, say};
use aqlm_engine::backends::{BackendKind, CalibrationPrecision};
use aqlm_engine::generate::Sampling;
use aqlm_engine::ranks::Alone;
use aqlm_engine::runs::records::DemoRecord;
use aqlm_engine::{Preset, QuantizeSettings, check_scheme};
use aqlm_formats::model::{Model, embedded};
use aqlm_formats::texts::TokenStream;
use aqlm_formats::{Error, Result};

const PROMPT: &str = "Once upon a time, there was a little girl named";

/// Options of the demo.
#[derive(Debug)]
pub(crate) struct DemoRequest {
    /// folder in which to keep the quantized model
    pub(crate) out: Option<PathBuf>,
    /// seed of every random stream
    pub(crate) seed: u64,
    pub(crate) backend: BackendKind,
}

/// Quantizes the embedded model, measures it before and after, and generates text with both.
pub(crate) fn run(request: &DemoRequest, output: Output) -> Result<bool> {
    let started = Instant::now();
    let model = Model::embedded()?;
    let tokenizer = model.tokenizer()?;
    let settings = settings(request.seed)?;
    check_scheme(
        model.config(),
        settings.layer.scheme,
        settings.layer.allow_degenerate,
    )?;
    let text = |name: &str, bytes: &[u8]| TokenStream::from_bytes(Path::new(name), bytes, &tokenizer);
    let calibration = text("tiny-stories-4m/calibration.jsonl", embedded::CALIBRATION_TEXT)?;
    let evaluation = text("tiny-stories-4m/eval.jsonl", embedded::EVALUATION_TEXT)?;
    let ctx = model.config().max_position_embeddings;
    let windows = evaluation.windows(ctx)?;

    say(format_args!(
        "tiny-stories-4m, a Llama of 4.3 million weights: perplexity, then {} on {} sequences of {} tokens",
        settings.layer.scheme, settings.sequences, settings.seqlen
    ));
    let before = measure(&model, &windows, request.backend)?;
    let temporary = tempfile::tempdir().map_err(Error::io(std::env::temp_dir(), "make a folder in"))?;
    let folder = request
        .out
        .clone()
        .unwrap_or_else(|| temporary.path().join("tiny-stories-4m-aqlm"));
    let job = Job {
        model: &model,
        text: &calibration,
        settings,
        backend: request.backend,
        precision: None,
        activations: CalibrationPrecision::F32,
        memory: None,
        folder,
        resume: false,
        ranks: &Alone,
    };
    let quantized = quantize(&job, None, None)?;
    let tiny = Model::open(&job.folder)?;
    let after = measure(&tiny, &windows, request.backend)?;
    let continuation = Continuation {
        prompt: PROMPT.to_owned(),
        tokens: 60,
        sampling: Sampling::Greedy,
        seed: request.seed,
        document_start: true,
        backend: request.backend,
    };
    let write = |model: &Model| -> Result<String> {
        let continued = continue_text(model, &continuation, &mut |_| true)?;
        Ok(format!("{PROMPT}{}", continued.text))
    };
    let record = DemoRecord {
        scheme: quantized.scheme.to_string(),
        perplexity_before: before.perplexity,
        perplexity_after: after.perplexity,
        bits_per_parameter: quantized.bits_per_parameter,
        bytes_before: quantized.bytes_before,
        bytes_after: quantized.bytes_after,
        text_before: write(&model)?,
        text_after: write(&tiny)?,
        seconds: started.elapsed().as_secs_f64(),
        out: request.out.as_ref().map(|out| out.display().to_string()),
    };
    output.result(&record, || {
        let mut table = Table::new(["", "dense f16", &format!("AQLM {}", record.scheme)]);
        table.row([
            "bits per parameter (quantized layers)".into(),
            "16.000".into(),
            format!("{:.3}", record.bits_per_parameter),
        ]);
        table.row([
            format!("perplexity ({} tokens, ctx {ctx})", before.tokens),
            format!("{:.4}", before.perplexity),
            format!("{:.4}", after.perplexity),
        ]);
        table.row([
            "model size, embedding and head included".into(),
            bytes(record.bytes_before),
            bytes(record.bytes_after),
        ]);
        format!(
            "\n{}\n{}\ndense:     {}\n\nquantized: {}\n\n{:.0} s in all\n",
            summary(&quantized.blocks),
            table.render(),
            record.text_before,
            record.text_after,
            record.seconds
        )
    })?;
    Ok(true)
}

/// 2x6g8, with the best measured settings that fit into the demo's minutes.
fn settings(seed: u64) -> Result<QuantizeSettings> {
    let mut settings = QuantizeSettings::preset(Preset::Project, "2x6g8".parse()?);
    settings.seqlen = 256;
    settings.sequences = 128;
    settings.validation = 16;
    settings.seed = seed;
    Ok(settings)
}
