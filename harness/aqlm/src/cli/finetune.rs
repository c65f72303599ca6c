use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aqlm_vocabulary::{AqlmError, ChangeBudget, CodeMetric, CodeSettings, Objective, StepRule, Tuned};
use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use super::precision::PrecisionArgs;
use super::text::TextArgs;
use crate::commands::finetune::{Teaching, Watched, default_seqlen};
use crate::commands::{self, Job, NamedModel, Output, ranks, warn_of_length};
use aqlm_engine::backends::{BackendKind, CalibrationPrecision, Memory};
use aqlm_engine::{CodePreset, EndToEndSettings, Preset, Schedule, TeacherUse, check_student};
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
    /// Training text: .txt or .raw, .jsonl ({"text": ...} a line), .gz of either, .parquet (column "text"), -
    /// for standard input, or a data set of the Hub: wikitext2:train, c4:train
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
    /// Also measure it every STEPS steps while training, with the divergence from the teacher: into
    /// metrics.jsonl and the charts of `aqlm report`. Decides nothing, and changes no byte of the result
    #[arg(long, value_name = "STEPS", requires = "eval")]
    eval_every: Option<NonZeroUsize>,
    /// Windows of --seqlen tokens that --eval-every reads, from the beginning of the text [default: all]
    #[arg(long, value_name = "N", requires = "eval_every")]
    eval_windows: Option<NonZeroUsize>,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
    #[command(flatten)]
    precision: PrecisionArgs,
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
    /// Processes to share the work, one for each GPU of this host; the result is the same on any number.
    /// torchrun, srun and mpirun start them on several hosts
    #[arg(long, value_name = "N")]
    gpus: Option<usize>,
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

/// Settings that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PresetName {
    /// what measured best here, with fixed codes
    Project,
    /// as the paper of AQLM describes it, with fixed codes
    Paper,
    /// the same as paper
    Official,
    /// what measured best here, for --codes
    Pv,
    /// the recipe of the official repository's README, for --codes
    PvReadme,
    /// the recipe of its branch pv-tuning, for --codes
    PvBranch,
}

impl PresetName {
    /// The preset with codes, or that without.
    fn preset(self) -> std::result::Result<CodePreset, Preset> {
        match self {
            Self::Project => Err(Preset::Project),
            Self::Paper => Err(Preset::Paper),
            Self::Official => Err(Preset::Official),
            Self::Pv => Ok(CodePreset::Pv),
            Self::PvReadme => Ok(CodePreset::PvReadme),
            Self::PvBranch => Ok(CodePreset::PvBranch),
        }
    }
}

/// How parameters follow from their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerName {
    /// Adam as PyTorch computes it
    Adam,
    /// Adam of the official PV-Tuning code: epsilon beside the uncorrected root
    OfficialAdam,
    /// LAMB of the official PV-Tuning code, with corrections: steps are a share of the parameters' norm
    Lamb,
}

impl OptimizerName {
    fn rule(self) -> StepRule {
        let official = |lamb| StepRule::Official { lamb, debias: true };
        match self {
            Self::Adam => StepRule::Adam,
            Self::OfficialAdam => official(false),
            Self::Lamb => official(true),
        }
    }
}

/// Which groups share the budget of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BudgetName {
    /// those of one matrix
    Matrix,
    /// those of the whole model
    Model,
}

/// Which codes are nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MetricName {
    /// the squared distance
    Euclid,
    /// weighted by the gradients' products within the group's inputs, averaged over steps
    Gradients,
}

/// The highest --code-lr. Rules divide a gradient by its size or move a buffer by a share of its norm, so a
/// rate beyond it throws every weight away in one step. Codes stay codes then: no loss would tell.
const HIGHEST_CODE_RATE: f64 = 1000.0;

/// The heading of options that only matter with `--codes`.
const CODES: &str = "Options of --codes";

/// How codes change.
#[derive(Debug, clap::Args)]
struct CodeArgs {
    /// Tune the codes, too (PV-Tuning)
    #[arg(long, help_heading = CODES)]
    codes: bool,
    /// Learning rate of the buffers from which codes follow; it falls as --lr does
    #[arg(long, help_heading = CODES, value_name = "LR", requires = "codes", allow_negative_numbers = true)]
    code_lr: Option<f64>,
    /// Decays of the buffers' moments
    #[arg(long, help_heading = CODES, value_name = "BETA1,BETA2", requires = "codes", value_delimiter = ',')]
    code_betas: Vec<f64>,
    /// How the buffers follow from their gradients
    #[arg(long, help_heading = CODES, value_enum, requires = "codes")]
    code_optimizer: Option<OptimizerName>,
    /// Share of the groups that may change their codes in a step
    #[arg(long, help_heading = CODES, value_name = "SHARE", requires = "codes", allow_negative_numbers = true)]
    max_code_change: Option<f64>,
    /// Which groups share that budget
    #[arg(long, help_heading = CODES, value_enum, requires = "codes")]
    code_budget: Option<BudgetName>,
    /// Norm of a matrix's change in a step, as a share of the matrix's norm, after which only one more group
    /// changes; 0 for no bound
    #[arg(long, help_heading = CODES, value_name = "SHARE", requires = "codes", allow_negative_numbers = true)]
    code_trust_ratio: Option<f64>,
    /// Hypotheses kept while the codes of a group are searched
    #[arg(long, help_heading = CODES, requires = "codes")]
    code_beam: Option<usize>,
    /// Share of a buffer that is replaced by the decoded weight after each step
    #[arg(long, help_heading = CODES, value_name = "SHARE", requires = "codes", allow_negative_numbers = true)]
    delta_decay: Option<f64>,
    /// By what distance codes are nearest to their buffer
    #[arg(long, help_heading = CODES, value_enum, requires = "codes")]
    code_metric: Option<MetricName>,
    /// Share of the way that codebooks go after each step to the least squares fit of the buffers; 0 leaves
    /// them to --optimizer
    #[arg(long, help_heading = CODES, value_name = "SHARE", requires = "codes", allow_negative_numbers = true)]
    code_refit: Option<f64>,
}

impl CodeArgs {
    /// The settings that these options change.
    fn resolve(&self, mut settings: CodeSettings) -> Result<CodeSettings> {
        settings.lr = self.code_lr.unwrap_or(settings.lr);
        if settings.lr > HIGHEST_CODE_RATE {
            return Err(Error::argument(
                "--code-lr",
                &format!(
                    "at most {HIGHEST_CODE_RATE}, which replaces every buffer a thousand times over in one step"
                ),
                settings.lr.to_string(),
            ));
        }
        match self.code_betas.as_slice() {
            [] => {}
            &[beta1, beta2] => {
                settings.optimizer.decay.beta1 = beta1;
                settings.optimizer.decay.beta2 = beta2;
            }
            other => {
                return Err(Error::argument(
                    "--code-betas",
                    "two numbers",
                    format!("{} of them", other.len()),
                ));
            }
        }
        if let Some(name) = self.code_optimizer {
            settings.optimizer.rule = name.rule();
        }
        settings.max_change = self.max_code_change.unwrap_or(settings.max_change);
        match self.code_budget {
            Some(BudgetName::Matrix) => settings.budget = ChangeBudget::Matrix,
            Some(BudgetName::Model) => settings.budget = ChangeBudget::Model,
            None => {}
        }
        match self.code_trust_ratio {
            Some(0.0) => settings.trust_ratio = None,
            Some(ratio) => settings.trust_ratio = Some(ratio),
            None => {}
        }
        settings.beam = self.code_beam.unwrap_or(settings.beam);
        settings.delta_decay = self.delta_decay.unwrap_or(settings.delta_decay);
        match self.code_metric {
            Some(MetricName::Euclid) => settings.metric = CodeMetric::Euclid,
            Some(MetricName::Gradients) => settings.metric = CodeMetric::Gradients,
            None => {}
        }
        settings.refit = self.code_refit.unwrap_or(settings.refit);
        match settings.check() {
            Err(AqlmError::Argument {
                what,
                expected,
                found,
            }) => Err(Error::argument(option_of(&what), &expected, found)),
            other => Ok(other.map(|()| settings)?),
        }
    }
}

/// The option for what [`CodeSettings::check`] names.
fn option_of(what: &str) -> &str {
    match what {
        "code rate" => "--code-lr",
        "first beta of codes" | "second beta of codes" => "--code-betas",
        "share of groups that change" => "--max-code-change",
        "trust ratio" => "--code-trust-ratio",
        "beam" => "--code-beam",
        "delta decay" => "--delta-decay",
        "refit of codebooks" => "--code-refit",
        other => other,
    }
}

/// Settings on top of a preset.
#[derive(Debug, clap::Args)]
struct SettingsArgs {
    /// Settings to start from [default: project, with --codes pv]
    #[arg(long, value_enum)]
    preset: Option<PresetName>,
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
    /// How parameters follow from their gradients
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerName>,
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
    #[command(flatten)]
    code_args: CodeArgs,
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
        let mut settings = self.of_preset(seqlen, sequences)?;
        settings.objective = self.loss;
        if !self.tune.is_empty() {
            settings.tuned = tuned(&self.tune);
        }
        settings.lr = self.lr.unwrap_or(settings.lr);
        settings.schedule = self.schedule.unwrap_or(settings.schedule);
        if let Some(name) = self.optimizer {
            settings.rule = name.rule();
        }
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
        if let Some(codes) = settings.codes {
            settings.codes = Some(self.code_args.resolve(codes)?);
            if !(settings.tuned.codebooks || settings.tuned.scales) {
                return Err(Error::argument(
                    "--tune",
                    "codebooks or scales, beside --codes",
                    "neither",
                ));
            }
            if settings.codes.is_some_and(|codes| codes.refit > 0.0) && !settings.tuned.codebooks {
                return Err(Error::argument(
                    "--code-refit",
                    "codebooks in --tune beside it",
                    "others",
                ));
            }
            if settings.validation == 0 {
                return Err(Error::argument(
                    "--validation",
                    "1 or more, because with --codes they alone decide which state is kept",
                    "0",
                ));
            }
        }
        Ok(settings)
    }

    /// The preset, which must be one with codes if and only if codes are tuned.
    fn of_preset(&self, seqlen: usize, sequences: usize) -> Result<EndToEndSettings> {
        let refuse = |name: PresetName, expected: &str| {
            let found = name.to_possible_value();
            let found = found.map_or_else(String::new, |value| value.get_name().to_owned());
            Err(Error::argument("--preset", expected, found))
        };
        match (self.code_args.codes, self.preset) {
            (false, None) => Ok(EndToEndSettings::preset(Preset::Project, seqlen, sequences)),
            (true, None) => Ok(EndToEndSettings::with_codes(CodePreset::Pv, seqlen, sequences)),
            (codes, Some(name)) => match (codes, name.preset()) {
                (false, Err(preset)) => Ok(EndToEndSettings::preset(preset, seqlen, sequences)),
                (true, Ok(preset)) => Ok(EndToEndSettings::with_codes(preset, seqlen, sequences)),
                (false, Ok(_)) => refuse(name, "--codes beside it, or project, paper or official"),
                (true, Err(_)) => refuse(name, "pv, pv-readme or pv-branch beside --codes"),
            },
        }
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
    let place = ranks::place(args.gpus, args.backend)?;
    for path in &texts {
        ranks::refuse_standard_input(&place, "--calib and --eval", path)?;
    }
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
        watched: args.eval_every.map(|every| Watched {
            every: every.get(),
            windows: args.eval_windows.map(NonZeroUsize::get),
        }),
        save_every: Duration::from_secs(args.save_every),
    };
    ranks::on_ranks(&place, |ranks| {
        let job = Job {
            model: &model,
            text: &text,
            settings,
            backend: args.backend,
            precision: args.precision.chosen(args.backend)?,
            activations: CalibrationPrecision::F32,
            memory: args.memory,
            folder: args.out.clone(),
            resume: args.resume,
            ranks,
        };
        commands::finetune::run(&job, &teaching, output)
    })
}
