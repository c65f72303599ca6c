use std::path::PathBuf;

use clap::ArgGroup;

use crate::commands::report::{self, ReportRequest};
use crate::commands::{Output, watch};
use aqlm_formats::Result;

/// Options of `aqlm report`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("product").args(["out", "watch", "tensorboard"]).required(true).multiple(true))]
pub(super) struct Args {
    /// Run folders, finished or not, folders of grids, or folders with evaluations of the dense model
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Write the page to this file: one HTML file that needs no network
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write event files for TensorBoard to this folder, each run's in a subfolder
    #[arg(long, value_name = "DIR", conflicts_with = "watch")]
    tensorboard: Option<PathBuf>,
    /// Serve the page on this machine and refresh it while the runs go on
    #[arg(long, conflicts_with = "out")]
    watch: bool,
    /// With --watch: the port on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0, requires = "watch")]
    port: u16,
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    if args.watch {
        return watch::run(&args.runs, args.port);
    }
    let request = ReportRequest {
        runs: args.runs.clone(),
        out: args.out.clone(),
        tensorboard: args.tensorboard.clone(),
    };
    report::run(&request, output)
}
