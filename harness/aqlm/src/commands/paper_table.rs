use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aqlm_optimized::cpu::SimdLevel;
use aqlm_optimized::cuda::{CudaError, Device};
use aqlm_vocabulary::{AqlmError, Scheme};

use super::progress::seconds;
use super::table::{Table, bytes};
use super::{NamedModel, Output, say};
use aqlm_engine::Preset;
use aqlm_engine::backends::BackendKind;
use aqlm_engine::runs::records::{
    Beside, Figure, OurRuns, TableCell, TableColumn, TableListRecord, TablePlanRecord, TableRecord, TableRow,
};
use aqlm_engine::tables::{
    Finished, Grid, GridOutcome, Identity, Worker, fill, list as listed, model, plan as planned,
    read_finished, run_grid, table,
};
use aqlm_formats::{Error, Result, durable};

/// Where the grid of a plan comes from.
#[derive(Debug)]
pub(crate) enum GridSource {
    /// a grid's file
    File(PathBuf),
    /// every row of a known model that can be run
    Proposed {
        /// its name
        model: String,
        /// a scheme that stands in for those of all rows
        scheme: Option<Scheme>,
        preset: Preset,
        backend: BackendKind,
        /// file for the grid
        save: Option<PathBuf>,
    },
}

/// A plan for a table.
#[derive(Debug)]
pub(crate) struct PlanRequest {
    /// the table's id
    pub(crate) id: String,
    pub(crate) source: GridSource,
    /// folder of the cells; `None` for the default one
    pub(crate) out: Option<PathBuf>,
    /// assumed 1e9 operations per second
    pub(crate) rate: f64,
}

/// `aqlm table --list`.
pub(crate) fn list(output: Output) -> Result<bool> {
    let record = listed()?;
    output.result(&record, || list_text(&record))?;
    Ok(true)
}

/// `aqlm table ID`, with finished runs or none.
pub(crate) fn show(id: &str, runs: &[PathBuf], output: Output) -> Result<bool> {
    let table = table(id)?;
    let mut finished: Vec<Finished> = Vec::new();
    for path in runs {
        finished.extend(read_finished(path)?);
    }
    let record = fill(&table, &finished)?;
    output.result(&record, || table_text(&record))?;
    Ok(true)
}

/// `aqlm table ID --plan`.
pub(crate) fn plan(request: &PlanRequest, output: Output) -> Result<bool> {
    let table = table(&request.id)?;
    let grid = match &request.source {
        GridSource::File(path) => Grid::read(path)?,
        GridSource::Proposed {
            model: name,
            scheme,
            preset,
            backend,
            ..
        } => Grid {
            scheme: *scheme,
            ..Grid::proposed(&table, &model(name)?, *backend, *preset)
        },
    };
    let out = request.out.clone().unwrap_or_else(|| {
        PathBuf::from("runs")
            .join(format!("table-{}", table.id))
            .join(&grid.model)
    });
    let record = planned(&grid, &table, &out, request.rate)?;
    if let GridSource::Proposed { save: Some(path), .. } = &request.source {
        durable::write_text(path, &format!("{}\n", grid.to_json()))?;
    }
    output.result(&record, || plan_text(&record))?;
    Ok(true)
}

/// `aqlm table ID --run`: whether the cross-check held. The table is shown when all cells are finished.
pub(crate) fn run(id: &str, grid: &Path, out: &Path, output: Output) -> Result<bool> {
    let table = table(id)?;
    let grid = Grid::read(grid)?;
    let shape = model(&grid.model)?;
    shape.check_shape(NamedModel::open(Path::new(&grid.path))?.model.config())?;
    match run_grid(&grid, &table, out, &mut ThisProgram)? {
        GridOutcome::CheckFailed(check) => {
            say(format_args!(
                "FAIL: {} of {} cases of the cross-check {}; nothing was run. Its record is in {}; \
                 aqlm check --backend {} repeats it",
                check.fail,
                check.pass + check.fail + check.unsupported + check.waived,
                check.id,
                out.join("checks").join(&check.id).display(),
                check.backend
            ));
            Ok(false)
        }
        GridOutcome::Finished(folders) => show(id, &folders, output),
    }
}

/// Runs commands as processes of this same program, so a cell's memory is free when it ends, and what runs is
/// what a plan prints.
struct ThisProgram;

impl Worker for ThisProgram {
    fn identity(&self, backend: BackendKind) -> Result<Identity> {
        let program = program()?;
        Ok(Identity {
            machine: machine(backend)?,
            program_sha256: durable::sha256_of_file(&program)?,
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    fn run(&mut self, arguments: &[String]) -> Result<(Vec<u8>, i32)> {
        let program = program()?;
        let output = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(Error::io(&program, "start"))?;
        let code = output.status.code().ok_or_else(|| {
            Error::argument(
                &format!("aqlm {}", arguments.join(" ")),
                "an exit code",
                output.status.to_string(),
            )
        })?;
        Ok((output.stdout, code))
    }

    fn say(&mut self, line: &str) {
        say(line);
    }
}

fn program() -> Result<PathBuf> {
    std::env::current_exe().map_err(Error::io("aqlm", "find the file of"))
}

/// What of this machine decides a backend's results.
fn machine(backend: BackendKind) -> Result<String> {
    match backend {
        BackendKind::Reference => Ok(processor()),
        BackendKind::Cpu => Ok(format!(
            "{}, {} threads, {}",
            processor(),
            rayon::current_num_threads(),
            SimdLevel::current()
        )),
        BackendKind::Cuda => match Device::open(0, None) {
            Ok(device) => Ok(device.name().map_err(AqlmError::from)?),
            Err(CudaError::Absent(reason)) => Err(Error::Device { reason }),
            Err(error) => Err(AqlmError::from(error).into()),
        },
    }
}

/// The processor's name, where the system tells it.
fn processor() -> String {
    let listed = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = listed
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn list_text(record: &TableListRecord) -> String {
    let mut table = Table::new(["table", "rows", "can be run"]);
    for entry in &record.tables {
        table.row([
            format!("{:<9} {}", entry.id, entry.title),
            entry.rows.to_string(),
            entry.runnable.to_string(),
        ]);
    }
    format!("{}models: {}\n", table.render(), record.models.join(", "))
}

fn table_text(record: &TableRecord) -> String {
    let mut text = format!(
        "{} {}\n{}. {}\n\n",
        if record.id.starts_with(|c: char| c.is_ascii_digit()) {
            format!("Table {}:", record.id)
        } else {
            format!("{}:", record.id)
        },
        record.title,
        record.source,
        record.about
    );
    text.push_str(&paper_text(record));
    let notes: Vec<String> = record
        .rows
        .iter()
        .flat_map(|row| row.notes.iter().map(|note| format!("{}: {note}\n", row.row)))
        .collect();
    text.push_str(&notes.concat());
    text.push_str(&beside_text(record));
    text
}

/// The paper's figures, a column each.
fn paper_text(record: &TableRecord) -> String {
    let printed = |column: &&TableColumn| {
        record.rows.iter().any(|row| {
            row.cells
                .iter()
                .any(|cell| cell.column == column.column && cell.paper.is_some())
        })
    };
    let columns: Vec<&TableColumn> = record.columns.iter().filter(printed).collect();
    let mut head = vec!["row".to_owned(), "method".into(), "scheme".into(), "bits".into()];
    head.extend(columns.iter().map(|column| column.title.clone()));
    let mut table = Table::of(head);
    for row in record.rows.iter().filter(|row| row.source.is_some()) {
        let mut cells = vec![
            row.row.clone(),
            row.method.clone(),
            row.scheme.map_or_else(String::new, |scheme| scheme.to_string()),
            row.bits.map_or_else(String::new, |bits| bits.to_string()),
        ];
        cells.extend(columns.iter().map(|column| {
            let figure = cell_of(row, &column.column).and_then(|cell| cell.paper.as_ref());
            figure.map_or_else(String::new, |figure| {
                with_deviation(figure.value, figure.deviation, column.decimals)
            })
        }));
        table.line(cells);
    }
    table.render()
}

/// Every cell that has a figure of ours: paper, official code, ours, difference. Without runs, every cell
/// that has a figure of the official code.
fn beside_text(record: &TableRecord) -> String {
    let mut text = "\n".to_owned();
    if let Some(model) = &record.model {
        let _ = writeln!(
            text,
            "ours: {} ({})",
            model.name.as_deref().unwrap_or("a model of another shape"),
            model.path
        );
    }
    let mut table = Table::new([
        "row",
        "ours is",
        "bits",
        "figure",
        "paper",
        "official code",
        "ours",
        "difference",
        "from",
        "check",
    ]);
    let alone = record.rows.iter().all(|row| row.ours.is_none());
    let mut reasons: Vec<&String> = Vec::new();
    let mut shown = 0;
    for row in &record.rows {
        let (what, bits) = row.ours.as_ref().map_or_else(Default::default, ours_is);
        for (cell, column) in row.cells.iter().zip(&record.columns) {
            if cell.ours.is_none() && !(alone && cell.official.is_some()) {
                continue;
            }
            shown += 1;
            let decimals = column.decimals;
            let print = |value: Option<(f64, Option<f64>)>| {
                value.map_or_else(
                    || "-".to_owned(),
                    |(value, deviation)| with_deviation(value, deviation, decimals),
                )
            };
            let theirs = |figure: &Figure| (figure.value, figure.deviation);
            table.row([
                row.row.clone(),
                what.clone(),
                bits.clone(),
                column.title.clone(),
                print(cell.paper.as_ref().map(theirs)),
                print(cell.official.as_ref().map(theirs)),
                print(cell.ours.as_ref().map(|figure| (figure.value, figure.deviation))),
                cell.difference
                    .map_or_else(|| "-".into(), |difference| format!("{difference:+.decimals$}")),
                match cell.difference_from {
                    Some(Beside::Paper) => "paper".into(),
                    Some(Beside::Official) => "official".into(),
                    None => String::new(),
                },
                check_of(cell),
            ]);
            if let Some(reason) = &cell.not_compared
                && !reasons.contains(&reason)
            {
                reasons.push(reason);
            }
        }
    }
    if shown == 0 {
        return String::new();
    }
    text.push_str(&table.render());
    for reason in reasons {
        let _ = writeln!(text, "not compared: {reason}");
    }
    for check in &record.checks {
        let _ = writeln!(
            text,
            "check {}: {} pass, {} fail, {} unsupported, {} waived, on {} with {} ({})",
            check.id,
            check.pass,
            check.fail,
            check.unsupported,
            check.waived,
            check.machine,
            check.version,
            check.program_sha256.get(..12).unwrap_or_default()
        );
    }
    text
}

/// What our runs of a row are, and their average bits.
fn ours_is(ours: &OurRuns) -> (String, String) {
    let what = ours
        .scheme
        .map_or_else(|| "dense".to_owned(), |scheme| scheme.to_string());
    let what = match &ours.device {
        Some(device) => format!("{what} on {device}"),
        None => what,
    };
    (
        what,
        ours.bits.map_or_else(String::new, |bits| format!("{bits:.3}")),
    )
}

/// The checks behind a figure of ours.
fn check_of(cell: &TableCell) -> String {
    let mut ids: Vec<&str> = Vec::new();
    for run in cell.ours.iter().flat_map(|figure| &figure.runs) {
        let id = run.check.as_deref().unwrap_or("none");
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids.join(", ")
}

fn cell_of<'a>(row: &'a TableRow, column: &str) -> Option<&'a TableCell> {
    row.cells.iter().find(|cell| cell.column == column)
}

fn with_deviation(value: f64, deviation: Option<f64>, decimals: usize) -> String {
    deviation.map_or_else(
        || format!("{value:.decimals$}"),
        |deviation| format!("{value:.decimals$} ({deviation:.decimals$})"),
    )
}

fn plan_text(record: &TablePlanRecord) -> String {
    let time = |amount: f64| seconds(Duration::from_secs_f64(amount));
    let mut text = format!(
        "# table {} of {}: {} cells, {} at {:.0} GFLOP/s (estimates; expect a factor of two)\n\n\
         # first, once for a machine and build\n{}\n",
        record.id,
        record.model,
        record.cells.len(),
        time(record.seconds),
        record.rate,
        record.check
    );
    for cell in &record.cells {
        let what = match (cell.scheme, cell.bits) {
            (Some(scheme), Some(bits)) => format!("{scheme}, {bits:.3} bits"),
            _ => "dense".into(),
        };
        let phases: Vec<String> = cell
            .phases
            .iter()
            .filter(|phase| phase.seconds >= 0.01 * cell.seconds)
            .map(|phase| format!("{} {}", phase.phase, time(phase.seconds)))
            .collect();
        let _ = write!(
            text,
            "\n# {}: {what}; {}, {} of memory, {} on disk\n# {}\n{}\n",
            cell.cell,
            time(cell.seconds),
            bytes(cell.memory_bytes as u64),
            bytes(cell.disk_bytes as u64),
            phases.join(", "),
            cell.commands.join("\n")
        );
    }
    for left in &record.left_out {
        let _ = write!(text, "\n# not run: {}: {}\n", left.row, left.reason);
    }
    text
}
