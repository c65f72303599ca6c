use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aqlm_vocabulary::{Objective, Tuned};
use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use super::text::TextArgs;
use crate::commands::finetune::{Teaching, default_seqlen};
use crate::commands::{self, Job, NamedModel, Output, warn_of_length};
use aqlm_engine::backends::{BackendKind, Memory};
use aqlm_engine::{EndToEndSettings, Preset, Schedule, TeacherUse, check_student};
use aqlm_formats::model::Model;
use aqlm_formats::texts::TokenStream;
use aqlm_formats::{Error, Result};

/// Options of `aqlm finetune`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Quantized model folder (AQLM, Hugging Face layout)
    model: PathBuf,
    /// The dense model that it was made from: folder, GGUF file, or `tiny-stories-4m`
    #[arg(long, value_name = "DENSE")]
    teacher: Option<PathBuf>,
    /// Training text: .txt or .raw, .jsonl ({"text": ...} a line), .gz of either, .parquet (column "text"),
    /// or - for standard input
    #[arg(long, value_name = "DATA")]
    calib: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// Run folder: becomes the tuned model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Text to measure perplexity on before and after; a warning says if the training text overlaps it
    #[arg(long, value_name = "DATA")]
    eval: Option<PathBuf>,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Seconds between two saved states; one is saved after every epoch in any case
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    save_every: u64,
    /// Memory that activations may take, for example 512M or 2G. Activations that do not fit are recomputed;
    /// the teacher's hidden states that do not fit lie on disk, in the run folder
    #[arg(long, value_name = "BYTES")]
    memory: Option<Memory>,
    /// Continue a run of this same command from its last saved state
    #[arg(long)]
    resume: bool,
}

/// What can be minimised, by its names.
fn objectives() -> impl TypedValueParser<Value = Objective> {
    let values = Objective::ALL.map(|objective| {
        let (name, about) = objective.named();
        PossibleValue::new(name).help(about)
    });
    PossibleValuesParser::new(values).map(|name| {
        Objective::ALL
            .into_iter()
            .find(|objective| objective.named().0 == name)
            .expect("the parser takes these names alone")
    })
}

/// What can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum TunedName {
    /// codebooks of the quantized layers
    Codebooks,
    /// scales of the quantized layers
    Scales,
    /// RMSNorm weights
    Norms,
    /// token embeddings
    Embedding,
    /// output layer (the embedding itself where it is tied)
    Head,
}

/// How the teacher is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TeacherName {
    /// computed once and stored in the run folder
    Cached,
    /// resident, computing every batch anew
    OnTheFly,
}

/// Settings on top of a preset.
#[derive(Debug, clap::Args)]
struct SettingsArgs {
    /// Settings to start from
    #[arg(long, value_enum, default_value = "project")]
    preset: Preset,
    /// What is minimised
    #[arg(long, default_value = "kl", value_parser = objectives())]
    loss: Objective,
    /// What is trained, separated by commas [default: codebooks,scales,norms]
    #[arg(long, value_enum, value_delimiter = ',')]
    tune: Vec<TunedName>,
    /// Learning rate of the first step
    #[arg(long, allow_negative_numbers = true)]
    lr: Option<f64>,
    /// How the learning rate falls over the run
    #[arg(long, value_enum)]
    schedule: Option<Schedule>,
    /// Passes over the training sequences at most
    #[arg(long)]
    epochs: Option<usize>,
    /// Sequences in a step
    #[arg(long)]
    batch: Option<usize>,
    /// Epochs without a better validation loss before training stops
    #[arg(long)]
    patience: Option<usize>,
    /// Tokens in a sequence [default: 1024, or the model's longest context when that is shorter]
    #[arg(long)]
    seqlen: Option<usize>,
    /// Sequences, validation included [default: all that the text has]
    #[arg(long)]
    sequences: Option<usize>,
    /// Sequences kept for validation [default: a sixteenth]
    #[arg(long)]
    validation: Option<usize>,
    /// Keep only the teacher's K likeliest tokens at each position, and the probability of all others as one
    /// outcome [default: all tokens, computed from stored hidden states]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// How the teacher is used
    #[arg(long, value_enum, default_value = "cached")]
    teacher_logits: TeacherName,
    /// Seed of every random stream
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// The switches that a list of names turns on.
pub(super) fn tuned(names: &[TunedName]) -> Tuned {
    let names: BTreeSet<TunedName> = names.iter().copied().collect();
    Tuned {
        codebooks: names.contains(&TunedName::Codebooks),
        scales: names.contains(&TunedName::Scales),
        norms: names.contains(&TunedName::Norms),
        embedding: names.contains(&TunedName::Embedding),
        head: names.contains(&TunedName::Head),
    }
}

impl SettingsArgs {
    fn resolve(&self, model: &Model, stream: &TokenStream) -> Result<EndToEndSettings> {
        let seqlen = self.seqlen.unwrap_or_else(|| default_seqlen(model));
        if seqlen < 2 {
            return Err(Error::argument("--seqlen", "2 or more", seqlen.to_string()));
        }
        warn_of_length("--seqlen", seqlen, model);
        let sequences = match self.sequences {
            Some(sequences) => sequences,
            None => stream.windows(seqlen)?.len(),
        };
        let mut settings = EndToEndSettings::preset(self.preset, seqlen, sequences);
        settings.objective = self.loss;
        if !self.tune.is_empty() {
            settings.tuned = tuned(&self.tune);
        }
        settings.lr = self.lr.unwrap_or(settings.lr);
        settings.schedule = self.schedule.unwrap_or(settings.schedule);
        settings.epochs = self.epochs.unwrap_or(settings.epochs);
        settings.batch = self.batch.unwrap_or(settings.batch);
        settings.patience = self.patience.unwrap_or(settings.patience);
        settings.validation = self.validation.unwrap_or(settings.validation);
        settings.seed = self.seed;
        settings.teacher = match (self.teacher_logits, self.top_k) {
            (TeacherName::OnTheFly, Some(k)) => {
                return Err(Error::argument(
                    "--top-k",
                    "nothing beside --teacher-logits on-the-fly, which has all tokens",
                    k.to_string(),
                ));
            }
            (TeacherName::OnTheFly, None) => TeacherUse::OnTheFly,
            (TeacherName::Cached, None) => TeacherUse::States,
            (TeacherName::Cached, Some(k)) => TeacherUse::Top(k),
        };
        validate(&settings, model, "--")?;
        Ok(settings)
    }
}

/// Refuses numbers that no run could use; `prefix` is what the options' names begin with.
pub(super) fn validate(settings: &EndToEndSettings, model: &Model, prefix: &str) -> Result<()> {
    for (option, value) in [
        ("sequences", settings.sequences),
        ("epochs", settings.epochs),
        ("batch", settings.batch),
    ] {
        if value == 0 {
            return Err(Error::argument(&format!("{prefix}{option}"), "1 or more", "0"));
        }
    }
    if settings.validation >= settings.sequences {
        return Err(Error::argument(
            &format!("{prefix}validation"),
            &format!("fewer than the {} sequences", settings.sequences),
            settings.validation.to_string(),
        ));
    }
    if !(settings.lr.is_finite() && settings.lr >= 0.0) {
        return Err(Error::argument(
            &format!("{prefix}lr"),
            "a finite number of at least 0",
            settings.lr.to_string(),
        ));
    }
    let vocab = model.config().vocab_size;
    if let TeacherUse::Top(k) = settings.teacher
        && !(1..=vocab).contains(&k)
    {
        return Err(Error::argument(
            &format!("{prefix}top-k"),
            &format!("1 to {vocab}"),
            k.to_string(),
        ));
    }
    Ok(())
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let texts: Vec<&Path> = std::iter::once(&args.calib)
        .chain(&args.eval)
        .map(PathBuf::as_path)
        .collect();
    args.text.check_needed(&texts)?;
    let named = NamedModel::open(&args.model)?;
    check_student(&named.model)?;
    let tokenizer = named.tokenizer()?;
    let NamedModel { name, model } = named;
    let text = args.text.load(&args.calib, &tokenizer)?;
    let settings = args.settings.resolve(&model, &text)?;
    let needs_teacher = settings.objective.needs_teacher();
    if args.teacher.is_none() && needs_teacher {
        return Err(Error::argument(
            "--teacher",
            "the dense model, or --loss cross-entropy",
            "nothing",
        ));
    }
    let teaching = Teaching {
        student: name,
        teacher: args.teacher.as_deref().map(NamedModel::open).transpose()?,
        evaluation: args
            .eval
            .as_ref()
            .map(|path| args.text.load(path, &tokenizer))
            .transpose()?,
        save_every: Duration::from_secs(args.save_every),
    };
    let job = Job {
        model: &model,
        text: &text,
        settings,
        backend: args.backend,
        memory: args.memory,
        folder: args.out.clone(),
        resume: args.resume,
    };
    commands::finetune::run(&job, &teaching, output)
}
