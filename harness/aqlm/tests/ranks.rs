//! Several processes that do one run together: the same bytes as one, however they are started; and an end
//! within seconds when one of them is lost.

mod support;

use std::io::{BufRead as _, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::{MODEL, first_documents, message, model_bytes};

/// Maximum time for ranks to notice that another one is gone, and to end.
const SECONDS: Duration = Duration::from_secs(5);

/// Maximum wait for something that happens.
const PATIENCE: Duration = Duration::from_mins(5);

struct Run {
    folder: tempfile::TempDir,
    calibration: PathBuf,
}

impl Run {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let calibration = first_documents(folder.path(), "calibration.jsonl", 150);
        Self { folder, calibration }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A quantization without tuning: 3 parts of training sequences, and 2 more.
    fn untuned(&self, out: &Path, extra: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aqlm"));
        command
            .args([
                "quantize",
                MODEL,
                "--scheme",
                "1x4g8",
                "--max-rounds",
                "1",
                "--beam",
                "1",
            ])
            .args(["--init", "residual", "--backend", "cpu", "--seqlen", "256"])
            .args(["--sequences", "66", "--validation", "26"])
            .args(extra)
            .arg("--calib")
            .arg(&self.calibration)
            .arg("--out")
            .arg(out);
        clean(&mut command);
        command
    }

    /// A quantization in which every kind of sum has several parts, on the given backend.
    fn quantize(&self, out: &Path, backend: &str, extra: &[&str]) -> Command {
        // The reference computes each sequence as a part, the CPU some 4096 tokens.
        let sizes: &[&str] = if backend == "reference" {
            &[
                "--seqlen",
                "16",
                "--sequences",
                "14",
                "--validation",
                "3",
                "--finetune-batch",
                "10",
            ]
        } else {
            &[
                "--seqlen",
                "256",
                "--sequences",
                "36",
                "--validation",
                "4",
                "--finetune-batch",
                "32",
            ]
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_aqlm"));
        command
            .args([
                "quantize",
                MODEL,
                "--scheme",
                "1x4g8",
                "--max-rounds",
                "1",
                "--beam",
                "1",
            ])
            .args([
                "--init",
                "residual",
                "--finetune-epochs",
                "1",
                "--backend",
                backend,
            ])
            .args(sizes)
            .args(extra)
            .arg("--calib")
            .arg(&self.calibration)
            .arg("--out")
            .arg(out);
        clean(&mut command);
        command
    }
}

/// Without the variables of a launcher under which the tests may run.
fn clean(command: &mut Command) {
    for name in [
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_RUN_ID",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "SLURM_PROCID",
        "SLURM_STEP_ID",
    ] {
        command.env_remove(name);
    }
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", message(&output));
    output
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// The layers' errors in a run's record, as text with every digit.
fn layer_errors(out: &Path) -> Vec<String> {
    let record = std::fs::read_to_string(out.join("record.json")).expect("a record");
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let blocks = record["blocks"].as_array().expect("blocks");
    let of = |block: &serde_json::Value| {
        let layers = block["layers"].as_array().expect("layers");
        let mut texts: Vec<String> = layers
            .iter()
            .map(|layer| layer["relative_layer_error"].to_string())
            .collect();
        texts.push(block["finetune"]["train_losses"].to_string());
        texts.push(block["relative_output_error"].to_string());
        texts
    };
    blocks.iter().flat_map(of).collect()
}

#[test]
fn any_number_of_ranks_quantizes_and_tunes_to_the_same_bytes() {
    let run = Run::new();
    for backend in ["cpu", "reference"] {
        let whole = ["--finetune", "end-to-end", "--end-to-end-epochs", "1"];
        let sizes: &[&str] = if backend == "reference" {
            &["--end-to-end-sequences", "12", "--end-to-end-batch", "10"]
        } else {
            &["--end-to-end-sequences", "36", "--end-to-end-batch", "32"]
        };
        let extra = [&whole[..], sizes].concat();
        let alone = run.out(&format!("{backend}-1"));
        succeeds(&mut run.quantize(&alone, backend, &extra));
        // the reference takes its time
        let numbers: &[&str] = if backend == "reference" {
            &["2"]
        } else {
            &["2", "3"]
        };
        for ranks in numbers {
            let out = run.out(&format!("{backend}-{ranks}"));
            let extra = [&extra[..], &["--gpus", ranks]].concat();
            let output = succeeds(&mut run.quantize(&out, backend, &extra));
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(printed.matches("bits per parameter").count(), 1, "{printed}");
            assert!(
                model_bytes(&out) == model_bytes(&alone),
                "{ranks} ranks, {backend}"
            );
            assert_eq!(
                layer_errors(&out),
                layer_errors(&alone),
                "{ranks} ranks, {backend}"
            );
            let before = |out: &Path| model_bytes(&out.join("block-tuned"));
            assert!(before(&out) == before(&alone), "{ranks} ranks, {backend}");
        }
    }
}

#[test]
fn without_tuning_a_rank_holds_its_own_sequences_only() {
    let run = Run::new();
    for (name, extra) in [("shared", &[][..]), ("sequential", &["--true-sequential"])] {
        let quantize = |ranks: &str| {
            let out = run.out(&format!("{name}-{ranks}"));
            let extra = [extra, &["--finetune", "none", "--gpus", ranks]].concat();
            // Inside an allocation, whose variables describe no rank.
            let mut command = run.untuned(&out, &extra);
            command.env("SLURM_JOB_ID", "12").env("PMIX_NAMESPACE", "77");
            succeeds(&mut command);
            let record = std::fs::read_to_string(out.join("record.json")).unwrap();
            let record: serde_json::Value = serde_json::from_str(&record).unwrap();
            let of_blocks = record["blocks"].as_array().unwrap().iter();
            let errors: Vec<String> = of_blocks
                .map(|block| block["relative_output_error"].to_string())
                .collect();
            (model_bytes(&out), errors)
        };
        let alone = quantize("1");
        for ranks in ["2", "3", "5"] {
            assert!(quantize(ranks) == alone, "{name}, {ranks} ranks");
        }
    }
}

/// Finished blocks in a run folder.
fn finished(out: &Path) -> usize {
    std::fs::read_to_string(out.join("journal.jsonl")).map_or(0, |text| text.lines().count())
}

/// Waits until `done`, or the process has ended.
fn wait_until(child: &mut Child, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE);
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The processes that a process has started.
fn children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

fn kill(process: u32) {
    let status = Command::new("kill")
        .args(["-KILL", &process.to_string()])
        .status();
    assert!(status.expect("kill starts").success());
}

fn ends_within_seconds(child: &mut Child) -> (Option<i32>, String) {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            return (status.code(), text);
        }
        assert!(started.elapsed() < SECONDS, "it did not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_rank_ends_the_others_and_any_number_resumes_to_the_same_bytes() {
    let run = Run::new();
    let alone = run.out("whole");
    succeeds(&mut run.quantize(&alone, "cpu", &[]));
    for (before, after) in [("3", "1"), ("2", "3"), ("1", "2")] {
        let out = run.out(&format!("{before}-{after}"));
        let mut first = start(&mut run.quantize(&out, "cpu", &["--gpus", before]));
        wait_until(&mut first, || finished(&out) >= 1);
        let ranks = children(first.id());
        assert_eq!(
            ranks.len() + 1,
            before.parse::<usize>().unwrap(),
            "too quick to be killed"
        );
        if let Some(&victim) = ranks.last() {
            kill(victim);
            let (code, text) = ends_within_seconds(&mut first);
            assert_eq!(code, Some(2), "{text}");
            assert_eq!(text.matches("error: ").count(), 1, "{text}");
            let name = format!("rank {} of {before} (", ranks.len());
            assert!(
                text.contains(&name) && text.contains(&format!("process {victim})")),
                "{text}"
            );
            let gone = |id: &u32| !Path::new(&format!("/proc/{id}/exe")).exists();
            let started = Instant::now();
            while !ranks.iter().all(gone) {
                assert!(started.elapsed() < SECONDS, "ranks are left over");
                std::thread::sleep(Duration::from_millis(10));
            }
        } else {
            kill(first.id());
            first.wait().unwrap();
        }
        assert!(finished(&out) < 4, "nothing is left to do");
        let output = succeeds(&mut run.quantize(&out, "cpu", &["--gpus", after, "--resume"]));
        assert!(message(&output).contains("taken over"), "{}", message(&output));
        assert!(
            model_bytes(&out) == model_bytes(&alone),
            "{before} ranks, then {after}"
        );
    }
}

#[test]
fn ranks_end_when_the_process_that_started_them_is_killed() {
    let run = Run::new();
    let out = run.out("out");
    let mut first = start(&mut run.quantize(&out, "cpu", &["--gpus", "2"]));
    wait_until(&mut first, || finished(&out) >= 1);
    let ranks = children(first.id());
    assert_eq!(ranks.len(), 1);
    kill(first.id());
    first.wait().unwrap();
    let started = Instant::now();
    while Path::new(&format!("/proc/{}/exe", ranks[0])).exists() {
        assert!(started.elapsed() < SECONDS, "rank 1 is left over");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut text = String::new();
    first.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("rank 0 of 2 ("), "{text}");
}

/// A rank whose companion does not come says so long before it gives up.
#[test]
fn who_is_waited_for_is_said_within_seconds() {
    let run = Run::new();
    let out = run.out("out");
    let port = port().1.to_string();
    for (rank, words) in [
        ("0", "waiting up to 300 s for rank 1 of 2"),
        ("1", "rank 1 of 2 is waiting up to 300 s for rank 0 at localhost"),
    ] {
        let mut command = run.quantize(&out, "cpu", &[]);
        command
            .env("RANK", rank)
            .env("WORLD_SIZE", "2")
            .env("LOCAL_RANK", rank)
            .env("LOCAL_WORLD_SIZE", "2")
            .env("MASTER_ADDR", "localhost")
            .env("MASTER_PORT", &port);
        let mut child = start(&mut command);
        let started = Instant::now();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(words)));
        kill(child.id());
        child.wait().unwrap();
        assert!(said.is_some(), "rank {rank} said nothing of {words:?}");
        // five seconds of silence, and a machine that does other things
        assert!(
            started.elapsed() < 6 * SECONDS,
            "rank {rank} took {:?}",
            started.elapsed()
        );
    }
}

/// A free port whose successors are probably free.
fn port() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Both ranks' outputs.
fn both(mut of: impl FnMut(usize) -> Command) -> [Output; 2] {
    let [first, second] = [0, 1].map(|rank| {
        let mut command = of(rank);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    });
    [first, second].map(|child| child.wait_with_output().expect("the program ends"))
}

/// A launcher's name, and what it sets for a rank.
type Launcher<'a> = (&'a str, &'a dyn Fn(&mut Command, usize));

#[test]
fn launchers_start_ranks_to_the_same_bytes() {
    let run = Run::new();
    let alone = run.out("alone");
    succeeds(&mut run.quantize(&alone, "cpu", &[]));
    // torchrun listens at its own port and does not answer
    let (_torchrun, taken) = port();
    let torchrun = move |command: &mut Command, rank: usize| {
        command
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", "2")
            .env("LOCAL_RANK", rank.to_string())
            .env("LOCAL_WORLD_SIZE", "2")
            .env("MASTER_ADDR", "localhost")
            .env("MASTER_PORT", taken.to_string())
            .env("TORCHELASTIC_RUN_ID", "none")
            .env("OMP_NUM_THREADS", "1");
    };
    let slurm_port = port().1.to_string();
    let slurm = move |command: &mut Command, rank: usize| {
        command
            .env("SLURM_PROCID", rank.to_string())
            .env("SLURM_STEP_NUM_TASKS", "2")
            .env("SLURM_LOCALID", rank.to_string())
            .env("SLURM_STEP_NODELIST", "localhost")
            .env("SLURM_JOB_ID", "7")
            .env("SLURM_STEP_ID", "0")
            .env("MASTER_PORT", &slurm_port);
    };
    let mpi_port = port().1.to_string();
    let mpi = move |command: &mut Command, rank: usize| {
        command
            .env("OMPI_COMM_WORLD_RANK", rank.to_string())
            .env("OMPI_COMM_WORLD_SIZE", "2")
            .env("OMPI_COMM_WORLD_LOCAL_RANK", rank.to_string())
            .env("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
            .env("MASTER_PORT", &mpi_port);
    };
    let launchers: [Launcher<'_>; 3] = [("torchrun", &torchrun), ("slurm", &slurm), ("mpi", &mpi)];
    for (name, launcher) in launchers {
        let out = run.out(name);
        let outputs = both(|rank| {
            let mut command = run.quantize(&out, "cpu", &["--json"]);
            launcher(&mut command, rank);
            command
        });
        for output in &outputs {
            assert_eq!(output.status.code(), Some(0), "{name}: {}", message(output));
        }
        let [first, second] = outputs;
        assert!(!first.stdout.is_empty() && second.stdout.is_empty(), "{name}");
        assert!(second.stderr.is_empty(), "{name}: {}", message(&second));
        assert!(model_bytes(&out) == model_bytes(&alone), "{name}");
    }
}

#[test]
fn what_cannot_be_right_is_refused() {
    let run = Run::new();
    let out = run.out("out");
    let refused = |command: &mut Command, words: &[&str]| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = message(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        for word in words {
            assert!(text.contains(word), "expected {word:?} in {text:?}");
        }
        assert!(!out.exists(), "something was written");
    };
    refused(
        &mut run.quantize(&out, "cpu", &["--gpus", "0"]),
        &["--gpus", "1 to 4096"],
    );
    refused(
        run.quantize(&out, "cpu", &[]).env("RANK", "0"),
        &["WORLD_SIZE", "found nothing"],
    );
    refused(
        run.quantize(&out, "cpu", &[])
            .env("RANK", "x")
            .env("WORLD_SIZE", "2"),
        &["RANK", "found x"],
    );
    if !Path::new("/dev/nvidia0").exists() {
        let command = &mut run.quantize(&out, "cuda", &["--gpus", "2"]);
        refused(command, &["--gpus", "number of GPUs, 0", "found 2"]);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_aqlm"));
    clean(&mut command);
    command.args([
        "quantize",
        MODEL,
        "--scheme",
        "1x4g8",
        "--calib",
        "-",
        "--text-format",
        "txt",
    ]);
    command.args(["--gpus", "2", "--out"]).arg(&out);
    refused(&mut command, &["--calib", "standard input"]);
}

#[test]
fn ranks_of_one_terminal_say_once_why_they_end() {
    let run = Run::new();
    let out = run.out("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("something"), "else").unwrap();
    let output = run
        .quantize(&out, "cpu", &["--gpus", "3"])
        .output()
        .expect("the program starts");
    let text = message(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    assert!(
        text.contains("it exists, is not empty and is not a run"),
        "{text}"
    );
}

#[test]
fn a_rank_with_another_text_is_named() {
    let run = Run::new();
    let (held, port) = port();
    drop(held);
    let folders = [0, 1].map(|rank| {
        let folder = run.out(&format!("host-{rank}"));
        std::fs::create_dir(&folder).unwrap();
        let text = std::fs::read_to_string(&run.calibration).unwrap();
        let text = if rank == 0 { text } else { text.replace("the", "a") };
        std::fs::write(folder.join("text.jsonl"), text).unwrap();
        folder
    });
    let outputs = both(|rank| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aqlm"));
        clean(&mut command);
        command
            .args([
                "quantize",
                MODEL,
                "--scheme",
                "1x4g8",
                "--seqlen",
                "16",
                "--sequences",
                "4",
            ])
            .args(["--calib", "text.jsonl", "--out", "out"])
            .current_dir(&folders[rank])
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", "2")
            .env("LOCAL_RANK", rank.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string());
        command
    });
    for output in &outputs {
        assert_eq!(output.status.code(), Some(2), "{}", message(output));
        let text = message(output);
        assert!(
            text.contains("rank 1 of 2") && text.contains("calibration_sha256"),
            "{text}"
        );
    }
}
