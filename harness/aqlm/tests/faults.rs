//! A run that is killed, whose disk is full or broken, or whose folder another process uses.
//!
//! `AQLM_KILLS=50 cargo test --release --test faults -- --nocapture killed` is the long experiment of
//! docs/checking.md.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use aqlm_vocabulary::{Purpose, stream};
use rand::RngExt;
use support::{MODEL, QUICK, first_documents, message, model_bytes};

/// Number of kills in an ordinary test run.
const KILLS: usize = 4;

/// Maximum wait for another process.
const PATIENCE: Duration = Duration::from_mins(5);

struct Run {
    folder: tempfile::TempDir,
    calibration: PathBuf,
}

impl Run {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let calibration = first_documents(folder.path(), "calibration.jsonl", 20);
        Self { folder, calibration }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arguments(&self, out: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = ["quantize", MODEL, "--backend", "cpu"]
            .into_iter()
            .chain(QUICK)
            .chain(["--finetune-epochs", "1", "--resume"])
            .map(str::to_owned)
            .collect();
        for (flag, path) in [("--calib", self.calibration.as_path()), ("--out", out)] {
            arguments.push(flag.to_owned());
            arguments.push(path.display().to_string());
        }
        arguments
    }

    fn start(&self, out: &Path) -> Child {
        Command::new(env!("CARGO_BIN_EXE_aqlm"))
            .args(self.arguments(out))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts")
    }

    fn finish(&self, out: &Path) -> Output {
        self.start(out).wait_with_output().expect("the program ends")
    }

    /// Runs to the end and returns the model's bytes.
    fn model(&self, out: &Path) -> Vec<u8> {
        let output = self.finish(out);
        assert_eq!(output.status.code(), Some(0), "{}", message(&output));
        model_bytes(out)
    }
}

/// Names of unfinished files, which start with `.writing-`.
fn leftovers(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(".writing-")).collect()
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let run = Run::new();
    let started = Instant::now();
    let expected = run.model(&run.out("whole"));
    let whole = started.elapsed();
    let kills =
        std::env::var("AQLM_KILLS").map_or(KILLS, |kills| kills.parse().expect("AQLM_KILLS is a number"));
    let mut rng = stream(7, 0, None, Purpose::TestData);
    let mut unfinished = 0;
    for kill in 0..kills {
        let out = run.out(&format!("killed-{kill}"));
        let moment = whole.mul_f64(rng.random_range(0.02..0.98));
        let mut child = run.start(&out);
        std::thread::sleep(moment);
        child.kill().expect("SIGKILL");
        child.wait().expect("a dead process");
        let blocks = aqlm_engine::finished_blocks(&out).unwrap_or(0);
        let finished = out.join("model.safetensors").is_file();
        unfinished += usize::from(!finished);
        let same = run.model(&out) == expected;
        println!(
            "kill {kill}: after {} ms of about {}, {blocks} of 4 blocks done, model {}; resumed: {}",
            moment.as_millis(),
            whole.as_millis(),
            if finished { "there" } else { "not there" },
            if same { "same bytes" } else { "OTHER BYTES" }
        );
        assert!(same, "kill {kill} after {moment:?}");
        std::fs::remove_dir_all(&out).unwrap();
    }
    // If every kill came too late, the test would prove nothing.
    assert!(unfinished > 0, "no run was killed before its end");
}

#[test]
fn damaged_blocks_are_named_and_done_again() {
    let run = Run::new();
    let out = run.out("damaged");
    let expected = run.model(&out);
    let block = out.join("blocks/block_0001.safetensors");
    let whole = std::fs::read(&block).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 4;
    for (what, bytes) in [
        ("bit-flipped", flipped),
        ("truncated", whole[..whole.len() / 3].to_vec()),
        ("empty", Vec::new()),
    ] {
        std::fs::write(&block, bytes).unwrap();
        let output = run.finish(&out);
        assert_eq!(output.status.code(), Some(0), "{what}: {}", message(&output));
        assert!(
            message(&output).contains("block_0001.safetensors"),
            "{what}: {}",
            message(&output)
        );
        assert_eq!(
            std::fs::read(out.join("model.safetensors")).unwrap(),
            expected,
            "{what}"
        );
        assert_eq!(std::fs::read(&block).unwrap(), whole, "{what}");
    }
    std::fs::remove_file(&block).unwrap();
    assert_eq!(run.model(&out), expected, "a block that is gone");
}

#[test]
fn a_second_run_into_the_same_folder_is_refused() {
    let run = Run::new();
    let out = run.out("shared");
    let mut first = run.start(&out);
    let waiting = Instant::now();
    while !out.join("run.json").is_file() {
        assert!(waiting.elapsed() < PATIENCE, "the first run never started");
        std::thread::sleep(Duration::from_millis(5));
    }
    let second = run.finish(&out);
    let still_running = first.try_wait().unwrap().is_none();
    assert!(still_running, "the first run ended before the second was refused");
    assert_eq!(second.status.code(), Some(2), "{}", message(&second));
    assert!(
        message(&second).contains("another process"),
        "{}",
        message(&second)
    );
    // The first run is unaffected.
    assert!(first.wait().unwrap().success());
    assert!(out.join("model.safetensors").is_file());
}

/// A limit on file size simulates a full disk: writing stops in the middle of a block.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_a_run_that_can_be_resumed() {
    let run = Run::new();
    let expected = run.model(&run.out("whole"));
    let out = run.out("full");
    // Without its signal, exceeding the limit is a write error, as on a full disk. Blocks are larger than 100
    // kB.
    let output = Command::new("bash")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_aqlm"),
        ])
        .args(run.arguments(&out))
        .output()
        .expect("a shell");
    assert_eq!(output.status.code(), Some(2), "{}", message(&output));
    let text = message(&output);
    assert!(
        text.contains("block_0000.safetensors") && text.contains("cannot write"),
        "{text}"
    );
    assert!(!out.join("model.safetensors").exists());
    assert!(
        !out.join("blocks/block_0000.safetensors").exists(),
        "a part of a block was left"
    );
    assert_eq!(leftovers(&out.join("blocks")), Vec::<String>::new());
    assert_eq!(run.model(&out), expected);
}

/// A folder in which nobody can write, root included.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_place_is_refused_by_name() {
    let run = Run::new();
    let out = Path::new("/proc/aqlm-run");
    let output = run.finish(out);
    assert_eq!(output.status.code(), Some(2), "{}", message(&output));
    assert!(
        message(&output).contains("/proc/aqlm-run"),
        "{}",
        message(&output)
    );
}
