//! `aqlm report`: pages of finished and unfinished runs, refusals, the server, and a real browser where there
//! is one.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use support::{aqlm, golden, json, message, quantization, refused, short_text};

/// A finished run with its evaluations and texts, made once for all tests of this file.
fn finished() -> &'static Path {
    // The folder lives as long as the process.
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("first");
        let made = aqlm(&quantization(&golden("calibration.jsonl"), &run, &[]));
        assert!(made.status.success(), "{}", message(&made));
        let text = short_text(folder.path(), 4);
        let [run_name, text] = [&run, &text].map(|path| path.to_str().unwrap());
        let data = ["--data", text, "--ctx", "128", "--windows", "2", "--json"];
        let keep = |name: &str, arguments: &[&str]| {
            let output = aqlm(arguments);
            assert!(output.status.success(), "{}", message(&output));
            std::fs::write(run.join(name), output.stdout).unwrap();
        };
        keep("eval-stories.json", &[&["eval", run_name][..], &data].concat());
        let against = ["eval", run_name, "--against", "tiny-stories-4m"];
        keep("divergence-stories.json", &[&against[..], &data].concat());
        let write = [
            "generate", run_name, "--prompt", "<b>Once", "--tokens", "8", "--json",
        ];
        keep("generate-1.json", &write);
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tasks/examples");
        let examples = examples.to_str().unwrap();
        let tasks = [
            "tasks",
            run_name,
            "--tasks",
            "arc_easy",
            "--task-data",
            examples,
            "--bos",
            "always",
            "--json",
        ];
        keep("tasks.json", &tasks);
        (folder, run)
    });
    run
}

/// A folder like that of the finished run, stopped before its end.
fn unfinished(folder: &Path) -> PathBuf {
    let run = folder.join("stopped");
    std::fs::create_dir(&run).unwrap();
    for file in ["run.json", "journal.jsonl", "metrics.jsonl"] {
        let text = std::fs::read_to_string(finished().join(file)).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let kept = match file {
            "run.json" => lines.len(),
            "journal.jsonl" => 1,
            _ => 12,
        };
        std::fs::write(run.join(file), lines[..kept].concat()).unwrap();
    }
    run
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The page of some runs.
fn page(folder: &Path, runs: &[&Path]) -> (PathBuf, String) {
    let out = folder.join("report.html");
    let mut arguments = vec!["report"];
    arguments.extend(runs.iter().map(|run| text(run)));
    arguments.extend(["--out", text(&out), "--json"]);
    let output = aqlm(&arguments);
    assert!(output.status.success(), "{}", message(&output));
    let record = json(&output);
    let page = std::fs::read_to_string(&out).unwrap();
    assert_eq!(record["record"], "report/1");
    assert_eq!(record["bytes"], page.len());
    assert_eq!(record["runs"].as_array().unwrap().len(), runs.len());
    (out, page)
}

#[test]
fn the_page_has_every_section_and_needs_no_network() {
    let folder = tempfile::tempdir().unwrap();
    let stopped = unfinished(folder.path());
    let (_, page) = page(folder.path(), &[finished(), &stopped]);
    for id in [
        "running",
        "overview",
        "quality",
        "losses",
        "heat",
        "phases",
        "codebooks",
        "scatter",
        "configuration",
        "tasks",
        "samples",
    ] {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
    }
    // No address is left besides the name of SVG's language.
    let addresses = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!addresses.contains("http://") && !addresses.contains("https://"));
    assert!(!page.contains("@import") && !page.contains("<link rel=\"stylesheet\""));
    // What users wrote is text, never markup.
    assert!(page.contains("&lt;b&gt;Once") && !page.contains("<b>Once"));
    // its two documents, with the standard error of a mean over two
    assert!(page.contains("arc_easy, acc_norm") && page.contains("(2)</td>"));
    assert!(page.contains("time left"), "the unfinished run");
    assert!(
        page.contains("not recorded"),
        "the unfinished run has no evaluation"
    );
}

#[test]
fn a_run_without_anything_beside_its_record_is_shown_with_gaps() {
    let folder = tempfile::tempdir().unwrap();
    let bare = folder.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    for file in ["run.json", "record.json"] {
        std::fs::copy(finished().join(file), bare.join(file)).unwrap();
    }
    let (_, page) = page(folder.path(), &[&bare]);
    for gap in [
        "Codes: not recorded",
        "Texts: not recorded",
        "Figures on tasks: not recorded",
        "Time of each run by phase: not recorded",
    ] {
        assert!(page.contains(gap), "{gap}");
    }
}

#[test]
fn bad_runs_and_outputs_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report.html");
    let run = text(finished());
    let report = |runs: &[&str], out: &Path, words: &[&str]| {
        let arguments = [&["report"], runs, &["--out", text(out)]].concat();
        refused(&arguments, words);
    };
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    report(&[run, text(&empty)], &out, &["empty", "expected a finished run"]);
    report(&["no-such-run"], &out, &["no-such-run"]);
    report(&[run, run], &out, &["--runs", "twice"]);
    let other = unfinished(folder.path());
    let description = std::fs::read_to_string(other.join("run.json")).unwrap();
    let hash = description.split("\"model_sha256\": \"").nth(1).unwrap();
    let changed = description.replacen(&hash[..4], "0000", 1);
    std::fs::write(other.join("run.json"), changed).unwrap();
    report(
        &[run, text(&other)],
        &out,
        &["runs of one model", "model_sha256 0000", "stopped"],
    );
    std::fs::write(other.join("divergence-x.json"), "{").unwrap();
    report(&[text(&other)], &out, &["divergence-x.json, line 1"]);
    report(
        &[run],
        &folder.path().join("no/folder/report.html"),
        &["report.html: cannot write"],
    );
    refused(&["report", run], &["--out", "--watch"]);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// A server of `aqlm report --watch`, ended with the test.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn of(run: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_aqlm"))
            .args(["report", text(run), "--watch"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let port = line
            .trim()
            .strip_prefix("http://127.0.0.1:")
            .and_then(|rest| rest.strip_suffix('/'));
        let port = port
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("{line}"));
        Self { process, port }
    }

    /// The whole answer to a request for a path.
    fn get(&self, path: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let host = host.replace("PORT", &self.port.to_string());
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_watched_run_is_served_and_drawn_again_when_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = unfinished(folder.path());
    let server = Server::of(&run);
    let first = server.get("/", "127.0.0.1:PORT");
    assert!(
        first.starts_with("HTTP/1.1 200") && first.contains("time left"),
        "{first}"
    );
    assert!(first.contains("fetch(\"/state\""), "the page asks for news");
    let state = server.get("/state", "localhost:PORT");
    assert!(server.get("/other", "localhost:PORT").starts_with("HTTP/1.1 404"));
    assert!(
        server
            .get("/", "elsewhere.example:PORT")
            .starts_with("HTTP/1.1 403")
    );
    // The rest of the events, the last of them half-written.
    let all = std::fs::read_to_string(finished().join("metrics.jsonl")).unwrap();
    std::fs::write(run.join("metrics.jsonl"), &all[..all.len() - 20]).unwrap();
    let share = |page: &str| {
        page.split("<progress max=\"1\" value=\"")
            .nth(1)
            .map(|rest| rest[..5].to_owned())
    };
    assert_ne!(server.get("/state", "localhost:PORT"), state);
    let second = server.get("/", "127.0.0.1:PORT");
    assert!(second.starts_with("HTTP/1.1 200"), "{second}");
    assert!(share(&second).unwrap() > share(&first).unwrap());
    // A damaged run is an answer, not the end.
    std::fs::write(run.join("metrics.jsonl"), "{\n").unwrap();
    assert!(server.get("/", "127.0.0.1:PORT").starts_with("HTTP/1.1 500"));
    std::fs::write(run.join("metrics.jsonl"), &all).unwrap();
    assert!(server.get("/", "127.0.0.1:PORT").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_browser_shows_the_page_without_an_error_and_sorts_its_tables() {
    let folder = tempfile::tempdir().unwrap();
    let stopped = unfinished(folder.path());
    let (out, _) = page(folder.path(), &[finished(), &stopped]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/report_browser/check.sh");
    let checked = Command::new("bash").arg(script).arg(&out).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    if checked.status.code() == Some(77) {
        eprintln!("{}", said.trim());
        return;
    }
    assert!(checked.status.success(), "{said}{}", message(&checked));
    assert!(said.contains("no message in the console"), "{said}");
}
