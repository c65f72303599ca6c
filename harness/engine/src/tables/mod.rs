//! Tables of the paper beside runs of ours: the figures of golden/paper, the commands that measure them
//! again, grids of such runs, and the comparison.
//!
//! golden/paper is part of the program. The section "The paper's tables" of docs/formats.md describes its
//! files and those of a grid.

mod accuracies;
mod compare;
mod cost;
mod finished;
mod grid;
mod models;
mod official;
mod one_model;
mod paper;
mod plan;
mod run;

pub(crate) use accuracies::tasks_record;
pub use compare::{fill, list};
pub use cost::{Cost, ROUNDS, Work};
pub(crate) use finished::json;
pub use finished::{CELL_FILE, CellRecord, Finished, FinishedRun, read_finished};
pub use grid::{Cell, Command, Evaluation, Grid, GridCell, shell};
pub(crate) use models::name_at;
pub use models::{PaperModel, model, models};
pub(crate) use official::{OfficialModel, official_models};
pub(crate) use one_model::{one_model, one_protocol};
pub use paper::{
    Column, PaperFigure, PaperRow, PaperTable, QuantizeRecipe, Recipe, TunedPart, columns, table, tables,
};
pub use plan::{DEFAULT_RATE, plan};
pub use run::{GridOutcome, Identity, Worker, run_grid};
