use std::path::{Path, PathBuf};

use aqlm_reference::vocabulary::{Initialization, Scheme};
use clap::ValueEnum;
use serde::Serialize;

use super::progress::QuantizeProgress;
use super::table::{Table, bytes};
use super::{Output, open_model};
use crate::backend::{Backend, BackendKind, with_backend};
use crate::data::TokenStream;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::pipeline::{
    Preset, QuantizeReport, QuantizeSettings, RunDescription, RunFolder, check_scheme, publish, quantize,
};

/// Options of `aqlm quantize`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
    /// Scheme MxBgG: M codebooks of 2^B codewords for groups of G weights, for example 2x8g8
    #[arg(long)]
    scheme: Scheme,
    /// Calibration text: .txt, .jsonl ({"text": ...} a line), or .gz of either
    #[arg(long, value_name = "DATA")]
    calib: PathBuf,
    /// Run folder: becomes the quantized model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Continue a run of this same command after its last finished block
    #[arg(long)]
    resume: bool,
}

/// First codes and codebooks.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum InitName {
    /// residual k-means
    Residual,
    /// residual k-means refined under the Hessian's metric
    Em,
}

/// How codebooks follow the codes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum UpdateName {
    /// least squares, solved
    ClosedForm,
    /// the paper's Adam: betas 0.9 and 0.95
    Adam,
    /// the official code's Adam: betas 0 and 0.95, amsgrad
    AdamOfficial,
}

/// Settings on top of a preset.
#[derive(Debug, clap::Args)]
pub(super) struct SettingsArgs {
    /// Settings to start from
    #[arg(long, value_enum, default_value = "project")]
    preset: Preset,
    /// Tokens in a calibration sequence [default: 1024, or the model's longest context when that is shorter]
    #[arg(long)]
    seqlen: Option<usize>,
    /// Calibration sequences, validation included
    #[arg(long, default_value_t = 128)]
    sequences: usize,
    /// Sequences kept for validation [default: an eighth]
    #[arg(long)]
    validation: Option<usize>,
    /// Seed of every random stream
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Hypotheses kept by beam search
    #[arg(long)]
    beam: Option<usize>,
    /// First codes and codebooks
    #[arg(long, value_enum)]
    init: Option<InitName>,
    /// How codebooks follow the codes
    #[arg(long, value_enum)]
    update: Option<UpdateName>,
    /// Stop a layer when a round gains less than this share of the error
    #[arg(long)]
    tolerance: Option<f64>,
    /// Rounds of codebook update and beam search at most
    #[arg(long)]
    max_rounds: Option<usize>,
    /// Added to the Hessian's diagonal, as a share of its mean
    #[arg(long)]
    damping: Option<f64>,
    /// Hessians in one pass for each kind of layer, over the block as quantized so far
    #[arg(long)]
    true_sequential: bool,
    /// Accept codebooks with more codewords than a layer has groups
    #[arg(long)]
    allow_degenerate: bool,
    /// Epochs of fine-tuning at most; 0 switches it off
    #[arg(long)]
    finetune_epochs: Option<usize>,
    /// Learning rate of fine-tuning
    #[arg(long)]
    finetune_lr: Option<f64>,
    /// Sequences in a fine-tuning step
    #[arg(long)]
    finetune_batch: Option<usize>,
    /// Epochs without a better validation loss before fine-tuning stops
    #[arg(long)]
    finetune_patience: Option<usize>,
}

impl SettingsArgs {
    fn resolve(&self, scheme: Scheme, model: &Model) -> Result<QuantizeSettings> {
        let mut settings = QuantizeSettings::preset(self.preset, scheme);
        settings.seqlen = self
            .seqlen
            .unwrap_or_else(|| model.config().max_position_embeddings.min(1024));
        settings.sequences = self.sequences;
        settings.validation = self.validation.unwrap_or(self.sequences / 8);
        settings.seed = self.seed;
        settings.true_sequential = self.true_sequential;
        settings.layer.allow_degenerate = self.allow_degenerate;
        let assign = |slot: &mut usize, value: Option<usize>| *slot = value.unwrap_or(*slot);
        assign(&mut settings.layer.beam, self.beam);
        assign(&mut settings.layer.max_rounds, self.max_rounds);
        assign(&mut settings.finetune.epochs, self.finetune_epochs);
        assign(&mut settings.finetune.batch, self.finetune_batch);
        assign(&mut settings.finetune.patience, self.finetune_patience);
        let assign = |slot: &mut f64, value: Option<f64>| *slot = value.unwrap_or(*slot);
        assign(&mut settings.layer.relative_tolerance, self.tolerance);
        assign(&mut settings.layer.damping, self.damping);
        assign(&mut settings.finetune.lr, self.finetune_lr);
        match self.init {
            Some(InitName::Residual) => settings.layer.init = Initialization::Residual,
            Some(InitName::Em) => settings.layer.init = Initialization::Em { rounds: 3 },
            None => {}
        }
        let preset_update = |preset| QuantizeSettings::preset(preset, scheme).layer.update;
        match self.update {
            Some(UpdateName::ClosedForm) => settings.layer.update = preset_update(Preset::Project),
            Some(UpdateName::Adam) => settings.layer.update = preset_update(Preset::Paper),
            Some(UpdateName::AdamOfficial) => settings.layer.update = preset_update(Preset::Official),
            None => {}
        }
        validate(&settings)?;
        Ok(settings)
    }
}

/// Refuses numbers that no run could use.
fn validate(settings: &QuantizeSettings) -> Result<()> {
    let at_least = |option: &str, least: usize, value: usize| {
        if value < least {
            Err(Error::invalid(
                option,
                &format!("{least} or more"),
                value.to_string(),
            ))
        } else {
            Ok(())
        }
    };
    at_least("--seqlen", 2, settings.seqlen)?;
    at_least("--sequences", 1, settings.sequences)?;
    at_least("--beam", 1, settings.layer.beam)?;
    at_least("--max-rounds", 1, settings.layer.max_rounds)?;
    at_least("--finetune-batch", 1, settings.finetune.batch)?;
    if settings.validation >= settings.sequences {
        return Err(Error::invalid(
            "--validation",
            &format!("fewer than the {} sequences", settings.sequences),
            settings.validation.to_string(),
        ));
    }
    let number = |option: &str, value: f64| {
        if value.is_finite() && value >= 0.0 {
            Ok(())
        } else {
            Err(Error::invalid(
                option,
                "a finite number of at least 0",
                value.to_string(),
            ))
        }
    };
    number("--tolerance", settings.layer.relative_tolerance)?;
    number("--damping", settings.layer.damping)?;
    number("--finetune-lr", settings.finetune.lr)
}

/// One layer in the JSON result.
#[derive(Debug, Serialize)]
struct LayerDocument<'a> {
    name: &'a str,
    relative_layer_error: f64,
    bits_per_parameter: f64,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    scheme: String,
    bits_per_parameter: f64,
    seconds: f64,
    bytes_before: u64,
    bytes_after: u64,
    layers: Vec<LayerDocument<'a>>,
    blocks: &'a [crate::pipeline::BlockReport],
    out: String,
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let model = open_model(&args.model)?;
    let settings = args.settings.resolve(args.scheme, &model)?;
    check_scheme(model.config(), args.scheme, settings.layer.allow_degenerate)?;
    let stream = TokenStream::load(&args.calib, &model.tokenizer()?)?;
    let calibration = stream.calibration_sequences(settings.seqlen, settings.sequences)?;
    let result = quantize_into(
        &model,
        &args.calib,
        &calibration,
        &settings,
        args.backend,
        &args.out,
        args.resume,
    )?;
    let document = Document {
        scheme: result.scheme.to_string(),
        bits_per_parameter: result.bits_per_parameter,
        seconds: result.seconds,
        bytes_before: model.inventory().bytes,
        bytes_after: Model::open(&args.out)?.inventory().bytes,
        layers: result
            .blocks
            .iter()
            .flat_map(|block| &block.layers)
            .map(|layer| LayerDocument {
                name: &layer.name,
                relative_layer_error: layer.relative_layer_error,
                bits_per_parameter: layer.bits_per_parameter,
                seconds: layer.seconds,
            })
            .collect(),
        blocks: &result.blocks,
        out: args.out.display().to_string(),
    };
    output.result(&document, || {
        format!(
            "{}{}: {:.3} bits per parameter, {} -> {}, {:.1} s\n",
            summary(&result),
            document.out,
            document.bits_per_parameter,
            bytes(document.bytes_before),
            bytes(document.bytes_after),
            document.seconds,
        )
    });
    Ok(true)
}

/// One row a block: the error of each layer, and what fine-tuning left of the block's.
pub(super) fn summary(report: &QuantizeReport) -> String {
    let mut table = Table::new([
        "block", "q", "k", "v", "o", "gate", "up", "down", "output", "seconds",
    ]);
    for block in &report.blocks {
        let error = |index: usize| {
            block.layers.get(index).map_or(String::new(), |layer| {
                format!("{:.4}", layer.relative_layer_error)
            })
        };
        table.row([
            block.block.to_string(),
            error(0),
            error(1),
            error(2),
            error(3),
            error(4),
            error(5),
            error(6),
            format!("{:.4}", block.relative_output_error),
            format!("{:.1}", block.seconds),
        ]);
    }
    format!(
        "relative layer errors, and that of the block's output after fine-tuning\n{}",
        table.render()
    )
}

/// Quantizes into a run folder with progress on standard error and publishes the checkpoint there.
pub(super) fn quantize_into(
    model: &Model,
    calibration_path: &Path,
    calibration: &[&[u32]],
    settings: &QuantizeSettings,
    backend: BackendKind,
    out: &Path,
    resume: bool,
) -> Result<QuantizeReport> {
    with_backend!(backend, model.config(), settings.seqlen, |backend| {
        let description = RunDescription::new(
            model,
            calibration_path,
            calibration,
            settings,
            backend.kind(),
            backend.device(),
        )?;
        let folder = RunFolder::open(out, &description, resume)?;
        let mut progress = QuantizeProgress::new(model.config(), settings);
        let report = quantize(&backend, model, calibration, settings, &folder, &mut |event| {
            progress.event(&event);
        })?;
        drop(progress);
        publish(model, &folder)?;
        Ok(report)
    })
}
