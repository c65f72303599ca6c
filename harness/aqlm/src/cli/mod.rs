//! The command line: one file a command, with its flags, their help and what makes a request of them. What
//! is done with a request is in `commands`. Results go to standard output, as text or as one JSON document;
//! messages and progress go to standard error. Exit codes: 0 ok, 1 the answer is no, 2 bad input.

mod bench;
mod check;
mod demo;
mod eval;
mod fetch;
mod finetune;
mod generate;
mod inspect;
mod precision;
mod quantize;
mod refusal;
mod report;
mod selfgen;
mod table;
mod tasks;
mod text;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{self, Output, complain, wanted};
use aqlm_formats::Result;

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
    /// Measure a model's perplexity on a text, or its divergence from the dense model
    Eval(Box<eval::Args>),
    /// Measure a model's accuracy on tasks of the LM Evaluation Harness
    Tasks(tasks::Args),
    /// Let a model write text for calibration and tuning
    Selfgen(selfgen::Args),
    /// Let a model write
    Generate(generate::Args),
    /// Check results against peers' vectors
    Check(check::Args),
    /// Check kernels against the reference, then time them; enter one of your own
    Bench(Box<bench::Args>),
    /// Show a table of the paper beside runs of your own; plan such runs, and run them
    Table(Box<table::Args>),
    /// Show runs in a page: quality, errors, time, codebooks, configuration and texts, side by side
    Report(report::Args),
}

/// Runs the command line of this process.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) if refused.use_stderr() => {
            // as with every message, there is nowhere to say that it cannot be printed
            let _ = refused.print();
            return ExitCode::from(2);
        }
        // help and version; whether anybody reads them makes no difference
        Err(asked_for) => {
            let printed = asked_for.print().and_then(|()| io::stdout().flush());
            return finish(wanted(printed).map(|_| true));
        }
    };
    finish(run_command(&cli.command, Output { json: cli.json }))
}

/// The exit code of an outcome, with a message for an error.
fn finish(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            complain(format_args!("error: {}", refusal::refusal(&error)));
            ExitCode::from(2)
        }
    }
}

/// Runs a command; whether the answer is yes.
fn run_command(command: &Command, output: Output) -> Result<bool> {
    match command {
        Command::Demo(args) => commands::demo::run(&args.request(), output),
        Command::Fetch(args) => commands::fetch::run(&args.name, args.to.as_deref(), output),
        Command::Inspect(args) => commands::inspect::run(&args.model, output),
        Command::Quantize(args) => quantize::run(args, output),
        Command::Finetune(args) => finetune::run(args, output),
        Command::Eval(args) => eval::run(args, output),
        Command::Tasks(args) => tasks::run(args, output),
        Command::Selfgen(args) => selfgen::run(args, output),
        Command::Generate(args) => {
            let (model, continuation) = args.request()?;
            commands::generate::run(&model, &continuation, output)
        }
        Command::Check(args) => check::run(args, output),
        Command::Bench(args) => bench::run(args, output),
        Command::Table(args) => table::run(args, output),
        Command::Report(args) => report::run(args, output),
    }
}
