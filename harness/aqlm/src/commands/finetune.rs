use std::path::Path;
use std::time::Duration;

use super::eval::measure;
use super::progress::{TuningProgress, seconds};
use super::{Job, NamedModel, Output, say};
use aqlm_engine::backends::{OnMachine, TrainingPrecision};
use aqlm_engine::ops::TrainOps;
use aqlm_engine::ranks::wait_for_first;
use aqlm_engine::runs::records::{self, FinetuneRecord};
use aqlm_engine::{
    Difference, Divergence, EndToEndReport, EndToEndRun, EndToEndSettings, RunDescription, RunFolder, Tuning,
    Watch, check_teacher, differences, end_to_end, publish_tuned,
};
use aqlm_formats::model::Model;
use aqlm_formats::texts::TokenStream;
use aqlm_formats::{Error, Result};

/// The teacher of a tuned model, and how it is judged.
#[derive(Debug)]
pub(crate) struct Teaching {
    /// the name of the model that is tuned
    pub(crate) student: String,
    /// the dense model, if the objective requires one
    pub(crate) teacher: Option<NamedModel>,
    /// text for measuring perplexity before and after
    pub(crate) evaluation: Option<TokenStream>,
    /// how that text is used while training
    pub(crate) watched: Option<Watched>,
    /// time between two saved states
    pub(crate) save_every: Duration,
}

/// Measurements on the evaluation text while training.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched {
    /// steps between two of them
    pub(crate) every: usize,
    /// windows of the text; all if `None`
    pub(crate) windows: Option<usize>,
}

/// Default number of tokens per sequence.
pub(crate) fn default_seqlen(model: &Model) -> usize {
    model.config().max_position_embeddings.min(1024)
}

pub(crate) fn run(job: &Job<'_, EndToEndSettings>, teaching: &Teaching, output: Output) -> Result<bool> {
    let (record, report) = finetune(job, teaching)?;
    if !job.ranks.is_first() {
        return Ok(true);
    }
    output.result(&record, || {
        let perplexities = match (record.perplexity_before, record.perplexity_after) {
            (Some(before), Some(after)) => format!("perplexity {before:.4} -> {after:.4}\n"),
            _ => String::new(),
        };
        format!("{}{perplexities}{}\n", summary(&report), record.out)
    })?;
    Ok(true)
}

/// Tunes a quantized model end to end and writes the record to the run folder. With an evaluation text,
/// measures the model before and after.
fn finetune(
    job: &Job<'_, EndToEndSettings>,
    teaching: &Teaching,
) -> Result<(FinetuneRecord, EndToEndReport)> {
    let differences = match &teaching.teacher {
        Some(teacher) => compared_with(&teacher.model, job)?,
        None => Vec::new(),
    };
    let ctx = default_seqlen(job.model).max(job.settings.seqlen);
    let windows = teaching
        .evaluation
        .as_ref()
        .map(|text| text.windows(ctx))
        .transpose()?;
    let shared_documents = teaching
        .evaluation
        .as_ref()
        .map_or(0, |evaluation| warn_of_shared(job.text, evaluation));
    let perplexity = |model: &Model| -> Result<Option<f64>> {
        let Some(windows) = windows.as_ref().filter(|_| job.ranks.is_first()) else {
            return Ok(None);
        };
        Ok(Some(measure(model, windows, job.backend)?.perplexity))
    };
    let teacher = teaching.teacher.as_ref();
    let while_training = watched_windows(teaching, job.settings.seqlen)?;
    let watch = while_training.as_ref().map(|(every, windows)| Watch {
        windows,
        every: *every,
    });
    let report = tune(
        job,
        teacher.map(|teacher| &teacher.model),
        teaching.save_every,
        watch,
        &job.folder,
    )?;
    let record = FinetuneRecord {
        differences,
        shared_documents,
        perplexity_before: perplexity(job.model)?,
        perplexity_after: perplexity(&Model::open(&job.folder)?)?,
        ..FinetuneRecord::new(
            [teaching.student.clone(), job.folder.display().to_string()],
            teacher.map(|teacher| teacher.name.clone()),
            job.backend,
            job.settings.clone(),
            report.clone(),
        )
    };
    if job.ranks.is_first() {
        records::write(&job.folder.join(records::FILE), &record.clone().into())?;
    }
    Ok((record, report))
}

/// Steps between two measurements while training, and the windows that they read.
type Measurements<'a> = (usize, Vec<&'a [u32]>);

/// The measurements while training, if there are any.
fn watched_windows(teaching: &Teaching, seqlen: usize) -> Result<Option<Measurements<'_>>> {
    let (Some(text), Some(watched)) = (&teaching.evaluation, teaching.watched) else {
        return Ok(None);
    };
    let mut windows = text.windows(seqlen)?;
    if let Some(wanted) = watched.windows {
        if wanted > windows.len() {
            return Err(Error::argument(
                "--eval-windows",
                &format!(
                    "at most the {} windows of {seqlen} tokens that {} has",
                    windows.len(),
                    text.path().display()
                ),
                wanted.to_string(),
            ));
        }
        windows.truncate(wanted);
    }
    Ok(Some((watched.every, windows)))
}

/// Checks the teacher's shape and vocabulary, then returns the model's unexpected differences from its
/// teacher.
fn compared_with(teacher: &Model, job: &Job<'_, EndToEndSettings>) -> Result<Vec<Difference>> {
    check_teacher(job.model, teacher)?;
    if teacher.tokenizer().is_ok_and(|theirs| {
        let theirs = job.text.with_tokenizer(&theirs);
        theirs.is_ok_and(|theirs| theirs.tokens() != job.text.tokens())
    }) {
        let path = job.text.path();
        return Err(Error::Kind {
            path: teacher.source().into(),
            expected: format!("a vocabulary that reads {} as the student's does", path.display()),
            found: "another one".into(),
        });
    }
    let differing = differences(job.model, teacher)?;
    warn_of(&differing);
    Ok(differing)
}

/// Number of documents of the training text that also occur in the evaluation text; warns if there are any.
fn warn_of_shared(training: &TokenStream, evaluation: &TokenStream) -> usize {
    let shared = training.documents_shared_with(evaluation);
    if shared > 0 {
        say(format_args!(
            "warning: {shared} of {} documents of {} are in {} too: what is measured there says little",
            training.documents(),
            training.path().display(),
            evaluation.path().display()
        ));
    }
    shared
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
    say(format_args!(
        "note: weights that are not quantized differ from the teacher's beyond rounding to f16 (norms do after block \
         fine-tuning):\n{}",
        lines.join("\n")
    ));
}

/// A summary of a run in words.
pub(super) fn summary(report: &EndToEndReport) -> String {
    let rest = report.teacher_rest.map_or(String::new(), |rest| {
        format!(
            "tokens left out of the teacher's distributions have {:.4} % of their mass\n",
            100.0 * rest
        )
    });
    let changed = report.groups_changed.map_or(String::new(), |changed| {
        format!("{changed} changes of a group's codes\n")
    });
    format!(
        "{rest}{changed}end to end: loss {:.5} -> {:.5} nats a token (epoch {}), {} steps, {} tokens in {} ({:.0} a second)\n",
        report.loss_before,
        report.loss_after,
        report.best_epoch,
        report.steps,
        report.tokens,
        seconds(Duration::from_secs_f64(report.seconds)),
        report.tokens as f64 / report.seconds,
    )
}

/// Trains in the run folder with progress on standard error, and writes the tuned checkpoint to `out`. Saves
/// states whenever `save_every` has passed, and measures the model as `watch` says.
pub(super) fn tune(
    job: &Job<'_, EndToEndSettings>,
    teacher: Option<&Model>,
    save_every: Duration,
    watch: Option<Watch<'_>>,
    out: &Path,
) -> Result<EndToEndReport> {
    let settings = &job.settings;
    let sequences = job
        .text
        .calibration_sequences(settings.seqlen, settings.sequences)?;
    let training = Training {
        job,
        teacher,
        sequences: &sequences,
        save_every,
        watch,
    };
    let (tuning, _folder) = job.backend.run(job.model.config(), settings.seqlen, training)?;
    let diverged = tuning.divergence;
    if job.ranks.is_first() && (diverged.is_none() || tuning.report.best_epoch > 0) {
        publish_tuned(job.model, tuning.weights, out)?;
    }
    wait_for_first(job.ranks)?;
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

/// The job that [`tune`] runs on a machine.
struct Training<'a> {
    job: &'a Job<'a, EndToEndSettings>,
    teacher: Option<&'a Model>,
    sequences: &'a [&'a [u32]],
    save_every: Duration,
    watch: Option<Watch<'a>>,
}

impl OnMachine for Training<'_> {
    type Output = (Tuning, RunFolder);

    fn precision(&self) -> TrainingPrecision {
        self.job.precision.unwrap_or(TrainingPrecision::Tf32)
    }

    fn device(&self) -> usize {
        self.job.ranks.local_rank()
    }

    fn on<M: TrainOps>(self, mut machine: M) -> Result<Self::Output> {
        let Self {
            job,
            teacher,
            sequences,
            save_every,
            watch,
        } = self;
        let settings = &job.settings;
        machine.check_tuning(&settings.tuning())?;
        let with_teacher = EndToEndRun {
            teacher_sha256: teacher.map(Model::fingerprint).transpose()?,
            settings: settings.clone(),
        };
        if let Some(memory) = job.memory {
            machine.bound_tuning_memory(memory, &job.folder, settings.batch)?;
        }
        let description = RunDescription::new(
            job.model,
            job.text.path(),
            sequences,
            &with_teacher,
            machine.kind(),
            machine.device(),
        )?;
        let folder = RunFolder::open_on(job.ranks, &job.folder, &description, job.resume)?;
        let mut progress = TuningProgress::new(settings);
        let tuning = end_to_end(
            &machine,
            job.model,
            teacher,
            sequences,
            settings,
            &folder,
            save_every,
            watch,
            job.ranks,
            &mut |event| progress.event(&event),
        )?;
        Ok((tuning, folder))
    }
}
