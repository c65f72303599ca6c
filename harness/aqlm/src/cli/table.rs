use std::path::PathBuf;

use aqlm_vocabulary::Scheme;

use crate::commands::Output;
use crate::commands::paper_table::{self, GridSource, PlanRequest};
use aqlm_engine::Preset;
use aqlm_engine::backends::BackendKind;
use aqlm_engine::tables::DEFAULT_RATE;
use aqlm_formats::{Error, Result};

/// Options of `aqlm table`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which table: its number in the paper, or a word; --list shows them
    #[arg(value_name = "ID", required_unless_present = "list")]
    id: Option<String>,
    /// List the tables and the known models
    #[arg(long, conflicts_with_all = ["id", "runs", "plan", "run"])]
    list: bool,
    /// Put these finished runs beside the paper: run folders, folders of grids, records of `aqlm bench`
    #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with_all = ["plan", "run"])]
    runs: Vec<PathBuf>,
    /// Print the commands that fill the table, with the time and memory that each cell needs
    #[arg(long, conflicts_with = "run")]
    plan: bool,
    /// Run the cells of a grid that are not finished, after a cross-check of the backend, and show the table
    #[arg(long, requires = "grid", requires = "out")]
    run: bool,
    /// A grid of runs (docs/formats.md, "The paper's tables")
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "runs"])]
    grid: Option<PathBuf>,
    /// With --plan: a known model; --list shows them
    #[arg(long, value_name = "NAME", requires = "plan")]
    model: Option<String>,
    /// With --plan --model: a scheme that stands in for those of all rows
    #[arg(long, requires = "model")]
    scheme: Option<Scheme>,
    /// With --plan --model: the settings to start from
    #[arg(long, value_enum, default_value = "paper", requires = "model")]
    preset: Preset,
    /// With --plan --model: which backend computes
    #[arg(long, value_enum, default_value = "cpu", requires = "model")]
    backend: BackendKind,
    /// With --plan --model: write the grid to a file, to be edited and run
    #[arg(long, value_name = "FILE", requires = "model")]
    save_grid: Option<PathBuf>,
    /// With --plan: assumed 1e9 f32 operations per second
    #[arg(long, value_name = "GFLOPS", default_value_t = DEFAULT_RATE, requires = "plan")]
    rate: f64,
    /// Folder of the cells [default: runs/table-ID/MODEL]
    #[arg(long, value_name = "DIR", conflicts_with = "runs")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    let Some(id) = &args.id else {
        return paper_table::list(output);
    };
    if let (true, Some(grid), Some(out)) = (args.run, &args.grid, &args.out) {
        return paper_table::run(id, grid, out, output);
    }
    if !args.plan {
        if let Some(grid) = &args.grid {
            return Err(Error::argument(
                "--grid",
                "--plan or --run beside it",
                grid.display().to_string(),
            ));
        }
        return paper_table::show(id, &args.runs, output);
    }
    let source = match (&args.grid, &args.model) {
        (Some(grid), _) => GridSource::File(grid.clone()),
        (None, Some(model)) => GridSource::Proposed {
            model: model.clone(),
            scheme: args.scheme,
            preset: args.preset,
            backend: args.backend,
            save: args.save_grid.clone(),
        },
        (None, None) => {
            return Err(Error::argument(
                "--plan",
                "--model or --grid beside it",
                "neither",
            ));
        }
    };
    let request = PlanRequest {
        id: id.clone(),
        source,
        out: args.out.clone(),
        rate: args.rate,
    };
    paper_table::plan(&request, output)
}
