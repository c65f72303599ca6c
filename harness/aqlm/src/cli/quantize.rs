use std::path::PathBuf;

use aqlm_vocabulary::{FeedbackSettings, GroupOrder, Initialization, Scheme, Update};
use clap::ValueEnum;

use super::finetune::{TunedName, tuned, validate as validate_end_to_end};
use super::precision::{ActivationArgs, PrecisionArgs};
use super::text::TextArgs;
use crate::commands::{self, Job, NamedModel, Output, ranks, warn_of_length};
use aqlm_engine::backends::{BackendKind, Memory};
use aqlm_engine::sketch::SKETCH_TOKENS;
use aqlm_engine::two_sided::require_single_rows;
use aqlm_engine::{
    EndToEndSettings, HessianKind, LayerObjective, Preset, QuantizeSettings, SketchSettings, check_scheme,
};
use aqlm_formats::model::Model;
use aqlm_formats::texts::TokenStream;
use aqlm_formats::{Error, Result};

/// Options of `aqlm quantize`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
    /// Scheme MxBgG: M codebooks of 2^B codewords for groups of G weights, for example 2x8g8
    #[arg(long)]
    scheme: Scheme,
    /// Calibration text: .txt or .raw, .jsonl ({"text": ...} a line), .gz of either, .parquet (column
    /// "text"), - for standard input, or a data set of the Hub: wikitext2:train, c4:train
    #[arg(long, value_name = "DATA")]
    calib: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// Run folder: becomes the quantized model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    activations: ActivationArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    end_to_end: EndToEndArgs,
    /// Sketch of the dense model's gradients for --hessian sketched and --objective two-sided: computed into
    /// this folder if there is none, then reused by every scheme
    #[arg(long, value_name = "DIR")]
    sketch: Option<PathBuf>,
    /// Memory that activations may take, as in 512M or 2G: hidden states beyond it lie on the disk, in the
    /// run folder
    #[arg(long, value_name = "BYTES")]
    memory: Option<Memory>,
    /// Print what the run takes on a GPU, memory and time by phase, and end
    #[arg(long)]
    plan: bool,
    /// Continue a run of this same command after its last finished block or step
    #[arg(long)]
    resume: bool,
    /// Processes to share the work, one for each GPU of this host; the result is the same on any number.
    /// torchrun, srun and mpirun start them on several hosts
    #[arg(long, value_name = "N")]
    gpus: Option<usize>,
}

/// The argument of `--init`: `residual`, `em`, or `feedback[:K[:PASSES[:ORDER]]]`.
fn initialization(text: &str) -> std::result::Result<Initialization, String> {
    let mut parts = text.split(':');
    let init = match parts.next() {
        Some("residual") => Initialization::Residual,
        Some("em") => Initialization::Em { rounds: 3 },
        Some("feedback") => {
            let mut number = |name: &str, usual: usize| match parts.next().map(str::parse) {
                None => Ok(usual),
                Some(Ok(number @ 1..=1024)) => Ok(number),
                Some(_) => Err(format!("{name} must be a number from 1 to 1024")),
            };
            let usual = FeedbackSettings::default();
            let hypotheses = number("K", usual.hypotheses)?;
            let passes = number("PASSES", usual.passes)?;
            let order = match parts.next() {
                None => usual.order,
                Some("natural") => GroupOrder::Natural,
                Some("variance") => GroupOrder::Variance,
                Some("diagonal") => GroupOrder::Diagonal,
                Some(_) => return Err("ORDER must be natural, variance or diagonal".into()),
            };
            Initialization::Feedback(FeedbackSettings {
                hypotheses,
                passes,
                order,
            })
        }
        _ => return Err("expected residual, em, or feedback[:K[:PASSES[:ORDER]]]".into()),
    };
    match parts.next() {
        None => Ok(init),
        Some(rest) => Err(format!("unexpected `{rest}` at the end")),
    }
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

/// What a step of beam search chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SearchName {
    /// the code of one codebook
    Single,
    /// the codes of two codebooks together, if codes have at most 8 bits
    Pairs,
}

/// What is fine-tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FinetuneName {
    /// nothing
    None,
    /// every block, on the outputs of its dense form
    Block,
    /// every block, and then the whole model on the dense model's next-token distributions
    EndToEnd,
}

/// Settings of the end-to-end step on top of the preset's; `aqlm finetune` has them all.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_field_names, reason = "fields are named after their options")]
struct EndToEndArgs {
    /// What is trained end to end, separated by commas [default: codebooks,scales,norms]
    #[arg(long, value_enum, value_delimiter = ',')]
    end_to_end_tune: Vec<TunedName>,
    /// Learning rate of its first step
    #[arg(long, allow_negative_numbers = true)]
    end_to_end_lr: Option<f64>,
    /// Its epochs at most
    #[arg(long)]
    end_to_end_epochs: Option<usize>,
    /// Its sequences in a step
    #[arg(long)]
    end_to_end_batch: Option<usize>,
    /// Its sequences, a sixteenth of which validate [default: all that the text has]
    #[arg(long)]
    end_to_end_sequences: Option<usize>,
}

impl EndToEndArgs {
    /// Refuses options of a step that is not taken.
    fn check_unused(&self) -> Result<()> {
        let given = [
            ("--end-to-end-tune", !self.end_to_end_tune.is_empty()),
            ("--end-to-end-lr", self.end_to_end_lr.is_some()),
            ("--end-to-end-epochs", self.end_to_end_epochs.is_some()),
            ("--end-to-end-batch", self.end_to_end_batch.is_some()),
            ("--end-to-end-sequences", self.end_to_end_sequences.is_some()),
        ];
        match given.into_iter().find(|&(_, given)| given) {
            Some((option, _)) => Err(Error::argument(
                option,
                "--finetune end-to-end beside it",
                "another",
            )),
            None => Ok(()),
        }
    }

    fn resolve(
        &self,
        preset: Preset,
        settings: &QuantizeSettings,
        stream: &TokenStream,
        model: &Model,
    ) -> Result<EndToEndSettings> {
        let sequences = match self.end_to_end_sequences {
            Some(sequences) => sequences,
            None => stream.windows(settings.seqlen)?.len(),
        };
        let mut end_to_end = EndToEndSettings::preset(preset, settings.seqlen, sequences);
        if !self.end_to_end_tune.is_empty() {
            end_to_end.tuned = tuned(&self.end_to_end_tune);
        }
        end_to_end.lr = self.end_to_end_lr.unwrap_or(end_to_end.lr);
        end_to_end.epochs = self.end_to_end_epochs.unwrap_or(end_to_end.epochs);
        end_to_end.batch = self.end_to_end_batch.unwrap_or(end_to_end.batch);
        end_to_end.seed = settings.seed;
        validate_end_to_end(&end_to_end, model, "--end-to-end-")?;
        Ok(end_to_end)
    }
}

/// Settings on top of a preset.
#[derive(Debug, clap::Args)]
struct SettingsArgs {
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
    /// What a step of beam search chooses
    #[arg(long, value_enum)]
    search: Option<SearchName>,
    /// First codes and codebooks: `residual` (k-means), `em` (refined under the Hessian's metric) or
    /// `feedback[:K[:PASSES[:ORDER]]]` (error feedback; K hypotheses; ORDER natural, variance or diagonal)
    #[arg(long, value_parser = initialization)]
    init: Option<Initialization>,
    /// Iterations of k-means for the first codebooks at most [default: 100]
    #[arg(long, value_name = "N")]
    kmeans_iterations: Option<usize>,
    /// How codebooks follow the codes
    #[arg(long, value_enum)]
    update: Option<UpdateName>,
    /// Hessian of a layer: of its inputs, or of gradients of the dense model
    #[arg(long, value_enum, default_value = "plain")]
    hessian: HessianKind,
    /// Loss of a layer: under the Hessian alone, or with its output rows weighted against each other by
    /// gradients of the dense model
    #[arg(long, value_enum, default_value = "one-sided")]
    objective: LayerObjective,
    /// Labels that the sketch draws from the dense model for each sequence of 256 tokens [default: 2]
    #[arg(long, value_name = "N")]
    sketch_draws: Option<usize>,
    /// Stop a layer when a round gains less than this share of the error
    #[arg(long, allow_negative_numbers = true)]
    tolerance: Option<f64>,
    /// Rounds of codebook update and beam search at most
    #[arg(long)]
    max_rounds: Option<usize>,
    /// Added to the Hessian's diagonal, as a share of its mean
    #[arg(long, allow_negative_numbers = true)]
    damping: Option<f64>,
    /// Hessians in one pass for each kind of layer, over the block as quantized so far
    #[arg(long)]
    true_sequential: bool,
    /// Accept codebooks with more codewords than a layer has groups
    #[arg(long)]
    allow_degenerate: bool,
    /// What is fine-tuned
    #[arg(long, value_enum, default_value = "block")]
    finetune: FinetuneName,
    /// What is trained in a block, separated by commas [default: codebooks,scales,norms]
    #[arg(long, value_enum, value_delimiter = ',')]
    finetune_tune: Vec<TunedName>,
    /// Epochs of fine-tuning a block at most; 0 leaves blocks as they are
    #[arg(long)]
    finetune_epochs: Option<usize>,
    /// Learning rate of fine-tuning a block
    #[arg(long, allow_negative_numbers = true)]
    finetune_lr: Option<f64>,
    /// Sequences in a step of fine-tuning a block
    #[arg(long)]
    finetune_batch: Option<usize>,
    /// Epochs without a better validation loss before fine-tuning of a block stops
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
        assign(&mut settings.layer.kmeans_iterations, self.kmeans_iterations);
        assign(&mut settings.layer.beam, self.beam);
        assign(&mut settings.layer.max_rounds, self.max_rounds);
        assign(&mut settings.finetune.epochs, self.finetune_epochs);
        assign(&mut settings.finetune.batch, self.finetune_batch);
        assign(&mut settings.finetune.patience, self.finetune_patience);
        let assign = |slot: &mut f64, value: Option<f64>| *slot = value.unwrap_or(*slot);
        assign(&mut settings.layer.relative_tolerance, self.tolerance);
        assign(&mut settings.layer.damping, self.damping);
        assign(&mut settings.finetune.lr, self.finetune_lr);
        if let Some(search) = self.search {
            settings.layer.pairs = search == SearchName::Pairs;
        }
        if let Some(init) = &self.init {
            settings.layer.init = init.clone();
        }
        let preset_update = |preset| QuantizeSettings::preset(preset, scheme).layer.update;
        match self.update {
            Some(UpdateName::ClosedForm) => settings.layer.update = preset_update(Preset::Project),
            Some(UpdateName::Adam) => settings.layer.update = preset_update(Preset::Paper),
            Some(UpdateName::AdamOfficial) => settings.layer.update = preset_update(Preset::Official),
            None => {}
        }
        self.apply_gradients(&mut settings)?;
        self.apply_finetune(&mut settings)?;
        validate(&settings)?;
        warn_of_length("--seqlen", settings.seqlen, model);
        Ok(settings)
    }

    /// What gradients of the dense model decide, and the sketch that this needs.
    fn apply_gradients(&self, settings: &mut QuantizeSettings) -> Result<()> {
        settings.hessian = self.hessian;
        settings.objective = self.objective;
        if !settings.needs_sketch() {
            return match self.sketch_draws {
                Some(_) => Err(needless_sketch("--sketch-draws")),
                None => Ok(()),
            };
        }
        if settings.objective == LayerObjective::TwoSided {
            require_single_rows(settings.layer.scheme)?;
            if !matches!(settings.layer.update, Update::ClosedForm { .. }) {
                return Err(Error::argument(
                    "--update",
                    "closed-form beside --objective two-sided",
                    "adam",
                ));
            }
        }
        let draws = self.sketch_draws.unwrap_or(2);
        if !(1..=MOST_DRAWS).contains(&draws) {
            return Err(Error::argument(
                "--sketch-draws",
                &format!("1 to {MOST_DRAWS} draws"),
                draws.to_string(),
            ));
        }
        settings.sketch = Some(SketchSettings {
            seqlen: SKETCH_TOKENS.min(settings.seqlen),
            draws,
            seed: settings.seed,
        });
        Ok(())
    }

    /// What is tuned in a block, and whether anything is.
    fn apply_finetune(&self, settings: &mut QuantizeSettings) -> Result<()> {
        if self.finetune == FinetuneName::None {
            if let Some(epochs @ 1..) = self.finetune_epochs {
                return Err(Error::argument(
                    "--finetune-epochs",
                    "0 beside --finetune none",
                    epochs.to_string(),
                ));
            }
            settings.finetune.epochs = 0;
        }
        if self.finetune_tune.is_empty() {
            return Ok(());
        }
        let tuned = tuned(&self.finetune_tune);
        if tuned.embedding || tuned.head {
            return Err(Error::argument(
                "--finetune-tune",
                "codebooks, scales and norms, which are all that a block has",
                "embedding or head",
            ));
        }
        settings.finetune.codebooks = tuned.codebooks;
        settings.finetune.scales = tuned.scales;
        settings.finetune.norms = tuned.norms;
        Ok(())
    }
}

/// Each draw is a whole backward pass, and its gradients of all sequences are kept.
const MOST_DRAWS: usize = 1024;

fn needless_sketch(option: &str) -> Error {
    Error::argument(
        option,
        "--hessian sketched or --objective two-sided beside it",
        "neither",
    )
}

/// The widest beam. Its hypotheses are kept for every output group of a band at once, each tried with every
/// codeword, and beyond a few dozen the error hardly falls.
const LARGEST_BEAM: usize = 1024;

/// Refuses numbers that no run could use.
fn validate(settings: &QuantizeSettings) -> Result<()> {
    let at_least = |option: &str, least: usize, value: usize| {
        if value < least {
            Err(Error::argument(
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
    if !(1..=LARGEST_BEAM).contains(&settings.layer.beam) {
        return Err(Error::argument(
            "--beam",
            &format!("1 to {LARGEST_BEAM} hypotheses"),
            settings.layer.beam.to_string(),
        ));
    }
    at_least("--kmeans-iterations", 1, settings.layer.kmeans_iterations)?;
    at_least("--max-rounds", 1, settings.layer.max_rounds)?;
    at_least("--finetune-batch", 1, settings.finetune.batch)?;
    if settings.validation >= settings.sequences {
        return Err(Error::argument(
            "--validation",
            &format!("fewer than the {} sequences", settings.sequences),
            settings.validation.to_string(),
        ));
    }
    let number = |option: &str, value: f64| {
        if value.is_finite() && value >= 0.0 {
            Ok(())
        } else {
            Err(Error::argument(
                option,
                "a finite number of at least 0",
                value.to_string(),
            ))
        }
    };
    number("--tolerance", settings.layer.relative_tolerance)?;
    // from there on the layer error is a difference of large numbers, and the weights hardly matter
    if !(0.0..=1.0).contains(&settings.layer.damping) {
        return Err(Error::argument(
            "--damping",
            "a number from 0 to 1",
            settings.layer.damping.to_string(),
        ));
    }
    number("--finetune-lr", settings.finetune.lr)
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    args.text.check_needed(&[&args.calib])?;
    let place = ranks::place(args.gpus, args.backend)?;
    ranks::refuse_standard_input(&place, "--calib", &args.calib)?;
    let named = NamedModel::open(&args.model)?;
    let tokenizer = named.tokenizer()?;
    let model = named.model;
    let settings = args.settings.resolve(args.scheme, &model)?;
    check_scheme(model.config(), args.scheme, settings.layer.allow_degenerate)?;
    match (&args.sketch, settings.needs_sketch()) {
        (Some(_), false) => return Err(needless_sketch("--sketch")),
        (None, true) => {
            return Err(Error::argument(
                "--sketch",
                "a folder for the sketch of gradients beside --hessian sketched or --objective two-sided",
                "none",
            ));
        }
        _ => {}
    }
    let text = args.text.load(&args.calib, &tokenizer)?;
    let end_to_end = if args.settings.finetune == FinetuneName::EndToEnd {
        let preset = args.settings.preset;
        Some(args.end_to_end.resolve(preset, &settings, &text, &model)?)
    } else {
        args.end_to_end.check_unused()?;
        None
    };
    if args.plan && args.backend != BackendKind::Cuda {
        return Err(Error::argument(
            "--plan",
            "--backend cuda beside it",
            format!("--backend {}", args.backend),
        ));
    }
    ranks::on_ranks(&place, |ranks| {
        let job = Job {
            model: &model,
            text: &text,
            backend: args.backend,
            precision: args.precision.chosen(args.backend)?,
            activations: args.activations.chosen(args.backend, &settings)?,
            settings,
            memory: args.memory,
            folder: args.out.clone(),
            resume: args.resume,
            ranks,
        };
        if args.plan {
            return commands::quantize::plan(&job);
        }
        commands::quantize::run(&job, args.sketch.as_deref(), end_to_end.as_ref(), output)
    })
}
