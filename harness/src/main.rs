//! The `aqlm` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    aqlm_harness::cli::run()
}
