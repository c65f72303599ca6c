use std::path::PathBuf;

/// Options of `aqlm inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model folder, GGUF file, or `tiny-stories-4m` for the embedded model
    pub(super) model: PathBuf,
}
