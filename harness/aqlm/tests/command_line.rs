//! The program started with what people type: odd paths, closed pipes, numbers at the ends of their ranges.
//! It may refuse, but it never panics.

#![cfg(unix)]

mod support;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::{MODEL, QUICK, aqlm, message, short_text};

/// Exit code and messages; never a panic.
fn sane(arguments: &[&str], output: &Output) -> (i32, String) {
    let text = message(output);
    assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    let code = output
        .status
        .code()
        .unwrap_or_else(|| panic!("{arguments:?}: killed: {text}"));
    assert!((0..=2).contains(&code), "{arguments:?}: rc {code}: {text}");
    (code, text)
}

struct Inputs {
    folder: tempfile::TempDir,
    text: PathBuf,
}

impl Inputs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = short_text(folder.path(), 4);
        Self { folder, text }
    }

    fn text(&self) -> &str {
        self.text.to_str().unwrap()
    }

    /// A quick quantization into `out`.
    fn quantization<'a>(&'a self, out: &'a str) -> Vec<&'a str> {
        let mut arguments = vec!["quantize", MODEL, "--calib", self.text(), "--out", out];
        arguments.extend(QUICK);
        arguments
    }
}

/// Command, what else the flag needs, flag, values that are refused, a word of that refusal.
type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a str, &'a [&'a str], &'a str);

#[test]
fn numbers_at_the_ends_of_their_ranges_are_refused_or_taken() {
    let inputs = Inputs::new();
    let text = inputs.text();
    // A file where the folder should be: settings that are taken end with this refusal, before any work.
    let taken = text;
    let quantize = inputs.quantization(taken);
    let generate = ["generate", MODEL, "--prompt", "Once", "--tokens", "1"];
    let eval = ["eval", MODEL, "--data", text, "--ctx", "8", "--windows", "1"];
    let bench = ["bench", "--backend", "cpu", "--shape", "8x8", "--replays", "0"];
    let check = [
        "check",
        "--backend",
        "cpu",
        "--op",
        "decode",
        "--case",
        "decode-1x2g4-4x8-s1",
    ];
    let none: &[&str] = &[];
    let end_to_end: &[&str] = &["--finetune", "end-to-end"];
    let huge = "18446744073709551615";
    let rows: [Row<'_>; 32] = [
        (&generate, none, "--tokens", &[huge, "-1", "513"], "--tokens"),
        (
            &generate,
            none,
            "--temperature",
            &["-1", "nan", "inf"],
            "--temperature",
        ),
        (&generate, none, "--top-p", &["-1", "0", "nan", "1.5"], "--top-p"),
        (&generate, none, "--seed", &["-1"], "--seed"),
        (&eval, none, "--ctx", &["0", "1", huge], "expected"),
        (&eval, none, "--windows", &["0"], "--windows"),
        (
            &quantize,
            none,
            "--beam",
            &["0", "1025", "1000000", huge],
            "--beam",
        ),
        (
            &quantize,
            none,
            "--damping",
            &["-1", "1.5", "1e9", "nan", "inf"],
            "--damping",
        ),
        (
            &quantize,
            none,
            "--tolerance",
            &["-1", "nan", "inf"],
            "--tolerance",
        ),
        (&quantize, none, "--max-rounds", &["0"], "--max-rounds"),
        (&quantize, none, "--seqlen", &["0", "1", huge], "expected"),
        (&quantize, none, "--sequences", &["0", huge], "expected"),
        (&quantize, none, "--validation", &["6", huge], "--validation"),
        (
            &quantize,
            none,
            "--finetune-lr",
            &["-1", "nan", "inf"],
            "--finetune-lr",
        ),
        (&quantize, none, "--finetune-batch", &["0"], "--finetune-batch"),
        (&quantize, none, "--finetune-epochs", &["-1"], "--finetune-epochs"),
        (
            &quantize,
            none,
            "--finetune-patience",
            &["-1"],
            "--finetune-patience",
        ),
        (&quantize, none, "--memory", &["0", "-1", "99999999T"], "memory"),
        (
            &quantize,
            end_to_end,
            "--end-to-end-lr",
            &["-1", "nan"],
            "--end-to-end-lr",
        ),
        (
            &quantize,
            end_to_end,
            "--end-to-end-epochs",
            &["0"],
            "--end-to-end-epochs",
        ),
        (
            &quantize,
            end_to_end,
            "--end-to-end-batch",
            &["0"],
            "--end-to-end-batch",
        ),
        (
            &quantize,
            end_to_end,
            "--end-to-end-sequences",
            &["0"],
            "--end-to-end-sequences",
        ),
        (
            &bench,
            none,
            "--shape",
            &["0x8", "8x99999999999999999999", "8"],
            "--shape",
        ),
        (
            &bench,
            none,
            "--scheme",
            &["0x8g8", "1x17g8", "1x8g0", "99999999999999999999x8g8"],
            "scheme",
        ),
        (&bench, none, "--shape", &["1048576x1048576"], "--shape"),
        (&bench, none, "--batch", &["0", huge], "--batch"),
        (&bench, &["--op", "matmul"], "--batch", &["0", huge], "--batch"),
        (&bench, none, "--rest", &["10001"], "--rest"),
        (&bench, none, "--replays", &["-1", huge], "--replays"),
        (&bench, none, "--configs", &["-1"], "--configs"),
        (&check, none, "--seed", &["-1"], "--seed"),
        (&check, none, "--cases", &["-1", huge], "--cases"),
    ];
    for (command, needs, flag, refused, word) in rows {
        let with = |value: &str| {
            // what the command has of this flag is replaced
            let mut arguments: Vec<&str> = command.to_vec();
            if let Some(at) = arguments.iter().position(|argument| *argument == flag) {
                arguments.drain(at..at + 2);
            }
            arguments.extend(needs);
            let value = format!("{flag}={value}");
            arguments.push(&value);
            sane(&arguments, &aqlm(&arguments))
        };
        for value in refused {
            let (code, text) = with(value);
            assert_eq!(code, 2, "{command:?} {flag} {value}: {text}");
            assert!(
                text.contains(word),
                "{flag} {value}: expected {word:?} in {text:?}"
            );
            assert_eq!(text.matches("error").count(), 1, "{text}");
        }
        for value in ["0", huge] {
            if refused.contains(&value) {
                continue;
            }
            with(value);
        }
    }
}

#[test]
fn huge_settings_that_are_taken_run_to_the_end() {
    let inputs = Inputs::new();
    let huge = "18446744073709551615";
    let out = inputs.folder.path().join("out");
    let mut arguments = inputs.quantization(out.to_str().unwrap());
    arguments.retain(|argument| !["--max-rounds", "1", "--beam"].contains(argument));
    arguments.extend(["--beam", "1", "--max-rounds", huge, "--tolerance", "1e300"]);
    // the first epoch diverges or does not help, which ends it
    arguments.extend([
        "--finetune-epochs",
        huge,
        "--finetune-patience",
        "1",
        "--finetune-batch",
        huge,
    ]);
    arguments.extend(["--finetune-lr", "10", "--memory", "1T"]);
    let (code, text) = sane(&arguments, &aqlm(&arguments));
    assert_eq!(code, 0, "{text}");
}

#[test]
fn endless_end_to_end_tuning_stops_by_patience() {
    let inputs = Inputs::new();
    let huge = "18446744073709551615";
    let out = inputs.folder.path().join("out");
    let mut arguments = inputs.quantization(out.to_str().unwrap());
    arguments.extend([
        "--finetune",
        "end-to-end",
        "--finetune-epochs",
        "0",
        "--end-to-end-epochs",
        huge,
    ]);
    // no step changes anything, so no epoch is better than the one before
    arguments.extend([
        "--end-to-end-lr",
        "0",
        "--end-to-end-batch",
        huge,
        "--end-to-end-sequences",
        "4",
    ]);
    let (code, text) = sane(&arguments, &aqlm(&arguments));
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_context_beyond_the_models_positions_gives_a_warning() {
    let inputs = Inputs::new();
    let eval = |ctx: &str| {
        let output = aqlm(&[
            "eval",
            MODEL,
            "--data",
            inputs.text(),
            "--ctx",
            ctx,
            "--windows",
            "1",
        ]);
        sane(&["eval"], &output)
    };
    let (code, text) = eval("513");
    assert_eq!(code, 0, "{text}");
    for word in ["warning", "--ctx", "max_position_embeddings = 512", "513"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!eval("512").1.contains("warning"));
}

#[test]
fn prompts_may_begin_with_a_dash() {
    for prompt in ["-", "--", "-5 degrees", "--tokens"] {
        let output = aqlm(&["generate", MODEL, "--prompt", prompt, "--tokens", "1"]);
        assert_eq!(output.status.code(), Some(0), "{prompt}: {}", message(&output));
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(shown.starts_with(prompt), "{prompt}: {shown}");
    }
}

/// A folder name that is not UTF-8.
fn odd(folder: &Path, name: &str) -> PathBuf {
    let mut odd = OsString::from(name);
    odd.push(OsStr::from_bytes(b"\xff"));
    folder.join(odd)
}

fn words<'a>(words: &[&'a str]) -> Vec<&'a OsStr> {
    words.iter().map(|word| OsStr::new(*word)).collect()
}

#[test]
fn paths_need_not_be_utf8() {
    let inputs = Inputs::new();
    let out = odd(inputs.folder.path(), "out");
    let run = |arguments: &[&OsStr]| {
        let output = Command::new(env!("CARGO_BIN_EXE_aqlm"))
            .args(arguments)
            .output()
            .unwrap();
        let text = message(&output);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    };
    let mut arguments = words(&["quantize", MODEL, "--finetune", "none", "--json", "--calib"]);
    arguments.extend([inputs.text.as_os_str(), OsStr::new("--out"), out.as_os_str()]);
    arguments.extend(words(&QUICK));
    run(&arguments);
    let text = odd(inputs.folder.path(), "text").with_extension("jsonl");
    std::fs::copy(&inputs.text, &text).unwrap();
    for command in [
        &["inspect"][..],
        &["eval", "--ctx", "8", "--windows", "1", "--data"],
    ] {
        let mut arguments = words(command);
        if command.len() > 1 {
            arguments.push(text.as_os_str());
        }
        arguments.extend([out.as_os_str(), OsStr::new("--json")]);
        run(&arguments);
    }
    // already there
    let to = OsStr::new("--to");
    run(&[
        OsStr::new("fetch"),
        OsStr::new("smollm2-135m"),
        to,
        out.as_os_str(),
        OsStr::new("--json"),
    ]);
}

/// Commands that print to standard output, each in its own way.
fn printing(text: &str) -> [Vec<&str>; 6] {
    [
        vec!["inspect", MODEL],
        vec!["inspect", MODEL, "--json"],
        vec!["generate", MODEL, "--prompt", "Once", "--tokens", "20"],
        vec![
            "eval",
            MODEL,
            "--data",
            text,
            "--ctx",
            "8",
            "--windows",
            "1",
            "--json",
        ],
        vec!["--help"],
        vec!["--version"],
    ]
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let inputs = Inputs::new();
    for arguments in printing(inputs.text()) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_aqlm"))
            .args(&arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let (code, text) = sane(&arguments, &output);
        assert_eq!(code, 0, "{arguments:?}: {text}");
        assert!(!text.contains("error"), "{arguments:?}: {text}");
    }
}

#[test]
fn a_full_standard_output_is_an_error_and_a_full_standard_error_is_not() {
    let full = Path::new("/dev/full");
    if !full.exists() {
        eprintln!("waived: {} is not here", full.display());
        return;
    }
    let open = || File::options().write(true).open(full).unwrap();
    let inputs = Inputs::new();
    for arguments in printing(inputs.text()) {
        let start = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_aqlm"));
            command.args(&arguments);
            command
        };
        let output = start().stdout(open()).stderr(Stdio::piped()).output().unwrap();
        let (code, text) = sane(&arguments, &output);
        assert_eq!(code, 2, "{arguments:?}: {text}");
        assert!(
            text.contains("error: standard output: cannot write"),
            "{arguments:?}: {text}"
        );
        let output = start().stderr(open()).stdout(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
    // a refusal that cannot be printed is still one
    let output = Command::new(env!("CARGO_BIN_EXE_aqlm"))
        .args(["inspect", "nothing-there"])
        .stderr(open())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
