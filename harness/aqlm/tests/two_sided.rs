//! Layers quantized by gradients of the dense model: the sketch's folder, the objectives, what is refused.

mod support;

use std::path::Path;
use std::process::Output;

use support::{aqlm, first_documents, message, model_bytes, quantization, refused, short_text};

/// `aqlm quantize` of the embedded model, with these options beside the small settings of all tests.
fn quantized(text: &Path, out: &Path, extra: &[&str]) -> Output {
    aqlm(&quantization(text, out, extra))
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_sketch_is_computed_once_and_decides_the_codes() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path(), 20);
    let sketch = folder.path().join("sketch");
    let of_sketch = ["--sketch", sketch.to_str().unwrap(), "--sketch-draws", "1"];
    let with = |objective: &[&'static str]| [&of_sketch[..], objective].concat();

    let both = with(&["--objective", "two-sided", "--hessian", "sketched"]);
    let first = folder.path().join("both");
    let output = quantized(&text, &first, &both);
    assert_eq!(output.status.code(), Some(0), "{}", message(&output));
    assert!(message(&output).contains("multiply-adds"), "{}", message(&output));
    let stored = files(&sketch);
    assert_eq!(stored.len(), 5, "a file for each of 4 blocks, and the record");
    let run = std::fs::read_to_string(first.join("run.json")).unwrap();
    for field in [
        "\"objective\": \"two_sided\"",
        "\"hessian\": \"sketched\"",
        "\"draws\": 1",
    ] {
        assert!(run.contains(field), "{field} in {run}");
    }

    // Again from the stored sketch, on one thread: the same bytes. The sketch stays.
    let again = folder.path().join("again");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_aqlm"));
    let arguments = quantization(&text, &again, &both);
    let output = command
        .args(&arguments)
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", message(&output));
    assert!(message(&output).contains("the sketch in"), "{}", message(&output));
    assert_eq!(model_bytes(&again), model_bytes(&first));
    assert_eq!(files(&sketch), stored);

    // So does the sketch itself on one thread.
    let other = folder.path().join("other sketch");
    let given = [
        "--sketch",
        other.to_str().unwrap(),
        "--sketch-draws",
        "1",
        "--hessian",
        "sketched",
    ];
    let third = folder.path().join("third");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_aqlm"));
    let output = command
        .args(quantization(&text, &third, &given))
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", message(&output));
    assert_eq!(files(&other), stored);

    // Every objective makes a model of its own, and no run continues another's.
    let two_sided = folder.path().join("two-sided");
    let output = quantized(&text, &two_sided, &with(&["--objective", "two-sided"]));
    assert_eq!(output.status.code(), Some(0), "{}", message(&output));
    let plain = folder.path().join("plain");
    assert_eq!(quantized(&text, &plain, &[]).status.code(), Some(0));
    let models = [&first, &third, &two_sided, &plain].map(|model| model_bytes(model));
    for (i, a) in models.iter().enumerate() {
        assert!(models[i + 1..].iter().all(|b| a != b), "model {i}");
    }
    let resumed = [&both[..], &["--resume"]].concat();
    refused(&quantization(&text, &two_sided, &resumed), &["settings.hessian"]);
    refused(&quantization(&text, &plain, &resumed), &["settings."]);

    // A sketch of other draws, another seed or another text is refused by name.
    let out = folder.path().join("refused");
    let draws = ["--sketch", sketch.to_str().unwrap(), "--hessian", "sketched"];
    refused(
        &quantization(&text, &out, &draws),
        &["sketch.json", "draws", "2", "1"],
    );
    let seed = [&draws[..], &["--sketch-draws", "1", "--seed", "7"]].concat();
    let out = folder.path().join("refused for its seed");
    refused(&quantization(&text, &out, &seed), &["sketch.json", "seed"]);
    let other_text = first_documents(folder.path(), "calibration.jsonl", 20);
    let out = folder.path().join("refused for its text");
    refused(
        &quantization(&other_text, &out, &both),
        &["sketch.json", "text_sha256"],
    );
    assert!(!out.exists(), "nothing is written before a refusal");

    // A damaged block is noticed.
    let block = sketch.join("block_0002.safetensors");
    let mut bytes = std::fs::read(&block).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&block, bytes).unwrap();
    let out = folder.path().join("damaged");
    refused(
        &quantization(&text, &out, &both),
        &["block_0002.safetensors", "sha256"],
    );
}

#[test]
fn options_that_do_not_fit_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path(), 20);
    let out = folder.path().join("out");
    let sketch = folder.path().join("sketch");
    let sketch = sketch.to_str().unwrap();
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--objective", "two-sided"], &["--sketch", "folder"]),
        (&["--sketch", sketch], &["--sketch", "--objective"]),
        (&["--sketch-draws", "2"], &["--sketch-draws", "--objective"]),
        (
            &["--hessian", "sketched", "--sketch", sketch, "--sketch-draws", "0"],
            &["--sketch-draws", "1 to"],
        ),
        (
            &["--objective", "two-sided", "--sketch", sketch, "--update", "adam"],
            &["--update", "closed-form"],
        ),
        (
            &[
                "--hessian",
                "sketched",
                "--sketch",
                folder.path().to_str().unwrap(),
            ],
            &["expected a sketch"],
        ),
    ];
    for (given, named) in cases {
        refused(&quantization(&text, &out, given), named);
    }
}
