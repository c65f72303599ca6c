use std::path::{Path, PathBuf};

use aqlm_vocabulary::LayerReport;
use serde_json::json;

use super::super::finished::{CELL_FILE, CellRecord, read_finished};
use super::super::paper::table;
use super::*;
use crate::protocol::Protocol;
use crate::runs::RunDescription;
use crate::runs::records::{
    self, BenchCase, BenchReport, BlockReport, DecodeReport, EvalRecord, KernelRow, LayerSummary,
    QuantizeRecord, QuantizeReport, Record, Times,
};
use crate::{EndToEndReport, Preset, QuantizeSettings};

/// Writes a run folder as `aqlm quantize` and `aqlm eval` leave it, for a model of Llama 2 7B's shape.
struct Maker {
    folder: tempfile::TempDir,
}

struct Made<'a> {
    scheme: &'a str,
    tuned: bool,
    end_to_end: bool,
    sequences: usize,
    model_sha256: &'a str,
    hidden: usize,
    evaluations: &'a [(&'a str, f64, usize)],
}

const SEVEN: Made<'static> = Made {
    scheme: "1x15g8",
    tuned: true,
    end_to_end: false,
    sequences: 2048,
    model_sha256: "aa",
    hidden: 4096,
    evaluations: &[("wikitext2", 6.0, 4096)],
};

fn eval(perplexity: f64, ctx: usize) -> Record {
    EvalRecord {
        perplexity,
        mean_nll: perplexity.ln(),
        tokens: 10 * (ctx - 1),
        not_finite: 0,
        windows: 10,
        ctx,
        model: "models/llama-2-7b".into(),
        data: "text".into(),
        protocol: Protocol::Gptq,
        strict: None,
        backend: BackendKind::Cpu,
    }
    .into()
}

impl Maker {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn run(&self, name: &str, made: &Made<'_>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        let mut settings = QuantizeSettings::preset(Preset::Paper, made.scheme.parse().unwrap());
        settings.sequences = made.sequences;
        if !made.tuned {
            settings.finetune.epochs = 0;
        }
        let description = RunDescription {
            version: "0".into(),
            command: vec!["aqlm".into()],
            model: "models/llama-2-7b".into(),
            model_sha256: made.model_sha256.into(),
            calibration: "text".into(),
            calibration_sha256: "cc".into(),
            backend: BackendKind::Cpu,
            device: "host".into(),
            settings,
        };
        std::fs::write(
            path.join("run.json"),
            serde_json::to_string(&description).unwrap(),
        )
        .unwrap();
        let config = json!({"hidden_size": made.hidden, "intermediate_size": 11008, "num_hidden_layers": 32,
                            "vocab_size": 32000});
        std::fs::write(path.join("config.json"), config.to_string()).unwrap();
        let layer = |error: f64| LayerSummary {
            name: "q".into(),
            relative_layer_error: error,
            limit_db: None,
            own_tokens: None,
            seconds: 1.0,
            bits_per_parameter: 2.0,
            parameters: 64,
            report: LayerReport {
                initial_error: 2.0 * error,
                relative_error: error,
                trace: vec![error; 3],
                dead_inputs: 0,
            },
        };
        let report = QuantizeReport {
            scheme: made.scheme.parse().unwrap(),
            bits_per_parameter: 2.02,
            limit_db: None,
            largest_hidden_state: 1.0,
            seconds: 1.0,
            blocks: vec![BlockReport {
                block: 0,
                layers: vec![layer(0.1), layer(0.3)],
                finetune: None,
                relative_output_error: 0.1,
                seconds: 1.0,
            }],
        };
        let whole = made.end_to_end.then(|| EndToEndReport {
            loss_before: 1.0,
            loss_after: 0.5,
            train_losses: vec![0.5],
            validation_losses: vec![0.5],
            best_epoch: 1,
            teacher_rest: None,
            steps: 1,
            groups_changed: None,
            tokens: 1,
            seconds: 1.0,
        });
        let record = QuantizeRecord::new(report, whole, [2, 1], "out".into());
        records::write(&path.join(records::FILE), &record.into()).unwrap();
        for &(column, perplexity, ctx) in made.evaluations {
            records::write(&path.join(format!("eval-{column}.json")), &eval(perplexity, ctx)).unwrap();
        }
        path
    }

    /// Marks a folder as a cell of a grid.
    fn cell(path: &Path, id: &str, row: &str) {
        let record = CellRecord {
            table: id.into(),
            row: row.into(),
            model: "llama-2-7b".into(),
            path: "models/llama-2-7b".into(),
            folder: String::new(),
            commands: Vec::new(),
            check: check(),
        };
        std::fs::write(path.join(CELL_FILE), serde_json::to_string(&record).unwrap()).unwrap();
    }
}

fn check() -> TableCheck {
    TableCheck {
        id: "cpu-0123".into(),
        backend: BackendKind::Cpu,
        machine: "a machine".into(),
        program_sha256: "ab".into(),
        version: "0".into(),
        command: vec!["check".into()],
        pass: 5,
        fail: 0,
        unsupported: 1,
        waived: 0,
        seconds: 1.0,
    }
}

fn filled(id: &str, paths: &[PathBuf]) -> Result<TableRecord> {
    let mut finished = Vec::new();
    for path in paths {
        finished.extend(read_finished(path)?);
    }
    fill(&table(id)?, &finished)
}

fn cell<'a>(record: &'a TableRecord, row: &str, column: &str) -> &'a TableCell {
    let row = record.rows.iter().find(|found| found.row == row).unwrap();
    row.cells.iter().find(|cell| cell.column == column).unwrap()
}

fn refused(id: &str, paths: &[PathBuf]) -> String {
    filled(id, paths).unwrap_err().to_string()
}

#[test]
fn without_runs_the_paper_and_the_official_code_stand_alone() {
    let record = filled("12", &[]).unwrap();
    assert_eq!((record.model.is_none(), record.checks.len()), (true, 0));
    let tuned = cell(&record, "7b-aqlm-e2e-2x8g8", "wikitext2");
    assert_eq!(tuned.paper.as_ref().unwrap().value, 6.57);
    assert_eq!(tuned.official.as_ref().unwrap().value, 6.69);
    assert!(tuned.ours.is_none() && tuned.difference.is_none());
    assert!(cell(&record, "7b-aqlm-2x8g8", "wikitext2").official.is_none());
    let record = filled("5", &[]).unwrap();
    let official =
        |row: &str, column: &str| cell(&record, row, column).official.as_ref().map(|one| one.value);
    assert_eq!(official("3090-7b-fp16", "microseconds"), Some(25.17));
    assert_eq!(official("3090-70b-2x8", "speedup"), Some(111.12 / 93.84));
    for (row, column) in [
        ("3090-7b-fp16", "speedup"),
        ("3090-13b-2x8", "speedup"),
        ("i9-7b-2x8", "speedup"),
        ("i9-7b-4x8", "microseconds"),
    ] {
        assert_eq!(official(row, column), None, "{row}");
    }
}

#[test]
fn a_run_finds_its_row_by_scheme_and_tuning() {
    let maker = Maker::new();
    let block = maker.run("block", &SEVEN);
    let whole = maker.run(
        "whole",
        &Made {
            end_to_end: true,
            scheme: "1x16g8",
            ..SEVEN
        },
    );
    let record = filled("1", &[block.clone(), whole.clone()]).unwrap();
    let own = cell(&record, "7b-aqlm-2.02", "wikitext2");
    assert!((own.difference.unwrap() + 0.59).abs() < 1e-12);
    assert_eq!(own.difference_from, Some(Beside::Paper));
    assert_eq!(own.ours.as_ref().unwrap().runs[0].check, None);
    assert!(cell(&record, "7b-aqlm-2.29", "wikitext2").ours.is_none());
    // A row of its own behind the paper's, beside the official code's released checkpoint.
    let last = record.rows.last().unwrap();
    assert_eq!(
        (last.row.as_str(), last.method.as_str()),
        ("whole", "1x16g8, blocks tuned, end to end")
    );
    let official = cell(&record, "whole", "wikitext2");
    assert_eq!(official.difference_from, Some(Beside::Official));
    assert!((official.difference.unwrap() - 0.08).abs() < 1e-12);
    let record = filled("4", &[whole]).unwrap();
    assert!(
        cell(&record, "7b-aqlm-e2e-2.29", "wikitext2")
            .difference
            .is_some()
    );
    let record = filled("figure-4", &[block]).unwrap();
    let errors = |column: &str| cell(&record, "block", column).ours.as_ref().unwrap().value;
    assert!((errors("layer_error") - 0.2).abs() < 1e-12 && (errors("first_error") - 0.4).abs() < 1e-12);
    assert_eq!(errors("rounds"), 3.0);
}

#[test]
fn rows_that_differ_by_calibration_take_runs_of_their_size() {
    let maker = Maker::new();
    let run = |name: &str, sequences: usize, perplexity: f64| {
        maker.run(
            name,
            &Made {
                scheme: "1x16g8",
                sequences,
                evaluations: &[("wikitext2", perplexity, 4096)],
                ..SEVEN
            },
        )
    };
    let runs = [run("a", 512, 6.0), run("b", 512, 7.0), run("c", 100, 9.0)];
    let record = filled("8", &runs).unwrap();
    let figure = cell(&record, "512", "wikitext2").ours.as_ref().unwrap();
    assert_eq!((figure.value, figure.runs.len()), (6.5, 2));
    assert!((figure.deviation.unwrap() - 0.5f64.sqrt()).abs() < 1e-12);
    assert_eq!(
        cell(&record, "512", "wikitext2")
            .paper
            .as_ref()
            .unwrap()
            .deviation,
        Some(0.005)
    );
    assert!(cell(&record, "c", "wikitext2").paper.is_none());
    assert!(cell(&record, "128", "wikitext2").ours.is_none());
}

/// Two cells of one row with different settings are no repetition of each other.
#[test]
fn cells_of_one_row_are_averaged_over_seeds_and_nothing_else() {
    let maker = Maker::new();
    let cell_of = |name: &str, made: &Made<'_>, more: &[&str]| {
        let path = maker.run(name, made);
        Maker::cell(&path, "1", "7b-aqlm-2.02");
        let file = path.join(CELL_FILE);
        let mut record: CellRecord = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        record.folder = name.into();
        record.commands = vec![
            [&["quantize", "--out", name, "--seed", name][..], more]
                .concat()
                .into_iter()
                .map(str::to_owned)
                .collect(),
        ];
        std::fs::write(&file, serde_json::to_string(&record).unwrap()).unwrap();
        path
    };
    let runs = [
        cell_of("a", &SEVEN, &[]),
        cell_of("b", &SEVEN, &[]),
        cell_of("c", &SEVEN, &["--beam", "8"]),
        cell_of(
            "d",
            &Made {
                scheme: "2x8g8",
                ..SEVEN
            },
            &[],
        ),
    ];
    let record = filled("1", &runs).unwrap();
    let runs_of = |row: &str| {
        let figure = cell(&record, row, "wikitext2").ours.as_ref().unwrap();
        figure.runs.len()
    };
    assert_eq!((runs_of("7b-aqlm-2.02"), runs_of("c"), runs_of("d")), (2, 1, 1));
}

#[test]
fn figures_of_another_measure_have_no_difference_and_say_why() {
    let maker = Maker::new();
    let short = maker.run(
        "short",
        &Made {
            evaluations: &[("wikitext2", 6.0, 2048)],
            ..SEVEN
        },
    );
    let record = filled("1", std::slice::from_ref(&short)).unwrap();
    let other = cell(&record, "7b-aqlm-2.02", "wikitext2");
    assert_eq!(other.difference, None);
    assert_eq!(
        other.not_compared.as_deref(),
        Some("the paper's ctx is 4096, ours 2048")
    );
    // A stand-in: another scheme in the place of the row's.
    let stand_in = maker.run(
        "stand-in",
        &Made {
            scheme: "2x8g8",
            ..SEVEN
        },
    );
    Maker::cell(&stand_in, "1", "7b-aqlm-2.02");
    let record = filled("1", &[stand_in]).unwrap();
    let other = cell(&record, "7b-aqlm-2.02", "wikitext2");
    assert_eq!(
        other.not_compared.as_deref(),
        Some("the paper's scheme is 1x15g8, ours 2x8g8")
    );
    let figure = other.ours.as_ref().unwrap();
    assert_eq!(figure.runs[0].check.as_deref(), Some("cpu-0123"));
    assert_eq!(record.checks, [check()]);
}

#[test]
fn runs_of_different_models_or_windows_are_refused_with_what_differs() {
    let maker = Maker::new();
    let first = maker.run("first", &SEVEN);
    let other = maker.run(
        "other",
        &Made {
            model_sha256: "bb",
            ..SEVEN
        },
    );
    let error = refused("1", &[first.clone(), other]);
    assert!(
        error.contains("first with model_sha256 aa") && error.contains("other with model_sha256 bb"),
        "{error}"
    );
    let dense = maker.folder.path().join("dense");
    std::fs::create_dir(&dense).unwrap();
    records::write(&dense.join("eval-wikitext2.json"), &eval(5.12, 4096)).unwrap();
    let record = filled("1", &[first.clone(), dense.clone()]).unwrap();
    assert_eq!(cell(&record, "7b-fp16", "wikitext2").difference, Some(0.0));
    let Record::Eval(mut wrong) = eval(5.0, 4096) else {
        panic!()
    };
    wrong.model = "models/other".into();
    records::write(&dense.join("eval-wikitext2.json"), &wrong.into()).unwrap();
    let error = refused("1", &[first.clone(), dense]);
    assert!(
        error.contains("models/llama-2-7b") && error.contains("models/other"),
        "{error}"
    );
    let short = maker.run(
        "short",
        &Made {
            evaluations: &[("wikitext2", 6.0, 2048)],
            ..SEVEN
        },
    );
    let error = refused("1", &[first, short]);
    assert!(
        error.contains("with ctx 4096") && error.contains("with ctx 2048"),
        "{error}"
    );
}

#[test]
fn damaged_and_unfinished_folders_are_named() {
    let maker = Maker::new();
    let run = maker.run("run", &SEVEN);
    let error_with = |name: &str, text: &str| {
        let path = run.join(name);
        let before = std::fs::read(&path).ok();
        std::fs::write(&path, text).unwrap();
        let error = refused("1", std::slice::from_ref(&run));
        match before {
            Some(before) => std::fs::write(&path, before).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        error
    };
    let error = error_with("run.json", "{\"version\": 1}");
    assert!(error.contains("run.json: field `version`"), "{error}");
    let error = error_with("record.json", &eval(2.0, 64).to_json());
    assert!(
        error.contains("record.json") && error.contains("found eval/"),
        "{error}"
    );
    let error = error_with("eval-wiki.json", &eval(2.0, 64).to_json());
    assert!(
        error.contains("wikitext2") && error.ends_with("found `wiki`"),
        "{error}"
    );
    let error = error_with("eval-c4.json", &eval(f64::NAN, 64).to_json());
    assert!(
        error.contains("eval-c4.json: field `perplexity`: expected a finite"),
        "{error}"
    );
    let error = error_with("eval-c4.json", "{");
    assert!(error.contains("eval-c4.json, line 1"), "{error}");
    Maker::cell(&run, "1", "7b-aqlm-2.02");
    let error = error_with(
        "cell.json",
        &std::fs::read_to_string(run.join(CELL_FILE))
            .unwrap()
            .replace("\"llama-2-7b\"", "\"llama-2-70b\""),
    );
    assert!(error.contains("field `model`: expected llama-2-7b"), "{error}");
    for name in [records::FILE, CELL_FILE, "eval-wikitext2.json"] {
        std::fs::remove_file(run.join(name)).unwrap();
    }
    let error = refused("1", &[run]);
    assert!(error.contains("a run that is not finished"), "{error}");
    let nothing = maker.folder.path().join("nothing");
    assert!(refused("1", &[nothing]).contains("cannot read"));
}

#[test]
fn speeds_stand_beside_the_official_kernels_of_their_device() {
    let folder = tempfile::tempdir().unwrap();
    let times = |median| {
        Some(Times {
            median,
            p10: median,
            p90: median,
        })
    };
    let mut kernel = KernelRow::new("matvec/k7", None);
    kernel.outcome = Outcome::Pass;
    kernel.dispatched = true;
    kernel.us = times(10.0);
    let mut report = BenchReport {
        op: "matvec".into(),
        scheme: "2x8g8".into(),
        activations: "f16".into(),
        out_features: 11008,
        in_features: 4096,
        device: Some("NVIDIA H200, compute capability 9.0".into()),
        memory: None,
        dense: "f16".into(),
        cases: vec![BenchCase {
            batch: 1,
            dense: times(25.0),
            least_bytes: 1,
            roofline_us: None,
            kernels: vec![kernel],
        }],
        waived: None,
    };
    let path = folder.path().join("bench.json");
    records::write(&path, &report.clone().into()).unwrap();
    let record = filled("5", std::slice::from_ref(&path)).unwrap();
    let speed = cell(&record, "3090-7b-2x8", "speedup");
    assert_eq!(speed.ours.as_ref().unwrap().value, 2.5);
    assert!((speed.official.as_ref().unwrap().value - 25.17 / 23.77).abs() < 1e-12);
    assert_eq!(speed.difference_from, Some(Beside::Official));
    assert_eq!(speed.paper.as_ref().unwrap().value, 1.57);
    let dense = cell(&record, "3090-7b-fp16", "microseconds");
    assert!((dense.difference.unwrap() - (25.0 - 25.17)).abs() < 1e-12);
    // What was not checked and timed has no figure.
    report.cases[0].kernels[0].outcome = Outcome::Fail;
    records::write(&path, &report.into()).unwrap();
    assert!(refused("5", std::slice::from_ref(&path)).contains("checked and timed"));

    let decode = DecodeReport {
        model: "llama-2-13b".into(),
        scheme: "1x16g8".into(),
        context: 128,
        device: Some("NVIDIA H200".into()),
        outcome: Outcome::Pass,
        reason: None,
        nmse: None,
        memory: None,
        least_bytes: 1,
        roofline_us: None,
        us: times(5000.0),
        tokens_per_second: Some(200.0),
        stages: Vec::new(),
    };
    records::write(&path, &decode.into()).unwrap();
    let record = filled("14", &[path]).unwrap();
    let rate = cell(&record, "3090-13b-1x16", "tokens_per_second");
    assert_eq!(rate.ours.as_ref().unwrap().value, 200.0);
    assert!(rate.not_compared.as_ref().unwrap().contains("RTX 3090"));
}

#[test]
fn the_list_has_every_table_and_model() {
    let list = list().unwrap();
    assert_eq!(list.tables.len(), tables().unwrap().len());
    let seven = list.tables.iter().find(|entry| entry.id == "7").unwrap();
    assert_eq!((seven.rows, seven.runnable), (4, 4));
    assert!(list.models.contains(&"tiny-stories-4m".to_owned()));
}
