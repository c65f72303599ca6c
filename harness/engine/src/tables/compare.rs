use std::collections::BTreeMap;

use aqlm_vocabulary::Scheme;

use super::finished::{CellRecord, Finished, FinishedRun, Quantized};
use super::models::{PaperModel, models};
use super::official::{Official, OfficialModel};
use super::one_model::{one_model, one_protocol};
use super::paper::{PaperRow, PaperTable, Recipe, TunedPart, columns, tables};
use crate::backends::BackendKind;
use crate::runs::records::{
    Beside, Figure, OurFigure, OurRuns, Outcome, RunFigure, TableCell, TableCheck, TableColumn, TableEntry,
    TableListRecord, TableRecord, TableRow,
};
use aqlm_formats::{Error, Result};

/// Lists every table.
///
/// # Errors
/// `Internal` for a golden/paper that does not parse.
pub fn list() -> Result<TableListRecord> {
    let entry = |table: PaperTable| TableEntry {
        models: table.models(),
        rows: table.rows.len(),
        runnable: table.rows.iter().filter(|row| row.recipe.is_some()).count(),
        id: table.id,
        title: table.title,
        source: table.source,
    };
    Ok(TableListRecord {
        tables: tables()?.into_iter().map(entry).collect(),
        models: models()?.into_iter().map(|model| model.model).collect(),
    })
}

/// Puts finished runs beside the paper's figures and the official code's.
///
/// A cell of a grid belongs to the row that its file names. Every other run belongs to the row of its model
/// with its scheme and tuning, and its number of calibration sequences where several rows differ by that. A
/// run that has no row gets one behind the paper's. Runs that differ in their seeds alone are averaged.
///
/// # Errors
/// `Argument` for runs of different dense models, with what differs, and for evaluations of one column that
/// differ in window or in number of tokens. `Internal` for a golden/paper that does not parse.
pub fn fill(table: &PaperTable, finished: &[Finished]) -> Result<TableRecord> {
    let runs: Vec<&FinishedRun> = finished
        .iter()
        .filter_map(|one| match one {
            Finished::Run(run) => Some(&**run),
            Finished::Bench(..) | Finished::Decode(..) => None,
        })
        .collect();
    let model = one_model(runs.iter().map(|run| (&*run.path, &run.model)))?;
    one_protocol(runs.iter().map(|run| (&*run.path, &run.evaluations)))?;
    let official = Official::read()?;
    let names = column_names(table, &runs);
    let known = columns()?;
    let shown = names
        .iter()
        .filter_map(|name| {
            let column = known.get(name)?;
            Some(TableColumn {
                column: name.clone(),
                title: column.title.clone(),
                what: column.what.clone(),
                better: column.better,
                decimals: column.decimals,
            })
        })
        .collect();
    let filling = Filling {
        table,
        names,
        official,
        models: models()?,
        model: model.as_ref().and_then(|model| model.name.clone()),
    };
    Ok(TableRecord {
        id: table.id.clone(),
        title: table.title.clone(),
        source: table.source.clone(),
        about: table.about.clone(),
        columns: shown,
        rows: filling.rows(&runs, finished)?,
        checks: checks(&runs),
        model,
    })
}

/// The table's columns, then those that only our runs have.
fn column_names(table: &PaperTable, runs: &[&FinishedRun]) -> Vec<String> {
    let mut names = table.columns.clone();
    for run in runs {
        for column in run.evaluations.keys() {
            if !names.contains(column) {
                names.push(column.clone());
            }
        }
    }
    names
}

/// Every check behind the runs, once.
fn checks(runs: &[&FinishedRun]) -> Vec<TableCheck> {
    let mut checks: Vec<TableCheck> = Vec::new();
    for cell in runs.iter().filter_map(|run| run.cell.as_ref()) {
        if !checks.iter().any(|check| check.id == cell.check.id) {
            checks.push(cell.check.clone());
        }
    }
    checks
}

/// What the filling of a table needs.
struct Filling<'a> {
    table: &'a PaperTable,
    /// columns in order
    names: Vec<String>,
    official: Official,
    models: Vec<PaperModel>,
    /// the name of our runs' model
    model: Option<String>,
}

/// A figure of the official code.
struct Theirs {
    value: f64,
    /// tokens in a window, for a perplexity
    ctx: Option<usize>,
    source: String,
}

/// One of our speeds.
struct Speed {
    file: String,
    device: String,
    scheme: Option<Scheme>,
    figures: BTreeMap<&'static str, f64>,
}

impl Filling<'_> {
    fn rows(&self, runs: &[&FinishedRun], finished: &[Finished]) -> Result<Vec<TableRow>> {
        let mut of_row: BTreeMap<&str, Vec<&FinishedRun>> = BTreeMap::new();
        let mut others: Vec<Vec<&FinishedRun>> = Vec::new();
        for &run in runs {
            let row = self.row_of(run);
            let same_row = row.map(|row| of_row.entry(&row.row).or_default());
            if let Some(same) = same_row.filter(|same| same.first().is_none_or(|one| alike(one, run))) {
                same.push(run);
            } else if let Some(same) = others.iter_mut().find(|same| alike(same[0], run)) {
                same.push(run);
            } else {
                others.push(vec![run]);
            }
        }
        let mut speeds = self.speeds(finished)?;
        let mut rows = Vec::new();
        for row in &self.table.rows {
            let runs = of_row.get(row.row.as_str()).map_or(&[][..], Vec::as_slice);
            rows.push(match speeds.remove(&row.row) {
                Some(speed) => self.speed_row(row, &speed),
                None => self.row(Some(row), runs),
            });
        }
        rows.extend(others.iter().map(|runs| self.row(None, runs)));
        Ok(rows)
    }

    /// The row of a run.
    fn row_of(&self, run: &FinishedRun) -> Option<&PaperRow> {
        let named = run.cell.as_ref().filter(|cell| cell.table == self.table.id);
        if let Some(named) = named.and_then(|cell| self.table.row(&cell.row).ok()) {
            return Some(named);
        }
        let model = self.model.as_deref()?;
        let of_model = self.table.rows.iter().filter(|row| row.model == model);
        let fitting: Vec<&PaperRow> = match &run.quantized {
            None => of_model.filter(|row| row.recipe == Some(Recipe::Dense)).collect(),
            Some(quantized) => of_model.filter(|row| fits(row, quantized)).collect(),
        };
        let [row] = fitting[..] else {
            let sequences = run.quantized.as_ref()?.sequences?;
            let of_size = |row: &&PaperRow| match &row.recipe {
                Some(Recipe::Quantize(recipe)) => recipe.sequences == sequences,
                _ => false,
            };
            return fitting.into_iter().find(of_size);
        };
        Some(row)
    }

    fn row(&self, paper: Option<&PaperRow>, runs: &[&FinishedRun]) -> TableRow {
        let first = runs.first().copied();
        let quantized = first.and_then(|run| run.quantized.as_ref());
        let ours = first.map(|_| OurRuns {
            scheme: quantized.map(|quantized| quantized.scheme),
            bits: quantized.and_then(|quantized| quantized.bits),
            device: None,
            runs: runs.iter().map(|run| run.path.display().to_string()).collect(),
        });
        let cells = self
            .names
            .iter()
            .map(|column| {
                let ours = our_figure(column, runs);
                self.cell(column, paper, first, ours)
            })
            .collect();
        match paper {
            Some(row) => TableRow {
                ours,
                cells,
                ..described(row)
            },
            None => TableRow {
                row: first.map_or_else(String::new, |run| {
                    let name = run.path.file_name().unwrap_or(run.path.as_os_str());
                    name.to_string_lossy().into_owned()
                }),
                model: None,
                method: quantized.map_or_else(|| "dense".into(), Quantized::words),
                device: None,
                scheme: None,
                bits: None,
                source: None,
                notes: Vec::new(),
                ours,
                cells,
            },
        }
    }

    /// One cell. `run` is the first of our runs of this row.
    fn cell(
        &self,
        column: &str,
        paper: Option<&PaperRow>,
        run: Option<&FinishedRun>,
        ours: Option<OurFigure>,
    ) -> TableCell {
        let printed = paper.and_then(|row| {
            let figure = row.figures.get(column)?;
            Some(Figure {
                value: figure.value(),
                deviation: figure.deviation(),
                source: row.source.words(),
            })
        });
        let official = match (run, paper) {
            (Some(run), _) => self.official_of_run(column, run),
            (None, Some(row)) if row.backend.is_some() => self.kernel(column, row, row.scheme, None),
            (None, Some(row)) => self.official_of_row(column, row),
            (None, None) => None,
        };
        let mut cell = TableCell {
            column: column.into(),
            paper: printed,
            official: official.as_ref().map(Theirs::figure),
            ours,
            difference: None,
            difference_from: None,
            not_compared: None,
        };
        let (Some(ours), Some(run)) = (&cell.ours, run) else {
            return cell;
        };
        let mut reasons = Vec::new();
        if let (Some(figure), Some(row)) = (&cell.paper, paper) {
            match self.unlike_paper(column, row, run, ours) {
                None => {
                    cell.difference = Some(ours.value - figure.value);
                    cell.difference_from = Some(Beside::Paper);
                }
                Some(reason) => reasons.push(reason),
            }
        }
        if let (None, Some(theirs)) = (cell.difference, &official) {
            match (ours.ctx, theirs.ctx) {
                (Some(mine), Some(other)) if mine != other => {
                    reasons.push(format!("the official code's ctx is {other}, ours {mine}"));
                }
                _ => {
                    cell.difference = Some(ours.value - theirs.value);
                    cell.difference_from = Some(Beside::Official);
                }
            }
        }
        if cell.difference.is_none() && !reasons.is_empty() {
            cell.not_compared = Some(reasons.join("; "));
        }
        cell
    }

    /// Why a figure of ours does not measure what the paper's does.
    fn unlike_paper(
        &self,
        column: &str,
        row: &PaperRow,
        run: &FinishedRun,
        ours: &OurFigure,
    ) -> Option<String> {
        let name = self.model.as_deref().unwrap_or(&run.model.path);
        if name != row.model {
            return Some(format!("the paper's model is {}, ours {name}", row.model));
        }
        if let Some(quantized) = &run.quantized {
            if let Some(scheme) = row.scheme
                && scheme != quantized.scheme
            {
                return Some(format!(
                    "the paper's scheme is {scheme}, ours {}",
                    quantized.scheme
                ));
            }
            if let Some(Recipe::Quantize(recipe)) = &row.recipe
                && let Some(sequences) = quantized.sequences
                && sequences != recipe.sequences
            {
                return Some(format!(
                    "the paper's calibration has {} sequences, ours {sequences}",
                    recipe.sequences
                ));
            }
        }
        let of_paper = self.models.iter().find(|model| model.model == row.model);
        let ctx = of_paper.and_then(|model| Some(model.evaluations.get(column)?.ctx));
        match (ctx, ours.ctx) {
            (Some(theirs), Some(mine)) if theirs != mine => {
                Some(format!("the paper's ctx is {theirs}, ours {mine}"))
            }
            _ => None,
        }
    }

    /// The official code's figure for the model and recipe of a run.
    fn official_of_run(&self, column: &str, run: &FinishedRun) -> Option<Theirs> {
        let name = self.model.as_deref()?;
        let alike = |row: &&OfficialModel| match (&run.quantized, row.scheme) {
            (None, None) => true,
            (Some(quantized), Some(scheme)) => {
                quantized.scheme == scheme && quantized.is_tuned(&row.tuned, row.end_to_end)
            }
            _ => false,
        };
        self.official_like(column, name, alike)
    }

    /// The official code's figure for the model and recipe of a row.
    fn official_of_row(&self, column: &str, row: &PaperRow) -> Option<Theirs> {
        let alike = |official: &&OfficialModel| match &row.recipe {
            Some(Recipe::Dense) => official.scheme.is_none(),
            Some(Recipe::Quantize(recipe)) => {
                official.scheme.is_some()
                    && official.scheme == row.scheme
                    && official.tuned == recipe.tuned
                    && official.end_to_end == recipe.end_to_end
            }
            None => false,
        };
        self.official_like(column, &row.model, alike)
    }

    fn official_like(
        &self,
        column: &str,
        model: &str,
        alike: impl Fn(&&OfficialModel) -> bool,
    ) -> Option<Theirs> {
        let of_model = self.official.models.iter().filter(|row| row.model == model);
        of_model.filter(alike).find_map(|row| {
            Some(Theirs {
                value: *row.figures.get(column)?,
                ctx: Some(row.ctx),
                source: row.source.clone(),
            })
        })
    }

    /// The official kernels' figure at a row's gate_proj. Without a device: on the GPU listed last.
    fn kernel(
        &self,
        column: &str,
        row: &PaperRow,
        scheme: Option<Scheme>,
        device: Option<&str>,
    ) -> Option<Theirs> {
        let is_dense = row.method.starts_with("FP");
        if row.backend != Some(BackendKind::Cuda) || is_dense != scheme.is_none() {
            return None;
        }
        let shape = gate(self.models.iter().find(|model| model.model == row.model)?);
        let product = self.official.kernel(device, shape, scheme)?;
        let value = match column {
            "microseconds" => product.microseconds,
            "speedup" if !is_dense => {
                let dense = self.official.kernel(Some(&product.device), shape, None)?;
                dense.microseconds / product.microseconds
            }
            _ => return None,
        };
        Some(Theirs {
            value,
            ctx: None,
            source: format!("{} on {}", self.official.kernels.source, product.device),
        })
    }

    /// Our speeds by the row that they stand beside.
    fn speeds(&self, finished: &[Finished]) -> Result<BTreeMap<String, Speed>> {
        let mut speeds = BTreeMap::new();
        for one in finished {
            match one {
                Finished::Run(_) => {}
                Finished::Bench(path, report) => {
                    let file = path.display().to_string();
                    let holds = report.op == "matvec" && report.holds();
                    let case = report.cases.iter().find(|case| case.batch == 1);
                    let (Some(case), Some(device), true) = (case, &report.device, holds) else {
                        return Err(not_timed(&file, "a matvec of one row of x, checked and timed"));
                    };
                    let shape = (report.out_features, report.in_features);
                    let model = self.models.iter().find(|model| gate(model) == shape);
                    let dense = case.dense.map(|times| times.median);
                    let passed = case.kernels.iter().filter(|row| row.outcome == Outcome::Pass);
                    let time = passed
                        .clone()
                        .find(|row| row.dispatched && row.us.is_some())
                        .or_else(|| {
                            passed
                                .filter(|row| row.us.is_some())
                                .min_by(|a, b| median(a.us).total_cmp(&median(b.us)))
                        })
                        .and_then(|row| row.us);
                    let (Some(model), Some(times)) = (model, time) else {
                        return Err(not_timed(&file, "a time at the gate_proj shape of a known model"));
                    };
                    let scheme: Scheme = report.scheme.parse()?;
                    let speed = |scheme, figures| Speed {
                        file: file.clone(),
                        device: device.clone(),
                        scheme,
                        figures,
                    };
                    let mut figures = BTreeMap::from([("microseconds", times.median)]);
                    if let Some(dense) = dense {
                        figures.insert("speedup", dense / times.median);
                        let row = self.speed_place(&model.model, device, None);
                        let dense = speed(None, BTreeMap::from([("microseconds", dense)]));
                        speeds.extend(row.map(|row| (row, dense)));
                    }
                    let row = self.speed_place(&model.model, device, Some(scheme));
                    speeds.extend(row.map(|row| (row, speed(Some(scheme), figures))));
                }
                Finished::Decode(path, report) => {
                    let file = path.display().to_string();
                    let (Some(device), Some(rate), Outcome::Pass) =
                        (&report.device, report.tokens_per_second, report.outcome)
                    else {
                        return Err(not_timed(&file, "a checked and timed token"));
                    };
                    let scheme: Scheme = report.scheme.parse()?;
                    let row = self.speed_place(&report.model, device, Some(scheme));
                    let speed = Speed {
                        file,
                        device: device.clone(),
                        scheme: Some(scheme),
                        figures: BTreeMap::from([("tokens_per_second", rate)]),
                    };
                    speeds.extend(row.map(|row| (row, speed)));
                }
            }
        }
        Ok(speeds)
    }

    /// The row of a model, a scheme and the backend that a device belongs to.
    fn speed_place(&self, model: &str, device: &str, scheme: Option<Scheme>) -> Option<String> {
        let backend = if device.contains("NVIDIA") {
            BackendKind::Cuda
        } else {
            BackendKind::Cpu
        };
        let dense = |row: &PaperRow| row.method.starts_with("FP");
        let row = self.table.rows.iter().find(|row| {
            row.model == model
                && row.backend == Some(backend)
                && row.scheme == scheme
                && dense(row) == scheme.is_none()
        });
        row.map(|row| row.row.clone())
    }

    fn speed_row(&self, row: &PaperRow, speed: &Speed) -> TableRow {
        let cell = |column: &String| {
            let ours = speed.figures.get(column.as_str()).map(|&value| OurFigure {
                value,
                deviation: None,
                ctx: None,
                runs: vec![RunFigure {
                    run: speed.file.clone(),
                    value,
                    check: None,
                }],
            });
            let paper = row.figures.get(column).map(|figure| Figure {
                value: figure.value(),
                deviation: figure.deviation(),
                source: row.source.words(),
            });
            let official = self.kernel(column, row, speed.scheme, Some(&speed.device));
            let official = official.as_ref().map(Theirs::figure);
            let difference = match (&ours, &official) {
                (Some(ours), Some(official)) => Some(ours.value - official.value),
                _ => None,
            };
            TableCell {
                column: column.clone(),
                difference,
                difference_from: difference.map(|_| Beside::Official),
                not_compared: match (&ours, &paper, difference) {
                    (Some(_), Some(_), None) => Some(format!(
                        "the paper's device is {}, ours {}",
                        row.device.as_deref().unwrap_or("not stated"),
                        speed.device
                    )),
                    _ => None,
                },
                paper,
                official,
                ours,
            }
        };
        TableRow {
            ours: Some(OurRuns {
                scheme: speed.scheme,
                bits: None,
                device: Some(speed.device.clone()),
                runs: vec![speed.file.clone()],
            }),
            cells: self.names.iter().map(cell).collect(),
            ..described(row)
        }
    }
}

impl Theirs {
    fn figure(&self) -> Figure {
        Figure {
            value: self.value,
            deviation: None,
            source: self.source.clone(),
        }
    }
}

impl Quantized {
    /// Whether it was tuned like this; a folder that does not say what was tuned in its blocks is like any
    /// that was tuned end to end.
    fn is_tuned(&self, tuned: &[TunedPart], end_to_end: bool) -> bool {
        self.end_to_end == end_to_end && self.tuned.as_deref().is_none_or(|mine| mine == tuned)
    }

    fn words(&self) -> String {
        let parts = |tuned: &[TunedPart]| {
            let names: Vec<&str> = tuned.iter().map(|part| part.name()).collect();
            names.join(", ")
        };
        let tuned = match self.tuned.as_deref() {
            None => String::new(),
            Some([]) => ", nothing tuned".into(),
            Some(all) if all == TunedPart::ALL => ", blocks tuned".into(),
            Some(some) => format!(", {} tuned", parts(some)),
        };
        let whole = if self.end_to_end { ", end to end" } else { "" };
        format!("{}{tuned}{whole}", self.scheme)
    }
}

fn fits(row: &PaperRow, quantized: &Quantized) -> bool {
    match &row.recipe {
        Some(Recipe::Quantize(recipe)) => {
            row.scheme == Some(quantized.scheme) && quantized.is_tuned(&recipe.tuned, recipe.end_to_end)
        }
        _ => false,
    }
}

/// Whether two runs differ in their seeds alone.
fn alike(one: &FinishedRun, other: &FinishedRun) -> bool {
    fn recipe(run: &FinishedRun) -> Option<(&str, &str, Vec<&str>)> {
        run.cell.as_ref().map(CellRecord::without_seed)
    }
    one.quantized == other.quantized && recipe(one) == recipe(other)
}

/// A row without cells.
fn described(row: &PaperRow) -> TableRow {
    TableRow {
        row: row.row.clone(),
        model: Some(row.model.clone()),
        method: row.method.clone(),
        device: row.device.clone(),
        scheme: row.scheme,
        bits: row.bits,
        source: Some(row.source.words()),
        notes: row.notes.clone(),
        ours: None,
        cells: Vec::new(),
    }
}

/// The mean of our runs' figures of a column.
fn our_figure(column: &str, runs: &[&FinishedRun]) -> Option<OurFigure> {
    let figures: Vec<RunFigure> = runs
        .iter()
        .filter_map(|run| {
            let evaluated = run.evaluations.get(column).map(|record| record.perplexity);
            Some(RunFigure {
                run: run.path.display().to_string(),
                value: evaluated.or_else(|| run.figures.get(column).copied())?,
                check: run.cell.as_ref().map(|cell| cell.check.id.clone()),
            })
        })
        .collect();
    if figures.is_empty() {
        return None;
    }
    let count = figures.len() as f64;
    let mean = figures.iter().map(|figure| figure.value).sum::<f64>() / count;
    let squares: f64 = figures.iter().map(|figure| (figure.value - mean).powi(2)).sum();
    Some(OurFigure {
        value: mean,
        deviation: (figures.len() > 1).then(|| (squares / (count - 1.0)).sqrt()),
        ctx: runs.iter().find_map(|run| Some(run.evaluations.get(column)?.ctx)),
        runs: figures,
    })
}

fn median(times: Option<crate::runs::records::Times>) -> f64 {
    times.map_or(f64::INFINITY, |times| times.median)
}

/// (out_features, in_features) of a model's gate_proj.
fn gate(model: &PaperModel) -> (usize, usize) {
    (model.intermediate_size, model.hidden_size)
}

fn not_timed(file: &str, expected: &str) -> Error {
    Error::argument("runs", &format!("{expected} in {file}"), "none")
}

#[cfg(test)]
mod tests;
