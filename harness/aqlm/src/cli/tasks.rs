use std::path::PathBuf;

use crate::commands::tasks::{self, TasksJob};
use crate::commands::{NamedModel, Output};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::protocol::Bos;
use aqlm_engine::tasks::TaskDefinition;
use aqlm_formats::Result;

/// Options of `aqlm tasks`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    model: PathBuf,
    /// Tasks: winogrande, piqa, hellaswag, arc_easy, arc_challenge, lambada_openai, mmlu, or the .json file
    /// of a definition (docs/evaluation.md)
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        default_value = "winogrande,piqa,hellaswag,arc_easy,arc_challenge"
    )]
    tasks: Vec<String>,
    /// Folder with the tasks' documents, such as piqa_validation.jsonl or .jsonl.gz; a file for a single task
    #[arg(long, value_name = "DIR|FILE")]
    task_data: PathBuf,
    /// Use only the first N documents of each task
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Put N solved examples before every document [default: 5 for mmlu, else 0]
    #[arg(long, value_name = "N")]
    shots: Option<usize>,
    /// Whether texts begin with the document-start token
    #[arg(long, value_enum, default_value = "auto")]
    bos: Bos,
    /// Write the model's answer to every document, a JSON object a line
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
}

/// Runs `aqlm tasks`.
pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let definitions = args.tasks.iter().map(|name| TaskDefinition::find(name));
    let job = TasksJob {
        tasks: definitions.collect::<Result<_>>()?,
        model: NamedModel::open(&args.model)?,
        data: args.task_data.clone(),
        limit: args.limit,
        shots: args.shots,
        bos: args.bos,
        results: args.results.clone(),
        backend: args.backend,
    };
    tasks::run(&job, output)
}
