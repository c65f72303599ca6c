//! `aqlm tasks` and `aqlm selfgen` with the embedded model.

mod support;

use std::path::{Path, PathBuf};

use aqlm_engine::Record;
use aqlm_engine::runs::records::{self, TaskDocumentRecord};
use support::{MODEL, aqlm, json, message, refused};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tasks/examples")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of this test")
}

/// The lines of a file of results.
fn answers(path: &Path) -> Vec<TaskDocumentRecord> {
    let lines = std::fs::read_to_string(path).unwrap();
    let parse = |line: &str| match records::parse(path, line.as_bytes()).unwrap() {
        Record::TaskDocument(document) => document,
        other => panic!("{}", other.kind()),
    };
    lines.lines().map(parse).collect()
}

#[test]
fn every_task_is_measured_alike_on_both_backends() {
    let folder = tempfile::tempdir().unwrap();
    let tasks = "winogrande,piqa,hellaswag,arc_easy,arc_challenge,lambada_openai,mmlu";
    let measured = ["reference", "cpu"].map(|backend| {
        let results = folder.path().join(format!("{backend}.jsonl"));
        let output = aqlm(&[
            "tasks",
            MODEL,
            "--tasks",
            tasks,
            "--task-data",
            text(&examples()),
            "--backend",
            backend,
            "--bos",
            "always",
            "--results",
            text(&results),
            "--json",
        ]);
        assert!(output.status.success(), "{}", message(&output));
        let record = records::parse(Path::new("standard output"), &output.stdout).unwrap();
        let Record::Tasks(record) = record else {
            panic!("another record");
        };
        assert!(record.with_bos);
        let counts: Vec<_> = record
            .tasks
            .iter()
            .map(|task| (task.documents, task.shots))
            .collect();
        assert_eq!(counts, [(3, 0), (2, 0), (3, 0), (2, 0), (1, 0), (3, 0), (2, 5)]);
        let documents = answers(&results);
        for task in &record.tasks {
            let own: Vec<_> = documents
                .iter()
                .filter(|document| document.task == task.task)
                .collect();
            let right = own.iter().filter(|document| document.acc).count() as f64;
            assert_eq!(
                task.metrics[0].estimate.value,
                right / own.len() as f64,
                "{}",
                task.task
            );
        }
        assert_eq!(record.tasks[6].groups.len(), 1);
        documents
    });
    let [reference, cpu] = &measured;
    assert_eq!((reference.len(), cpu.len()), (16, 16));
    for (a, b) in reference.iter().zip(cpu) {
        assert_eq!((&a.task, a.index, a.gold), (&b.task, b.index, b.gold));
        for (a, b) in a.answers.iter().zip(&b.answers) {
            assert_eq!((a.tokens, a.characters), (b.tokens, b.characters));
            // f32 against f64, as in harness/engine/tests/continuations.rs
            assert!((a.log_likelihood - b.log_likelihood).abs() < 1e-3);
        }
    }
}

#[test]
fn options_change_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let data = examples();
    let piqa = data.join("piqa_validation.jsonl");
    let run = |extra: &[&str]| {
        let mut arguments = vec!["tasks", MODEL, "--results", text(&results), "--json"];
        arguments.extend(extra);
        let output = aqlm(&arguments);
        assert!(output.status.success(), "{}", message(&output));
        (json(&output), answers(&results))
    };
    let (record, never) = run(&["--tasks", "piqa", "--task-data", text(&piqa), "--bos", "never"]);
    assert_eq!(
        (&record["with_bos"], &record["record"]),
        (&false.into(), &"tasks/1".into())
    );
    let (_, always) = run(&["--tasks", "piqa", "--task-data", text(&piqa), "--bos", "always"]);
    assert_ne!(
        never[0].answers[0].log_likelihood,
        always[0].answers[0].log_likelihood
    );
    assert_eq!(never[0].answers[0].tokens, always[0].answers[0].tokens);
    let (record, one) = run(&["--tasks", "piqa", "--task-data", text(&data), "--limit", "1"]);
    assert_eq!((one.len(), &record["tasks"][0]["documents"]), (1, &1.into()));
    let (record, zero) = run(&["--tasks", "mmlu", "--task-data", text(&data), "--shots", "0"]);
    let (_, five) = run(&["--tasks", "mmlu", "--task-data", text(&data)]);
    assert_eq!(record["tasks"][0]["shots"], 0);
    assert_ne!(
        zero[0].answers[0].log_likelihood,
        five[0].answers[0].log_likelihood
    );
}

#[test]
fn long_documents_lose_their_beginning_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("piqa_validation.jsonl");
    let goal = "a little cat ".repeat(300);
    let line = format!(r#"{{"goal": "{goal}", "sol1": "It sat.", "sol2": "It ran.", "label": 0}}"#);
    std::fs::write(&path, line).unwrap();
    let output = aqlm(&[
        "tasks",
        MODEL,
        "--tasks",
        "piqa",
        "--task-data",
        text(&path),
        "--json",
    ]);
    assert!(output.status.success(), "{}", message(&output));
    assert_eq!(json(&output)["tasks"][0]["cut"], 1);
    assert!(message(&output).contains("2 texts are longer than the model's 512 positions"));
}

#[test]
fn a_task_of_the_users_own_is_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let task = folder.path().join("colours.json");
    let definition = r#"{"title": "Colours", "source": "this test", "data": "colours", "contexts": ["{q}"],
        "continuations": {"each": "a"}, "gold": {"field": "g", "counts_from": 1}, "metrics": ["acc", "acc_bytes"]}"#;
    std::fs::write(&task, definition).unwrap();
    let data = folder.path().join("colours.jsonl");
    std::fs::write(
        &data,
        r#"{"q": "The sky is", "a": ["blue", "a little cat"], "g": "1"}"#,
    )
    .unwrap();
    let output = aqlm(&[
        "tasks",
        MODEL,
        "--tasks",
        text(&task),
        "--task-data",
        text(folder.path()),
        "--json",
    ]);
    assert!(output.status.success(), "{}", message(&output));
    let metrics = &json(&output)["tasks"][0]["metrics"];
    assert_eq!(
        (&metrics[0]["metric"], &metrics[1]["metric"]),
        (&"acc".into(), &"acc_bytes".into())
    );
}

#[test]
fn bad_tasks_and_data_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let data = examples();
    let data = text(&data);
    let empty = text(folder.path());
    refused(
        &["tasks", MODEL, "--tasks", "piqua", "--task-data", data],
        &["--tasks", "piqua", "winogrande, piqa"],
    );
    refused(
        &["tasks", MODEL, "--task-data", empty],
        &["winogrande_xl_validation.jsonl", "neither"],
    );
    refused(
        &["tasks", MODEL, "--task-data", "nowhere"],
        &["nowhere", "no folder"],
    );
    refused(
        &[
            "tasks",
            MODEL,
            "--tasks",
            "piqa",
            "--shots",
            "2",
            "--task-data",
            data,
        ],
        &["--shots", "piqa"],
    );
    refused(
        &[
            "tasks",
            MODEL,
            "--tasks",
            "piqa",
            "--limit",
            "0",
            "--task-data",
            data,
        ],
        &["--limit"],
    );
    let file = examples().join("piqa_validation.jsonl");
    refused(
        &["tasks", MODEL, "--task-data", text(&file)],
        &["--task-data", "a folder for several tasks"],
    );
    refused(
        &["tasks", MODEL, "--tasks", "hellaswag", "--task-data", text(&file)],
        &[
            "piqa_validation.jsonl, line 1",
            "`activity_label`",
            "found nothing",
        ],
    );
    let long = folder.path().join("long.jsonl");
    let answer = "a little cat ".repeat(300);
    std::fs::write(
        &long,
        format!(r#"{{"goal": "x", "sol1": "y", "sol2": "{answer}", "label": 0}}"#),
    )
    .unwrap();
    let results = folder.path().join("results.jsonl");
    refused(
        &[
            "tasks",
            MODEL,
            "--tasks",
            "piqa",
            "--task-data",
            text(&long),
            "--results",
            text(&results),
        ],
        &["long.jsonl, line 1", "a continuation of 1 to 512 tokens"],
    );
    assert!(!results.exists());
}

fn written(out: &Path, extra: &[&str]) -> Vec<String> {
    let mut arguments = vec!["selfgen", MODEL, "--seqlen", "24", "--out", text(out)];
    arguments.extend(extra);
    let output = aqlm(&arguments);
    assert!(output.status.success(), "{}", message(&output));
    aqlm_formats::texts::documents(out, None).unwrap()
}

#[test]
fn a_text_depends_on_its_seed_and_number_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let few = written(&path("few.jsonl"), &["--tokens", "100"]);
    assert!((4..=50).contains(&few.len()), "{}", few.len());
    // More texts at once, packed, and on another number of threads: the first ones are the same.
    let many = written(&path("many.jsonl.gz"), &["--tokens", "1200"]);
    assert!(many.len() > few.len());
    assert_eq!(many[..few.len()], few);
    let one_thread = std::process::Command::new(env!("CARGO_BIN_EXE_aqlm"))
        .args([
            "selfgen", MODEL, "--seqlen", "24", "--tokens", "1200", "--json", "--out",
        ])
        .arg(path("one.jsonl"))
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap();
    let record = json(&one_thread);
    assert_eq!(record["texts"], many.len());
    assert!(record["tokens"].as_u64().unwrap() >= 1200);
    assert_eq!(
        aqlm_formats::texts::documents(&path("one.jsonl"), None).unwrap(),
        many
    );
    let other = written(&path("other.jsonl"), &["--tokens", "100", "--seed", "1"]);
    assert_ne!(other, few);
    let greedy = written(&path("greedy.jsonl"), &["--tokens", "100", "--temperature", "0"]);
    assert!(greedy.iter().all(|text| *text == greedy[0]));
}

#[test]
fn an_unfinished_run_is_continued_to_the_same_texts() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let whole = written(&path("whole.jsonl"), &["--tokens", "4000"]);
    // killed after its first wave
    let out = path("cut.jsonl");
    let unfinished = path("cut.jsonl.unfinished");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_aqlm"))
        .args(["selfgen", MODEL, "--seqlen", "24", "--tokens", "400000", "--out"])
        .arg(&out)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !std::fs::read_to_string(&unfinished).is_ok_and(|waves| waves.contains('\n')) {
        assert!(child.try_wait().unwrap().is_none(), "ended before its first wave");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.exists());
    let arguments = |extra: &[&'static str]| {
        let mut all = vec![
            "selfgen",
            MODEL,
            "--seqlen",
            "24",
            "--tokens",
            "4000",
            "--out",
            text(&out),
        ];
        all.extend(extra);
        all
    };
    refused(&arguments(&[]), &["cut.jsonl.unfinished", "--resume"]);
    refused(
        &arguments(&["--resume", "--seed", "1"]),
        &["cut.jsonl.unfinished", "expected", "found"],
    );
    let waves = std::fs::read_to_string(&unfinished).unwrap();
    let line = waves.lines().next().unwrap();
    std::fs::write(&unfinished, format!("{line}\n{line}\n")).unwrap();
    refused(&arguments(&["--resume"]), &["`first` of line 2", "64, found 0"]);
    std::fs::write(
        &unfinished,
        line.replacen("\"tokens\":[", "\"tokens\":[3,", 1) + "\n",
    )
    .unwrap();
    refused(&arguments(&["--resume"]), &["`sha256` of line 1"]);
    assert!(!path("cut.jsonl.unfinished.lock").exists());
    std::fs::write(&unfinished, &waves).unwrap();
    assert_eq!(written(&out, &["--tokens", "4000", "--resume"]), whole);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    // what is finished is not overwritten
    refused(&arguments(&["--resume"]), &["cut.jsonl", "not overwritten"]);
}

#[test]
fn prompts_are_continued_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.jsonl");
    let documents = ["Tom and Anna went to the park to play with the ball", "too short"];
    aqlm_formats::texts::write_documents(&prompts, &documents).unwrap();
    let out = folder.path().join("out.jsonl");
    let prompted = [
        "--prompts",
        text(&prompts),
        "--prompt-tokens",
        "8",
        "--tokens",
        "60",
        "--temperature",
        "0",
    ];
    let texts = written(&out, &prompted);
    assert!(
        texts
            .iter()
            .all(|text| *text == texts[0] && !text.contains("Tom and Anna went"))
    );
    let plain = written(
        &folder.path().join("plain.jsonl"),
        &["--tokens", "60", "--temperature", "0"],
    );
    assert_ne!(plain[0], texts[0]);
}

#[test]
fn selfgen_refuses_what_it_cannot_write() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    let out = text(&out);
    let with = |extra: &[&str], words: &[&str]| {
        let mut arguments = vec!["selfgen", MODEL];
        arguments.extend(extra);
        refused(&arguments, words);
    };
    with(&["--tokens", "0", "--out", out], &["--tokens", "1 or more"]);
    with(
        &["--tokens", "9", "--seqlen", "0", "--out", out],
        &["--seqlen", "1 or more"],
    );
    with(
        &["--tokens", "9", "--seqlen", "600", "--out", out],
        &["--seqlen", "512", "1 + 600"],
    );
    with(
        &["--tokens", "9", "--temperature", "-1", "--out", out],
        &["--temperature"],
    );
    with(&["--tokens", "9", "--out", "texts.txt"], &["texts.txt", ".jsonl"]);
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "One word").unwrap();
    with(
        &["--tokens", "9", "--prompts", text(&short), "--out", out],
        &["short.txt", "at least 24 tokens"],
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
