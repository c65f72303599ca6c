//! The `aqlm` program.

mod bench;
mod cli;
mod commands;
mod report;

use std::process::ExitCode;

/// A block repeatedly allocates and frees hundreds of megabytes of activations. An allocator that returns all
/// of them to the system spends an eighth of the time on page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
