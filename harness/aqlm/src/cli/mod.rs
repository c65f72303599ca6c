//! The command line: one file a command. Results go to standard output, as text or as one JSON document;
//! messages and progress go to standard error. Exit codes: 0 ok, 1 the answer is no, 2 bad input.

mod bench;
mod check;
mod decode_bench;
mod demo;
mod eval;
mod fetch;
mod finetune;
mod generate;
mod inspect;
mod progress;
mod quantize;
mod refusal;
mod table;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

use aqlm_formats::Result;
use aqlm_formats::model::{Model, embedded};

/// Additive quantization of language models: quantize, evaluate, check.
#[derive(Debug, Parser)]
#[command(name = "aqlm", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// Print one JSON document on standard output instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Quantize the embedded model to about 1.7 bits per weight, evaluate it and let it write
    Demo(demo::Args),
    /// Download a model
    Fetch(fetch::Args),
    /// Show a model's architecture, layers, schemes and sizes
    Inspect(inspect::Args),
    /// Quantize a model block by block and write a Hugging Face AQLM checkpoint
    Quantize(Box<quantize::Args>),
    /// Train a quantized model end to end on the dense model's next-token distributions
    Finetune(Box<finetune::Args>),
    /// Measure a model's perplexity on a text
    Eval(eval::Args),
    /// Let a model write
    Generate(generate::Args),
    /// Check results against peers' vectors
    Check(check::Args),
    /// Check kernels against the reference, then time them; enter one of your own
    Bench(Box<bench::Args>),
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
struct Output {
    json: bool,
}

impl Output {
    /// Prints the document or the text, whichever was asked for.
    fn result(self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            // Only plain data reach this: numbers, strings, lists and maps with string keys.
            println!("{}", serde_json::to_string_pretty(document).unwrap_or_default());
        } else {
            print!("{}", text());
        }
    }
}

/// Runs the command line of this process.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { json: cli.json };
    let outcome = match &cli.command {
        Command::Demo(args) => demo::run(args, output),
        Command::Fetch(args) => fetch::run(args, output),
        Command::Inspect(args) => inspect::run(args, output),
        Command::Quantize(args) => quantize::run(args, output),
        Command::Finetune(args) => finetune::run(args, output),
        Command::Eval(args) => eval::run(args, output),
        Command::Generate(args) => generate::run(args, output),
        Command::Check(args) => check::run(args, output),
        Command::Bench(args) => bench::run(args, output),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {}", refusal::refusal(&error));
            ExitCode::from(2)
        }
    }
}

/// Opens a model folder or file; the embedded model by its name when there is no such path.
fn open_model(path: &Path) -> Result<Model> {
    if path.as_os_str() == embedded::NAME && !path.exists() {
        Model::embedded()
    } else {
        Model::open(path)
    }
}
