use std::collections::BTreeMap;

use super::super::finished::read_finished;
use super::super::grid::Evaluation;
use super::super::paper::table;
use super::*;
use crate::Preset;
use crate::protocol::Protocol;
use crate::runs::records::{CaseRow, CheckReport, Comparison, CrossReport, EvalRecord, Outcome};

/// Stands in for the program: answers checks and evaluations, and notes what it was asked.
struct Pretender {
    build: &'static str,
    holds: bool,
    /// number of evaluations that work before one fails
    fails_after: usize,
    asked: Vec<String>,
}

impl Pretender {
    fn new() -> Self {
        Self {
            build: "a",
            holds: true,
            fails_after: usize::MAX,
            asked: Vec::new(),
        }
    }

    fn count(&self, command: &str) -> usize {
        self.asked.iter().filter(|line| line.starts_with(command)).count()
    }
}

impl Worker for Pretender {
    fn identity(&self, _backend: BackendKind) -> Result<Identity> {
        Ok(Identity {
            machine: "a machine".into(),
            program_sha256: self.build.repeat(64),
            version: "0".into(),
        })
    }

    fn run(&mut self, arguments: &[String]) -> Result<(Vec<u8>, i32)> {
        self.asked.push(arguments.join(" "));
        let record: Record = if arguments[0] == "check" {
            let value = if self.holds { 0.5 } else { 2.0 };
            let row = CaseRow::compared("matvec", "a", "cpu", vec![Comparison::new("y", value, 1.0)]);
            let waived = CaseRow::without("matvec", "b", "cpu", Outcome::Waived, "no");
            CrossReport {
                summary: Vec::new(),
                report: CheckReport::new(vec![row, waived]),
            }
            .into()
        } else {
            if self.count("eval") > self.fails_after {
                return Ok((Vec::new(), 2));
            }
            EvalRecord {
                perplexity: 8.0,
                mean_nll: 8f64.ln(),
                tokens: 63,
                not_finite: 0,
                windows: 1,
                ctx: 64,
                model: arguments[1].clone(),
                data: "stories".into(),
                protocol: Protocol::Gptq,
                strict: None,
                backend: BackendKind::Cpu,
            }
            .into()
        };
        Ok((record.to_json().into_bytes(), i32::from(!self.holds)))
    }

    fn say(&mut self, _line: &str) {}
}

/// Two cells of the dense model, which need no quantization.
fn grid() -> Grid {
    let cell = |row: &str| super::super::grid::GridCell {
        row: row.into(),
        cell: None,
        scheme: None,
        sequences: None,
        tuned: None,
        end_to_end: None,
        arguments: Vec::new(),
    };
    Grid {
        table: "1".into(),
        model: "tiny-stories-4m".into(),
        path: "tiny-stories-4m".into(),
        backend: BackendKind::Cpu,
        preset: Preset::Official,
        calibration: "c".into(),
        seqlen: 64,
        scheme: None,
        sequences: None,
        arguments: Vec::new(),
        seeds: Vec::new(),
        evaluations: BTreeMap::from([(
            "stories".to_owned(),
            Evaluation {
                data: "stories".into(),
                ctx: 64,
                arguments: Vec::new(),
            },
        )]),
        cells: vec![cell("7b-fp16"), cell("13b-fp16")],
    }
}

fn run(grid: &Grid, out: &Path, worker: &mut Pretender) -> Result<GridOutcome> {
    run_grid(grid, &table("1").unwrap(), out, worker)
}

#[test]
fn a_finished_grid_runs_nothing_again_and_its_figures_name_their_check() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut worker = Pretender::new();
    let GridOutcome::Finished(folders) = run(&grid(), &out, &mut worker).unwrap() else {
        panic!("the check failed")
    };
    assert_eq!(folders, [out.join("7b-fp16"), out.join("13b-fp16")]);
    assert_eq!((worker.count("check"), worker.count("eval")), (1, 2));
    assert!(
        worker.asked[0].starts_with("check --backend cpu --keep "),
        "{:?}",
        worker.asked
    );

    let record = super::super::compare::fill(&table("1").unwrap(), &read_finished(&out).unwrap()).unwrap();
    assert_eq!(
        (
            record.checks.len(),
            record.checks[0].pass,
            record.checks[0].waived
        ),
        (1, 1, 1)
    );
    let stories = record.rows[0]
        .cells
        .iter()
        .find(|cell| cell.column == "stories")
        .unwrap();
    let figure = stories.ours.as_ref().unwrap();
    assert_eq!(figure.runs[0].check.as_ref(), Some(&record.checks[0].id));
    assert!(
        out.join("checks")
            .join(&record.checks[0].id)
            .join(records::FILE)
            .is_file()
    );

    let before = worker.asked.len();
    let moved = folder.path().join("moved");
    std::fs::rename(&out, &moved).unwrap();
    run(&grid(), &moved, &mut worker).unwrap();
    assert_eq!(worker.asked.len(), before, "{:?}", worker.asked);
}

#[test]
fn an_interrupted_grid_goes_on_with_the_cell_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Pretender::new();
    worker.fails_after = 1;
    let error = run(&grid(), folder.path(), &mut worker).unwrap_err().to_string();
    assert!(
        error.contains("13b-fp16") && error.contains("`aqlm eval ") && error.ends_with("exit code 2"),
        "{error}"
    );
    assert!(!folder.path().join("13b-fp16").join(CELL_FILE).exists());
    worker.fails_after = usize::MAX;
    worker.asked.clear();
    run(&grid(), folder.path(), &mut worker).unwrap();
    // The check of this machine and build is kept.
    assert_eq!((worker.count("check"), worker.count("eval")), (0, 1));
}

#[test]
fn another_build_is_checked_again_and_a_failed_check_stops_everything() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Pretender::new();
    worker.fails_after = 1;
    run(&grid(), folder.path(), &mut worker).unwrap_err();
    worker.build = "b";
    worker.holds = false;
    worker.asked.clear();
    let GridOutcome::CheckFailed(check) = run(&grid(), folder.path(), &mut worker).unwrap() else {
        panic!("the check held")
    };
    assert_eq!((check.pass, check.fail), (0, 1));
    assert_eq!((worker.count("check"), worker.count("eval")), (1, 0));
    let kept = folder.path().join(CHECKS).join(&check.id);
    assert!(kept.join(records::FILE).is_file() && !kept.join(CHECK_FILE).exists());
    // A failed check is not kept as one that held.
    run(&grid(), folder.path(), &mut worker).unwrap();
    assert_eq!(worker.count("check"), 2);
}

#[test]
fn a_finished_cell_of_other_commands_is_refused_with_the_difference() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Pretender::new();
    run(&grid(), folder.path(), &mut worker).unwrap();
    let mut other = grid();
    other.evaluations.get_mut("stories").unwrap().ctx = 32;
    let error = run(&other, folder.path(), &mut worker).unwrap_err().to_string();
    assert!(
        error.contains("7b-fp16") && error.contains("--ctx 64") && error.contains("--ctx 32"),
        "{error}"
    );
}

#[test]
fn a_damaged_cell_is_named() {
    let folder = tempfile::tempdir().unwrap();
    run(&grid(), folder.path(), &mut Pretender::new()).unwrap();
    let path = folder.path().join("7b-fp16").join(CELL_FILE);
    std::fs::write(&path, "{\"table\": 1}").unwrap();
    for error in [
        run(&grid(), folder.path(), &mut Pretender::new()).unwrap_err(),
        read_finished(folder.path()).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(
            error.contains("7b-fp16") && error.contains("field `table`"),
            "{error}"
        );
    }
}

#[test]
fn an_interrupted_quantization_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let mut grid = grid();
    grid.scheme = Some("2x6g8".parse().unwrap());
    grid.cells.truncate(1);
    grid.cells[0].row = "7b-aqlm-2.02".into();
    let cell = folder.path().join("7b-aqlm-2.02");
    std::fs::create_dir_all(&cell).unwrap();
    std::fs::write(cell.join("run.json"), "{}").unwrap();
    let mut worker = Pretender::new();
    run(&grid, folder.path(), &mut worker).unwrap();
    let quantize = worker
        .asked
        .iter()
        .find(|line| line.starts_with("quantize"))
        .unwrap();
    assert!(quantize.ends_with("--json --resume"), "{quantize}");
    let eval = worker.asked.iter().find(|line| line.starts_with("eval")).unwrap();
    assert!(eval.ends_with("--json"), "{eval}");
    let kept: CellRecord = parsed(&cell.join(CELL_FILE)).unwrap();
    assert!(kept.commands[0].iter().all(|argument| argument != "--resume"));
}
