use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::estimate::with_error;
use super::progress::Progress;
use super::{NamedModel, Output, say};
use aqlm_engine::Record;
use aqlm_engine::backends::BackendKind;
use aqlm_engine::protocol::Bos;
use aqlm_engine::runs::records::{TaskDocumentRecord, TaskFigures, TasksRecord};
use aqlm_engine::tasks::{
    Encoded, Question, TaskDefinition, document, encode, figures, likelihoods, questions, tokens_read,
};
use aqlm_formats::durable::GrowingFile;
use aqlm_formats::tokenizer::Tokenizer;
use aqlm_formats::{Error, Result};

/// A model, tasks, and how they are put to it.
#[derive(Debug)]
pub(crate) struct TasksJob {
    pub(crate) model: NamedModel,
    pub(crate) tasks: Vec<TaskDefinition>,
    /// folder of the documents, or the file of a single task
    pub(crate) data: PathBuf,
    /// only so many documents of each task
    pub(crate) limit: Option<usize>,
    /// solved examples, if not as many as the task says
    pub(crate) shots: Option<usize>,
    pub(crate) bos: Bos,
    /// file for the answers to every document
    pub(crate) results: Option<PathBuf>,
    pub(crate) backend: BackendKind,
}

/// A task with its documents as tokens.
struct Prepared<'a> {
    task: &'a TaskDefinition,
    data: PathBuf,
    shots: usize,
    questions: Vec<Question>,
    encoded: Vec<Vec<Encoded>>,
}

pub(crate) fn run(job: &TasksJob, output: Output) -> Result<bool> {
    let record = tasks(job)?;
    output.result(&record, || in_words(&record))?;
    Ok(record.tasks.iter().all(|task| task.not_finite == 0))
}

/// Measures a model on tasks.
fn tasks(job: &TasksJob) -> Result<TasksRecord> {
    if job.limit == Some(0) {
        return Err(Error::argument("--limit", "1 or more", "0"));
    }
    let model = &job.model.model;
    let tokenizer = job.model.tokenizer()?;
    let positions = model.config().max_position_embeddings;
    let prepared = job
        .tasks
        .iter()
        .map(|task| prepare(job, task, &tokenizer, positions));
    let prepared: Vec<Prepared<'_>> = prepared.collect::<Result<_>>()?;
    let mut answers = job.results.as_deref().map(GrowingFile::new).transpose()?;
    let total = prepared
        .iter()
        .map(|task| tokens_read(&task.encoded))
        .sum::<usize>();
    let inputs = prepared.iter().flat_map(|task| task.encoded.iter().flatten());
    let longest = inputs.map(|pair| pair.input.len()).max().unwrap_or(0);
    let progress = RefCell::new(Progress::new((total + model.config().blocks.len()) as u64));
    let advance = |what: &str, steps: usize| {
        let mut progress = progress.borrow_mut();
        progress.advance(steps as u64);
        progress.heartbeat(what);
    };
    let machine = job.backend.models(model.config(), longest)?;
    let mut resident = machine.model(model, &mut |_| advance("tasks: loading the model", 1))?;
    let started = Instant::now();
    let mut measured = Vec::new();
    for task in &prepared {
        let what = format!("tasks: {}", task.task.name);
        let found = likelihoods(resident.as_mut(), &task.encoded, &mut |tokens| {
            advance(&what, tokens);
        })?;
        let documents = task.questions.iter().zip(&task.encoded).zip(&found).enumerate();
        let documents: Vec<TaskDocumentRecord> = documents
            .map(|(index, ((question, encoded), found))| document(task.task, index, question, encoded, found))
            .collect();
        if let Some(file) = &mut answers {
            file.append(|file| {
                let mut lines = documents.iter().cloned().map(|line| Record::from(line).to_line());
                lines.try_for_each(|line| writeln!(file, "{line}"))
            })?;
        }
        measured.push(task_figures(task, &documents));
    }
    if let Some(file) = answers {
        file.finish()?;
    }
    Ok(TasksRecord {
        model: job.model.name.clone(),
        backend: job.backend,
        bos: job.bos,
        with_bos: tokenizer.bos().is_some()
            && job.bos.encode(&tokenizer, "a")?.first().copied() == tokenizer.bos(),
        positions,
        seconds: started.elapsed().as_secs_f64(),
        tasks: measured,
    })
}

fn prepare<'a>(
    job: &TasksJob,
    task: &'a TaskDefinition,
    tokenizer: &Tokenizer,
    positions: usize,
) -> Result<Prepared<'a>> {
    let single = job.data.is_file();
    if single && job.tasks.len() > 1 {
        let found = format!("{} for {} tasks", job.data.display(), job.tasks.len());
        return Err(Error::argument(
            "--task-data",
            "a folder for several tasks",
            found,
        ));
    }
    let (folder, data) = if single {
        (job.data.parent().unwrap_or(Path::new("")), job.data.clone())
    } else {
        (job.data.as_path(), data_file(&job.data, &task.data)?)
    };
    let shots = job
        .shots
        .unwrap_or(task.shots.as_ref().map_or(0, |shots| shots.count));
    let examples = match &task.shots {
        _ if shots == 0 => None,
        Some(examples) => Some(data_file(folder, &examples.data)?),
        None => {
            let expected = format!(
                "0 for {}, whose definition names no file with examples",
                task.name
            );
            return Err(Error::argument("--shots", &expected, shots.to_string()));
        }
    };
    let questions = questions(
        task,
        &data,
        job.limit,
        examples.as_deref().map(|path| (path, shots)),
    )?;
    let encoded = encode(&questions, &data, tokenizer, job.bos, positions)?;
    let cut: Vec<usize> = encoded
        .iter()
        .flatten()
        .map(|pair| pair.cut)
        .filter(|&cut| cut > 0)
        .collect();
    if let Some(most) = cut.iter().max() {
        say(format_args!(
            "warning: {}: {} texts are longer than the model's {positions} positions and lose their beginning, at \
             most {most} tokens of it",
            data.display(),
            cut.len()
        ));
    }
    Ok(Prepared {
        task,
        data,
        shots,
        questions,
        encoded,
    })
}

/// The file of a data set in a folder.
fn data_file(folder: &Path, stem: &str) -> Result<PathBuf> {
    let endings = ["jsonl", "jsonl.gz", "json", "ndjson"];
    let mut paths = endings
        .iter()
        .map(|ending| folder.join(format!("{stem}.{ending}")));
    paths.find(|path| path.is_file()).ok_or_else(|| Error::Kind {
        path: folder.into(),
        expected: format!("a folder with {stem}.jsonl or {stem}.jsonl.gz"),
        found: if folder.is_dir() { "neither" } else { "no folder" }.into(),
    })
}

fn task_figures(task: &Prepared<'_>, documents: &[TaskDocumentRecord]) -> TaskFigures {
    let (metrics, groups) = figures(task.task, documents);
    let any = |test: fn(&aqlm_engine::runs::records::AnswerRecord) -> bool| {
        documents
            .iter()
            .filter(|document| document.answers.iter().any(test))
            .count()
    };
    TaskFigures {
        task: task.task.name.clone(),
        data: task.data.display().to_string(),
        shots: task.shots,
        documents: documents.len(),
        cut: any(|answer| answer.cut > 0),
        not_finite: any(|answer| !answer.log_likelihood.is_finite()),
        metrics,
        groups,
    }
}

fn in_words(record: &TasksRecord) -> String {
    let bos = if record.with_bos { "with" } else { "without" };
    let mut text = format!("{}, {bos} BOS, {:.0} s\n", record.model, record.seconds);
    // Writing to a String cannot fail.
    for task in &record.tasks {
        let _ = write!(text, "{:<16}{:>6} documents", task.task, task.documents);
        if task.shots > 0 {
            let _ = write!(text, ", {}-shot", task.shots);
        }
        for figure in &task.metrics {
            let _ = match figure.metric.as_str() {
                "perplexity" => write!(text, "   perplexity {}", with_error(&figure.estimate, 1.0, 3)),
                metric => write!(text, "   {metric} {} %", with_error(&figure.estimate, 100.0, 2)),
            };
        }
        if task.not_finite > 0 {
            let _ = write!(text, "   {} NOT FINITE", task.not_finite);
        }
        text.push('\n');
    }
    text
}
