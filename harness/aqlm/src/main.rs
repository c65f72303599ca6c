//! The `aqlm` program.

mod bench;
mod cli;
mod commands;

use std::process::ExitCode;

/// A block's activations come and go by the hundred megabytes; an allocator that hands every one of them back
/// to the system spends an eighth of the time on page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
