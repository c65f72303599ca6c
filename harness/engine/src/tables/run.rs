use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::finished::{CELL_FILE, CellRecord};
use super::grid::{Cell, Grid};
use super::paper::PaperTable;
use crate::backends::BackendKind;
use crate::runs::lock::FolderLock;
use crate::runs::records::{self, Record, TableCheck};
use aqlm_formats::{Error, Result, durable};

/// Folder of a grid's cross-checks, a folder each.
const CHECKS: &str = "checks";
/// File of a check that held.
const CHECK_FILE: &str = "check.json";

/// What decides whether a cross-check holds for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// processor, threads and instructions, or the GPU
    pub machine: String,
    /// SHA-256 of the program's file
    pub program_sha256: String,
    /// version of the program
    pub version: String,
}

/// Who carries out the commands of a grid.
pub trait Worker {
    /// This machine, as the backend sees it, and this build of the program.
    ///
    /// # Errors
    /// `Device` without the backend's device; `Io`.
    fn identity(&self, backend: BackendKind) -> Result<Identity>;

    /// Runs `aqlm` with these arguments in a process of its own and returns its standard output and its exit
    /// code.
    ///
    /// # Errors
    /// `Io` when no process can be started; an error for one that is killed.
    fn run(&mut self, arguments: &[String]) -> Result<(Vec<u8>, i32)>;

    /// Tells the user what happens.
    fn say(&mut self, line: &str);
}

/// How a grid ended.
#[derive(Debug, Clone, PartialEq)]
pub enum GridOutcome {
    /// every cell is finished; the cells' folders
    Finished(Vec<PathBuf>),
    /// the cross-check failed, so nothing was run
    CheckFailed(TableCheck),
}

/// Arguments of a backend's cross-check; operands of failures are kept in `keep`.
pub(super) fn check_arguments(backend: BackendKind, keep: Option<&Path>) -> Vec<String> {
    let mut arguments = vec!["check".to_owned(), "--backend".into(), backend.name().into()];
    if let Some(keep) = keep {
        arguments.extend(["--keep".into(), keep.display().to_string()]);
    }
    arguments.push("--json".into());
    arguments
}

/// Runs the cells of a grid that are not finished, each in its folder inside `out`.
///
/// The backend's cross-check comes first, unless one for this machine and build is kept in `out` or no cell
/// is left to run. If it does not hold, nothing runs. A cell is finished when its `cell.json` exists, which
/// is written last; an interrupted quantization continues.
///
/// # Errors
/// `RunFolder` for a finished cell that other commands made, for a command that ends with an exit code other
/// than 0, and for a folder that another process works in. Those of [`Grid::cells`] and of the worker.
pub fn run_grid(grid: &Grid, table: &PaperTable, out: &Path, worker: &mut dyn Worker) -> Result<GridOutcome> {
    let cells = grid.cells(table, out)?;
    std::fs::create_dir_all(out).map_err(Error::io(out, "make"))?;
    let _lock = FolderLock::take(out)?;
    let mut left = Vec::new();
    for cell in &cells {
        if !is_finished(&out.join(&cell.name), cell)? {
            left.push(cell);
        }
    }
    let folders = cells.iter().map(|cell| out.join(&cell.name)).collect();
    if left.is_empty() {
        worker.say(&format!("all {} cells are finished", cells.len()));
        return Ok(GridOutcome::Finished(folders));
    }
    let (check, holds) = checked(grid.backend, out, worker)?;
    if !holds {
        return Ok(GridOutcome::CheckFailed(check));
    }
    let done = cells.len() - left.len();
    for (index, cell) in left.into_iter().enumerate() {
        worker.say(&format!(
            "cell {} of {}: {}",
            done + index + 1,
            cells.len(),
            cell.name
        ));
        run_cell(grid, cell, &out.join(&cell.name), &check, worker)?;
    }
    Ok(GridOutcome::Finished(folders))
}

fn arguments(cell: &Cell) -> Vec<Vec<String>> {
    let commands = cell.commands.iter();
    commands.map(|command| command.arguments.clone()).collect()
}

/// Whether a cell is finished; refuses one that other commands made.
fn is_finished(folder: &Path, cell: &Cell) -> Result<bool> {
    let path = folder.join(CELL_FILE);
    if !path.is_file() {
        return Ok(false);
    }
    let found: CellRecord = parsed(&path)?;
    let wanted = arguments(cell);
    // A folder that was moved, or is named by another path, holds the same cell.
    let (here, there) = (folder.display().to_string(), found.folder.clone());
    let placed = |command: &Vec<String>| -> Vec<String> {
        let renamed = |argument: &String| {
            if *argument == there {
                here.clone()
            } else {
                argument.clone()
            }
        };
        command.iter().map(renamed).collect()
    };
    let found: Vec<Vec<String>> = found.commands.iter().map(placed).collect();
    if found == wanted {
        return Ok(true);
    }
    let differs = wanted
        .iter()
        .zip(&found)
        .find(|(mine, theirs)| mine != theirs)
        .map_or_else(
            || format!("{} commands there and {} here", found.len(), wanted.len()),
            |(mine, theirs)| format!("`{}` there and `{}` here", theirs.join(" "), mine.join(" ")),
        );
    Err(Error::RunFolder {
        path: folder.into(),
        reason: format!("it holds a finished cell of other commands: {differs}"),
    })
}

fn parsed<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let value: Value = serde_json::from_slice(&text).map_err(Error::json(path, 1))?;
    serde_path_to_error::deserialize(value).map_err(|error| Error::Field {
        path: path.into(),
        field: error.path().to_string(),
        expected: "what aqlm table wrote there".into(),
        found: error.inner().to_string(),
    })
}

/// The kept check of this machine and build, or a new one; and whether it holds.
fn checked(backend: BackendKind, out: &Path, worker: &mut dyn Worker) -> Result<(TableCheck, bool)> {
    let identity = worker.identity(backend)?;
    let Identity {
        machine,
        program_sha256,
        version,
    } = identity;
    let key = durable::sha256(format!("{machine}\n{program_sha256}").as_bytes());
    let id = format!("{backend}-{}", &key[..12]);
    let folder = out.join(CHECKS).join(&id);
    let path = folder.join(CHECK_FILE);
    if path.is_file() {
        let kept: TableCheck = parsed(&path)?;
        worker.say(&format!("cross-check {id} of this machine and build is kept"));
        return Ok((kept, true));
    }
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "make"))?;
    worker.say(&format!(
        "cross-check of the {backend} backend on this machine with this build"
    ));
    let command = check_arguments(backend, Some(&folder.join("operands")));
    let started = Instant::now();
    let (output, _code) = worker.run(&command)?;
    let seconds = started.elapsed().as_secs_f64();
    let record_file = folder.join(records::FILE);
    let Record::Check(report) = records::parse(&record_file, &output)? else {
        return Err(Error::Internal("aqlm check printed another record".into()));
    };
    let holds = report.holds();
    let check = TableCheck {
        id,
        backend,
        machine,
        program_sha256,
        version,
        command,
        pass: report.report.pass,
        fail: report.report.fail,
        unsupported: report.report.unsupported,
        waived: report.report.waived,
        seconds,
    };
    records::write(&record_file, &report.into())?;
    if holds {
        write(&path, &check)?;
    }
    Ok((check, holds))
}

fn write<T: serde::Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Internal(format!("{} that is no JSON: {error}", path.display())))?;
    durable::write_text(path, &format!("{text}\n"))
}

fn run_cell(
    grid: &Grid,
    cell: &Cell,
    folder: &Path,
    check: &TableCheck,
    worker: &mut dyn Worker,
) -> Result<()> {
    if cell.quantize.is_none() {
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "make"))?;
    }
    for command in &cell.commands {
        let mut arguments = command.arguments.clone();
        // A quantization that was interrupted goes on after its last finished block.
        if command.output.is_none() && folder.join("run.json").is_file() {
            arguments.push("--resume".into());
        }
        let (output, code) = worker.run(&arguments)?;
        if code != 0 {
            return Err(Error::RunFolder {
                path: folder.into(),
                reason: format!("`aqlm {}` ended with exit code {code}", arguments.join(" ")),
            });
        }
        if let Some(name) = &command.output {
            let path = folder.join(name);
            records::write(&path, &records::parse(&path, &output)?)?;
        }
    }
    let record = CellRecord {
        table: grid.table.clone(),
        row: cell.row.clone(),
        model: grid.model.clone(),
        path: grid.path.clone(),
        folder: folder.display().to_string(),
        commands: arguments(cell),
        check: check.clone(),
    };
    write(&folder.join(CELL_FILE), &record)
}

#[cfg(test)]
mod tests;
