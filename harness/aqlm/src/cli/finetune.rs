use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aqlm_vocabulary::{Objective, Tuned};
use clap::ValueEnum;
use serde::Serialize;

use super::eval::measure;
use super::progress::{Progress, seconds};
use super::{Output, open_model};
use aqlm_engine::backends::{Backend, BackendKind, Memory, ModelTuning};
use aqlm_engine::with_backend;
use aqlm_engine::{
    Difference, Divergence, EndToEndEvent, EndToEndReport, EndToEndRun, EndToEndSettings, Preset,
    RunDescription, RunFolder, Schedule, TeacherUse, check_student, check_teacher, differences, end_to_end,
    publish_tuned,
};
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
    /// Training text: .txt, .jsonl ({"text": ...} a line), or .gz of either
    #[arg(long, value_name = "DATA")]
    calib: PathBuf,
    /// Run folder: becomes the tuned model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Text to measure perplexity on before and after; a warning is given where the training text overlaps it
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
    /// Memory that activations may take, as in 512M or 2G: those of training are computed again where they do
    /// not fit, and hidden states of the teacher beyond it lie on the disk, in the run folder
    #[arg(long, value_name = "BYTES")]
    memory: Option<Memory>,
    /// Continue a run of this same command from its last saved state
    #[arg(long)]
    resume: bool,
}

/// What is minimised.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LossName {
    /// divergence from the teacher's next-token distributions
    Kl,
    /// negative log-likelihood of the text; needs no teacher
    CrossEntropy,
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
    #[arg(long, value_enum, default_value = "kl")]
    loss: LossName,
    /// What is trained, separated by commas [default: codebooks,scales,norms]
    #[arg(long, value_enum, value_delimiter = ',')]
    tune: Vec<TunedName>,
    /// Learning rate of the first step
    #[arg(long)]
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
    /// Keep only the K likeliest tokens of each position of the teacher's, and the mass of the others as one
    /// outcome [default: all tokens, made from stored hidden states]
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
        let sequences = match self.sequences {
            Some(sequences) => sequences,
            None => stream.windows(seqlen)?.len(),
        };
        let mut settings = EndToEndSettings::preset(self.preset, seqlen, sequences);
        settings.objective = match self.loss {
            LossName::Kl => Objective::KullbackLeibler,
            LossName::CrossEntropy => Objective::CrossEntropy,
        };
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

/// Tokens in a sequence where nobody says.
fn default_seqlen(model: &Model) -> usize {
    model.config().max_position_embeddings.min(1024)
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

#[derive(Debug, Serialize)]
struct Document<'a> {
    model: String,
    teacher: Option<String>,
    out: String,
    backend: BackendKind,
    settings: &'a EndToEndSettings,
    #[serde(flatten)]
    report: &'a EndToEndReport,
    tokens_per_second: f64,
    /// non-quantized weights that are not the teacher's
    differences: Vec<Difference>,
    /// documents of the training text that the evaluation text has too
    shared_documents: usize,
    perplexity_before: Option<f64>,
    perplexity_after: Option<f64>,
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let model = open_model(&args.model)?;
    check_student(&model)?;
    let tokenizer = model.tokenizer()?;
    let stream = TokenStream::load(&args.calib, &tokenizer)?;
    let settings = args.settings.resolve(&model, &stream)?;
    let needs_teacher = settings.objective == Objective::KullbackLeibler;
    let teacher = match (&args.teacher, needs_teacher) {
        (Some(path), _) => Some(open_model(path)?),
        (None, false) => None,
        (None, true) => {
            return Err(Error::argument(
                "--teacher",
                "the dense model, or --loss cross-entropy",
                "nothing",
            ));
        }
    };
    let mut differing = Vec::new();
    if let Some(teacher) = &teacher {
        check_teacher(&model, teacher)?;
        if teacher.tokenizer().is_ok_and(|theirs| {
            TokenStream::load(&args.calib, &theirs).is_ok_and(|theirs| theirs.tokens() != stream.tokens())
        }) {
            return Err(Error::Kind {
                path: teacher.source().into(),
                expected: format!(
                    "a vocabulary that reads {} as the student's does",
                    args.calib.display()
                ),
                found: "another one".into(),
            });
        }
        differing = differences(&model, teacher)?;
        warn_of(&differing);
    }
    let sequences = stream.calibration_sequences(settings.seqlen, settings.sequences)?;
    let evaluation = args
        .eval
        .as_ref()
        .map(|path| TokenStream::load(path, &tokenizer))
        .transpose()?;
    let ctx = default_seqlen(&model).max(settings.seqlen);
    let windows = evaluation
        .as_ref()
        .map(|stream| stream.windows(ctx))
        .transpose()?;
    let shared_documents = evaluation
        .as_ref()
        .map_or(0, |evaluation| stream.documents_shared_with(evaluation));
    if let (Some(path), 1..) = (&args.eval, shared_documents) {
        eprintln!(
            "warning: {shared_documents} of {} documents of {} are in {} too: what is measured there says little",
            stream.documents(),
            args.calib.display(),
            path.display()
        );
    }
    let perplexity = |model: &Model| -> Result<Option<f64>> {
        let Some(windows) = &windows else { return Ok(None) };
        Ok(Some(
            measure(model, windows, args.backend.into(), None)?.perplexity,
        ))
    };
    let report = finetune_into(
        &model,
        teacher.as_ref(),
        &args.calib,
        &sequences,
        &settings,
        args.backend,
        &args.out,
        &args.out,
        args.memory,
        Duration::from_secs(args.save_every),
        args.resume,
    )?;
    let document = Document {
        model: args.model.display().to_string(),
        teacher: args.teacher.as_ref().map(|path| path.display().to_string()),
        out: args.out.display().to_string(),
        backend: args.backend,
        settings: &settings,
        tokens_per_second: report.tokens as f64 / report.seconds,
        report: &report,
        differences: differing,
        shared_documents,
        perplexity_before: perplexity(&model)?,
        perplexity_after: perplexity(&Model::open(&args.out)?)?,
    };
    output.result(&document, || {
        let perplexities = match (document.perplexity_before, document.perplexity_after) {
            (Some(before), Some(after)) => format!("perplexity {before:.4} -> {after:.4}\n"),
            _ => String::new(),
        };
        format!("{}{perplexities}{}\n", summary(&report), document.out)
    });
    Ok(true)
}

fn warn_of(differing: &[Difference]) {
    const SHOWN: usize = 4;
    if differing.is_empty() {
        return;
    }
    let mut lines: Vec<String> = differing
        .iter()
        .take(SHOWN)
        .map(|difference| format!("  {}: by up to {:.2e}", difference.tensor, difference.largest))
        .collect();
    if differing.len() > SHOWN {
        lines.push(format!("  and {} more", differing.len() - SHOWN));
    }
    eprintln!(
        "note: weights that are not quantized differ from the teacher's beyond rounding to f16 (norms do after block \
         fine-tuning):\n{}",
        lines.join("\n")
    );
}

/// What a run did, in words.
pub(super) fn summary(report: &EndToEndReport) -> String {
    let rest = report.teacher_rest.map_or(String::new(), |rest| {
        format!(
            "tokens left out of the teacher's distributions have {:.4} % of their mass\n",
            100.0 * rest
        )
    });
    format!(
        "{rest}end to end: loss {:.5} -> {:.5} nats a token (epoch {}), {} steps, {} tokens in {} ({:.0} a second)\n",
        report.loss_before,
        report.loss_after,
        report.best_epoch,
        report.steps,
        report.tokens,
        seconds(Duration::from_secs_f64(report.seconds)),
        report.tokens as f64 / report.seconds,
    )
}

/// Trains in the run folder `run` with progress on standard error, and writes the tuned checkpoint into
/// `out`.
#[expect(clippy::too_many_arguments, reason = "each is a different thing")]
pub(super) fn finetune_into(
    model: &Model,
    teacher: Option<&Model>,
    calibration_path: &Path,
    sequences: &[&[u32]],
    settings: &EndToEndSettings,
    backend: BackendKind,
    run: &Path,
    out: &Path,
    memory: Option<Memory>,
    save_every: Duration,
    resume: bool,
) -> Result<EndToEndReport> {
    let with_teacher = EndToEndRun {
        teacher_sha256: teacher.map(Model::fingerprint).transpose()?,
        settings: settings.clone(),
    };
    let (tuning, _folder) = with_backend!(backend, model.config(), settings.seqlen, |backend| {
        let mut backend = backend;
        if let Some(memory) = memory {
            backend.bound_tuning_memory(memory, run, settings.batch)?;
        }
        let description = RunDescription::new(
            model,
            calibration_path,
            sequences,
            &with_teacher,
            backend.kind(),
            backend.device(),
        )?;
        let folder = RunFolder::open(run, &description, resume)?;
        let mut progress = TuningProgress::new(settings);
        let tuning = end_to_end(
            &backend,
            model,
            teacher,
            sequences,
            settings,
            &folder,
            save_every,
            &mut |event| progress.event(&event),
        )?;
        (tuning, folder)
    });
    let diverged = tuning.divergence;
    if diverged.is_none() || tuning.report.best_epoch > 0 {
        publish_tuned(model, tuning.weights, out)?;
    }
    match diverged {
        None => Ok(tuning.report),
        Some(Divergence {
            epoch,
            step,
            loss,
            layer,
        }) => Err(Error::Diverged {
            epoch,
            step,
            loss,
            layer,
            kept: match tuning.report.best_epoch {
                0 => "no epoch had finished, so no model was written".into(),
                best => format!("the model as it was after epoch {best} is in {}", out.display()),
            },
        }),
    }
}

/// Progress of a run, counted in tokens.
struct TuningProgress {
    progress: Progress,
    epochs: usize,
    /// since training began, and the tokens since then
    rate: Option<(Instant, u64)>,
}

impl TuningProgress {
    fn new(settings: &EndToEndSettings) -> Self {
        let tokens = (settings.sequences - settings.validation) * settings.seqlen * settings.epochs;
        Self {
            progress: Progress::new(tokens as u64),
            epochs: settings.epochs,
            rate: None,
        }
    }

    fn event(&mut self, event: &EndToEndEvent) {
        match event {
            EndToEndEvent::TeacherStored { done, sequences } => {
                let what = format!("teacher: {done} of {sequences} sequences");
                self.progress.heartbeat(&what);
                self.progress.message(what);
            }
            EndToEndEvent::Resumed { epoch, step } => {
                self.progress
                    .line(&format!("continuing after epoch {epoch} and {step} steps"));
            }
            EndToEndEvent::StateDamaged(reason) => {
                self.progress
                    .line(&format!("damaged, the state before is used: {reason}"));
            }
            EndToEndEvent::Step {
                epoch,
                step,
                steps,
                tokens,
                loss,
            } => {
                self.progress.advance(*tokens as u64);
                let (started, done) = self.rate.get_or_insert_with(|| (Instant::now(), 0));
                let elapsed = started.elapsed().as_secs_f64();
                let rate = if *done == 0 {
                    String::new()
                } else {
                    format!(", {:.0} tokens/s", *done as f64 / elapsed)
                };
                *done += *tokens as u64;
                let what = format!(
                    "epoch {epoch}/{}, step {step}/{steps}, loss {loss:.4}{rate}",
                    self.epochs
                );
                self.progress.heartbeat(&what);
                self.progress.message(what);
            }
            EndToEndEvent::Judged {
                epoch,
                train_loss,
                loss,
            } => {
                let train = train_loss.map_or(String::new(), |train| format!("training loss {train:.5}, "));
                self.progress.line(&format!(
                    "after epoch {epoch}/{}: {train}validation loss {loss:.5}",
                    self.epochs
                ));
            }
        }
    }
}
