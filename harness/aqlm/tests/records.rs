//! Records that commands print with `--json` and write to run folders, read back with the public types.

mod support;

use std::path::Path;
use std::process::Output;

use aqlm_engine::Record;
use aqlm_engine::runs::records::{self, Outcome};
use aqlm_vocabulary::Scheme;
use support::{MODEL, QUICK, aqlm, message, short_text};

/// The record that a command printed; writing it again gives the printed text, byte for byte.
fn record_of(output: &Output) -> Record {
    let record = records::parse(Path::new("standard output"), &output.stdout)
        .unwrap_or_else(|error| panic!("{error}\n{}", message(output)));
    let printed = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    assert_eq!(format!("{}\n", record.to_json()), printed);
    record
}

fn record(arguments: &[&str]) -> Record {
    let mut arguments = arguments.to_vec();
    arguments.push("--json");
    record_of(&aqlm(&arguments))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of this test")
}

/// The record in a run folder, which must equal the printed one.
fn kept(folder: &Path, printed: &Record) -> Vec<u8> {
    let path = folder.join(records::FILE);
    assert_eq!(records::read(&path).unwrap(), *printed);
    std::fs::read(path).unwrap()
}

#[test]
fn runs_leave_the_records_that_they_print_and_resuming_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let stories = short_text(folder.path(), 20);
    let whole = folder.path().join("whole");
    let mut quantize = vec![
        "quantize",
        MODEL,
        "--calib",
        text(&stories),
        "--out",
        text(&whole),
    ];
    quantize.extend(QUICK);
    quantize.extend(["--finetune", "end-to-end", "--finetune-epochs", "1"]);
    quantize.extend(["--end-to-end-epochs", "1", "--end-to-end-sequences", "8"]);
    let printed = record(&quantize);
    let bytes = kept(&whole, &printed);
    let Record::Quantize(quantized) = printed else {
        panic!("another record")
    };
    assert_eq!((quantized.blocks.len(), quantized.layers.len()), (4, 28));
    assert!(quantized.bytes_after < quantized.bytes_before);
    let end_to_end = quantized.end_to_end.expect("the step was taken");
    assert_eq!(end_to_end.train_losses.len(), 1);
    quantize.push("--resume");
    let resumed = record(&quantize);
    assert_eq!(kept(&whole, &resumed), bytes);

    let tuned = folder.path().join("tuned");
    let mut finetune = vec![
        "finetune",
        text(&whole),
        "--teacher",
        MODEL,
        "--calib",
        text(&stories),
    ];
    finetune.extend(["--out", text(&tuned), "--eval", text(&stories)]);
    finetune.extend([
        "--seqlen",
        "32",
        "--sequences",
        "10",
        "--validation",
        "2",
        "--epochs",
        "1",
    ]);
    let printed = record(&finetune);
    let bytes = kept(&tuned, &printed);
    let Record::Finetune(finetuned) = printed else {
        panic!("another record")
    };
    assert_eq!(finetuned.tokens, 8 * 32);
    assert_eq!(finetuned.settings.seqlen, 32);
    assert_eq!(finetuned.shared_documents, 20);
    assert!(finetuned.perplexity_before.is_some() && finetuned.perplexity_after.is_some());
    finetune.push("--resume");
    let resumed = record(&finetune);
    assert_eq!(kept(&tuned, &resumed), bytes);
}

#[test]
fn models_are_measured_and_described_in_records() {
    let folder = tempfile::tempdir().unwrap();
    let stories = short_text(folder.path(), 20);
    let eval = record(&[
        "eval",
        MODEL,
        "--data",
        text(&stories),
        "--ctx",
        "64",
        "--windows",
        "2",
    ]);
    let Record::Eval(eval) = eval else {
        panic!("another record")
    };
    assert_eq!((eval.tokens, eval.windows, eval.ctx), (126, 2, 64));
    assert!((eval.perplexity.ln() - eval.mean_nll).abs() < 1e-12 * eval.mean_nll);

    let generated = record(&["generate", MODEL, "--prompt", "Once upon", "--tokens", "5"]);
    let Record::Generate(generated) = generated else {
        panic!("another record")
    };
    assert!(generated.tokens.len() <= 5 && generated.prompt_tokens > 0);

    let Record::Inspect(inspected) = record(&["inspect", MODEL]) else {
        panic!("another record")
    };
    assert_eq!((inspected.model.as_str(), inspected.layers.len()), (MODEL, 28));

    // an existing model needs no network
    let there = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden")
        .join(MODEL);
    let Record::Fetch(fetched) = record(&["fetch", "smollm2-135m", "--to", text(&there)]) else {
        panic!("another record")
    };
    assert_eq!((fetched.path, fetched.source.as_str()), (there, "already there"));
}

#[test]
fn checks_and_benches_are_records() {
    let check = record(&["check", "--op", "matvec", "--backend", "cpu", "--cases", "0"]);
    let Record::Check(check) = check else {
        panic!("another record")
    };
    assert_eq!(check.summary.len(), 1);
    assert_eq!(
        (check.summary[0].pass, check.report.pass),
        (check.report.rows.len(), check.report.rows.len())
    );

    let folder = tempfile::tempdir().unwrap();
    let bits = "2x8g8".parse::<Scheme>().unwrap().bits_per_parameter(64, 64);
    let index = serde_json::json!([
        { "name": "a", "kind": "bits", "num_codebooks": 2, "nbits": 8, "in_group_size": 8,
          "out_features": 64, "in_features": 64, "bits_per_parameter": bits },
        { "name": "b", "kind": "bits", "num_codebooks": 2, "nbits": 8, "in_group_size": 8,
          "out_features": 64, "in_features": 64, "bits_per_parameter": bits + 1.0 },
        { "name": "c", "kind": "unheard of" },
    ]);
    std::fs::write(folder.path().join("index.json"), index.to_string()).unwrap();
    let Record::Vectors(vectors) = record(&["check", "--vectors", text(folder.path())]) else {
        panic!("another record")
    };
    assert_eq!(
        (vectors.pass, vectors.fail, vectors.unsupported, vectors.waived),
        (1, 1, 1, 0)
    );

    let bench = record(&["bench", "--backend", "cpu", "--shape", "64x64", "--replays", "2"]);
    let Record::Bench(bench) = bench else {
        panic!("another record")
    };
    assert!(bench.holds() && bench.cases[0].kernels.iter().any(|row| row.us.is_some()));

    let decode = record(&["bench", "--random-weights", "llama-2-7b", "--replays", "0"]);
    let Record::Decode(decode) = decode else {
        panic!("another record")
    };
    assert!(
        matches!(decode.outcome, Outcome::Pass | Outcome::Waived),
        "{decode:?}"
    );
}

#[test]
fn tables_are_listed_planned_and_shown_and_unknown_ones_refused() {
    let Record::TableList(list) = record(&["table", "--list"]) else {
        panic!("another record")
    };
    assert!(list.tables.iter().any(|entry| entry.id == "figure-4"));
    let folder = tempfile::tempdir().unwrap();
    let (grid, out) = (folder.path().join("grid.json"), folder.path().join("out"));
    let plan = record(&[
        "table",
        "7",
        "--plan",
        "--model",
        MODEL,
        "--scheme",
        "2x6g8",
        "--save-grid",
        text(&grid),
    ]);
    let Record::TablePlan(plan) = plan else {
        panic!("another record")
    };
    assert_eq!((plan.cells.len(), plan.id.as_str()), (4, "7"));
    // The grid that was saved plans the same commands.
    let Record::TablePlan(again) = record(&["table", "7", "--plan", "--grid", text(&grid)]) else {
        panic!("another record")
    };
    assert_eq!(again, plan);
    let dense = folder.path().join("dense");
    std::fs::create_dir(&dense).unwrap();
    let stories = short_text(folder.path(), 5);
    let eval = record(&[
        "eval",
        MODEL,
        "--data",
        text(&stories),
        "--ctx",
        "32",
        "--windows",
        "2",
    ]);
    records::write(&dense.join("eval-stories.json"), &eval).unwrap();
    let Record::Table(table) = record(&["table", "1", "--runs", text(&dense)]) else {
        panic!("another record")
    };
    let ours = table.rows.iter().find(|row| row.ours.is_some()).unwrap();
    assert_eq!(ours.cells.iter().filter(|cell| cell.ours.is_some()).count(), 1);

    support::refused(&["table", "17"], &["table: expected one of 1, 2, ", "found `17`"]);
    let refused = |arguments: &[&str], words: &[&str]| support::refused(arguments, words);
    refused(
        &["table", "7", "--plan", "--model", MODEL],
        &["8192 groups", "--scheme"],
    );
    refused(&["table", "7", "--plan"], &["--model or --grid"]);
    // A grid whose path is another model than it says ends before the cross-check.
    let other = std::fs::read_to_string(&grid)
        .unwrap()
        .replace("\"model\": \"tiny-stories-4m\"", "\"model\": \"smollm2-135m\"");
    std::fs::write(&grid, other).unwrap();
    let run = ["table", "7", "--run", "--grid", text(&grid), "--out", text(&out)];
    refused(&run, &["smollm2-135m, with blocks 30", "blocks 4"]);
    assert!(!out.exists());
}
