use std::path::PathBuf;

use crate::commands::{self, Output};
use aqlm_check::cases::{Case, Operation};
use aqlm_check::{CrossOptions, Machines, VectorOptions};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::{Error, Result};

/// The largest number of drawn cases for each operation.
const MOST_CASES: usize = 1_000_000;

/// Options of `aqlm check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Compare with vectors computed by peers instead: a folder with index.json, of AQLM checkpoints with
    /// expected.safetensors, or of NAME.safetensors with a model's token losses
    #[arg(long, value_name = "DIR")]
    vectors: Option<PathBuf>,
    /// With --vectors: a model for NAME.safetensors: a folder or file NAME (or NAME-hf), a folder of several,
    /// or NAME=PATH
    #[arg(long, value_name = "PATH", requires = "vectors")]
    model: Vec<PathBuf>,
    /// Only this backend; with --vectors the one that runs models [default: all; with --vectors: reference]
    #[arg(long, value_enum)]
    backend: Option<BackendKind>,
    /// Only this operation
    #[arg(long)]
    op: Option<String>,
    /// Only the case of this id, or with --vectors of this name
    #[arg(long, value_name = "ID")]
    case: Option<String>,
    /// Cases to draw for each operation, besides the corner cases
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "vectors")]
    cases: usize,
    /// Seed of the drawn cases
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "vectors")]
    seed: u64,
    /// Where to keep the operands of failing cases, a folder each
    #[arg(
        long,
        value_name = "DIR",
        default_value = "runs/check",
        conflicts_with = "vectors"
    )]
    keep: PathBuf,
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    match &args.vectors {
        Some(vectors) => commands::check::against_vectors(vectors, &args.vector_options(), output),
        None => commands::check::against_one_another(&args.cross_options()?, output),
    }
}

impl Args {
    fn cross_options(&self) -> Result<CrossOptions> {
        // they are all drawn before the first is tried
        if self.cases > MOST_CASES {
            return Err(Error::argument(
                "--cases",
                &format!("0 to {MOST_CASES}"),
                self.cases.to_string(),
            ));
        }
        let backends = self
            .backend
            .map_or(BackendKind::ALL.to_vec(), |backend| vec![backend]);
        Ok(CrossOptions {
            machines: backends.into_iter().map(Machines::of).collect(),
            operation: self.op.as_deref().map(str::parse::<Operation>).transpose()?,
            case: self.case.as_deref().map(str::parse::<Case>).transpose()?,
            cases: self.cases,
            seed: self.seed,
            keep: Some(self.keep.clone()),
        })
    }

    fn vector_options(&self) -> VectorOptions {
        VectorOptions {
            backend: self.backend.unwrap_or(BackendKind::Reference),
            op: self.op.clone(),
            case: self.case.clone(),
            models: self.model.clone(),
        }
    }
}
