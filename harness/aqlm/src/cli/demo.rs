use std::path::PathBuf;

use crate::commands::demo::DemoRequest;
use aqlm_engine::backends::BackendKind;

/// Options of `aqlm demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Keep the quantized model in this folder [default: a temporary one that is removed]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of every random stream
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which backend computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,
}

impl Args {
    pub(super) fn request(&self) -> DemoRequest {
        DemoRequest {
            out: self.out.clone(),
            seed: self.seed,
            backend: self.backend,
        }
    }
}
