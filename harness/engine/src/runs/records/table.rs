use aqlm_vocabulary::Scheme;
use serde::{Deserialize, Serialize};

use crate::backends::BackendKind;

/// The known tables of the paper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableListRecord {
    /// every table
    pub tables: Vec<TableEntry>,
    /// models whose shapes are known, for `--plan --model`
    pub models: Vec<String>,
}

/// One known table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableEntry {
    /// its id on the command line
    pub id: String,
    /// its title
    pub title: String,
    /// the text that it comes from
    pub source: String,
    /// number of rows
    pub rows: usize,
    /// number of rows that `--run` can compute
    pub runnable: usize,
    /// models that its rows are about
    pub models: Vec<String>,
}

/// A table of the paper beside the official code's figures and finished runs of ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableRecord {
    /// its id
    pub id: String,
    /// its title
    pub title: String,
    /// the text that it comes from
    pub source: String,
    /// what must be known to read it
    pub about: String,
    /// the dense model of our runs; `None` without runs of a model
    pub model: Option<TableModel>,
    /// the columns, in order
    pub columns: Vec<TableColumn>,
    /// the paper's rows in order, then rows of ours that the paper lacks
    pub rows: Vec<TableRow>,
    /// cross-checks that stood behind our runs
    pub checks: Vec<TableCheck>,
}

/// The dense model of our runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableModel {
    /// its name in golden/paper/models.json, if its shape is known
    pub name: Option<String>,
    /// the path that the runs were given
    pub path: String,
    /// SHA-256 of its files, if a run records it
    pub sha256: Option<String>,
}

/// Which of two figures is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// the smaller one
    Lower,
    /// the larger one
    Higher,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableColumn {
    /// its name in files
    pub column: String,
    /// its name in print
    pub title: String,
    /// what its figures are, with the unit
    pub what: String,
    /// which figures are better
    pub better: Better,
    /// decimals in print
    pub decimals: usize,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableRow {
    /// its id in the table
    pub row: String,
    /// the model that the paper's figures are about
    pub model: Option<String>,
    /// the method
    pub method: String,
    /// the device, in a table of speeds
    pub device: Option<String>,
    /// the paper's scheme, if it is stated or follows from the bits
    pub scheme: Option<Scheme>,
    /// the paper's average bits
    pub bits: Option<f64>,
    /// where the paper's figures stand: text, table, row
    pub source: Option<String>,
    /// remarks on the paper's figures
    pub notes: Vec<String>,
    /// our runs of this row
    pub ours: Option<OurRuns>,
    /// a cell for each column
    pub cells: Vec<TableCell>,
}

/// Our runs of one row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OurRuns {
    /// their scheme; `None` for the dense model
    pub scheme: Option<Scheme>,
    /// their average bits
    pub bits: Option<f64>,
    /// their device, in a table of speeds
    pub device: Option<String>,
    /// their folders or files
    pub runs: Vec<String>,
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableCell {
    /// the column's name
    pub column: String,
    /// the paper's figure
    pub paper: Option<Figure>,
    /// the official code's figure for our model, or for the paper's where there are no runs of ours
    pub official: Option<Figure>,
    /// our figure
    pub ours: Option<OurFigure>,
    /// our figure minus that of `difference_from`
    pub difference: Option<f64>,
    /// the figure that ours is compared with: the paper's where both measure the same thing, else the
    /// official code's
    pub difference_from: Option<Beside>,
    /// why there is no difference although there is a figure of ours and another one
    pub not_compared: Option<String>,
}

/// Whose figure stands beside ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Beside {
    /// the paper's
    Paper,
    /// the official code's
    Official,
}

/// A figure of the paper or of the official code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// the figure, or the mean over runs
    pub value: f64,
    /// standard deviation over runs, if stated
    pub deviation: Option<f64>,
    /// where it stands or how it was measured
    pub source: String,
}

/// A figure of ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OurFigure {
    /// mean over `runs`
    pub value: f64,
    /// standard deviation over the runs (n - 1), from two runs on
    pub deviation: Option<f64>,
    /// tokens in a window, for a perplexity
    pub ctx: Option<usize>,
    /// every run's figure
    pub runs: Vec<RunFigure>,
}

/// The figure of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFigure {
    /// the run's folder, or the record's file
    pub run: String,
    /// its figure
    pub value: f64,
    /// id of the cross-check behind it, in `checks`; `None` for a run that `aqlm table --run` did not make
    pub check: Option<String>,
}

/// A cross-check of a backend on one machine with one build of the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableCheck {
    /// backend and the beginning of a hash of machine and build
    pub id: String,
    /// the backend
    pub backend: BackendKind,
    /// processor, threads and instructions, or the GPU
    pub machine: String,
    /// SHA-256 of the program's file
    pub program_sha256: String,
    /// version of the program
    pub version: String,
    /// arguments of the check
    pub command: Vec<String>,
    /// cases within their limits
    pub pass: usize,
    /// cases outside
    pub fail: usize,
    /// cases that the backend does not implement
    pub unsupported: usize,
    /// cases not tried
    pub waived: usize,
    /// seconds that the check took
    pub seconds: f64,
}

/// The commands that fill a table, with estimates of what they need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TablePlanRecord {
    /// the table's id
    pub id: String,
    /// the model's name
    pub model: String,
    /// assumed f32 operations per second, in 1e9 (a multiply-add is two)
    pub rate: f64,
    /// the cross-check that comes first
    pub check: String,
    /// every cell
    pub cells: Vec<PlanCell>,
    /// rows of the table that no command computes, with the reason
    pub left_out: Vec<PlanLeftOut>,
    /// estimated seconds of all cells
    pub seconds: f64,
}

/// One cell of a plan: a run folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanCell {
    /// its name, that of its folder
    pub cell: String,
    /// the table's row
    pub row: String,
    /// the scheme; `None` for the dense model
    pub scheme: Option<Scheme>,
    /// average bits of a quantized weight
    pub bits: Option<f64>,
    /// shell commands, in order
    pub commands: Vec<String>,
    /// estimated work of each phase
    pub phases: Vec<PlanPhase>,
    /// estimated seconds
    pub seconds: f64,
    /// estimated peak memory in bytes
    pub memory_bytes: f64,
    /// estimated bytes of the run folder
    pub disk_bytes: f64,
}

/// Estimated work of one phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanPhase {
    /// its name
    pub phase: String,
    /// multiply-adds
    pub multiply_adds: f64,
    /// seconds at the plan's rate
    pub seconds: f64,
}

/// A row that no command computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanLeftOut {
    /// the row
    pub row: String,
    /// why
    pub reason: String,
}
