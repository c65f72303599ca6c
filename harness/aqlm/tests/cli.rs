//! The `aqlm` program from a user's perspective: its output, the inputs that it rejects, and its exit codes.

mod support;

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use support::{MODEL, aqlm, json, model_bytes, quantization, refused, short_text};

#[test]
fn eval_prints_the_promised_fields() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path(), 20);
    let output = aqlm(&[
        "eval",
        MODEL,
        "--data",
        text.to_str().unwrap(),
        "--ctx",
        "64",
        "--windows",
        "3",
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(0));
    let document = json(&output);
    assert_eq!(document["windows"], 3);
    assert_eq!(document["ctx"], 64);
    assert_eq!(document["tokens"], 3 * 63);
    let mean = document["mean_nll"].as_f64().unwrap();
    assert!((document["perplexity"].as_f64().unwrap() - mean.exp()).abs() < 1e-9 * mean.exp());
    // The model has learned something: a uniform guess over 2048 tokens would give 7.6 nats.
    assert!(mean > 0.5 && mean < 4.0, "{mean}");
    for field in ["model", "data"] {
        assert!(document[field].is_string());
    }
}

/// The divergence of a quantized model from the dense one: the same whether the dense model is computed or
/// read from the base file that was saved meanwhile.
fn diverges(folder: &Path, quantized: &Path, text: &Path, perplexity: &Value) {
    let bases = folder.join("bases");
    let against = |extra: &[&str]| {
        let mut arguments = vec![
            "eval",
            quantized.to_str().unwrap(),
            "--data",
            text.to_str().unwrap(),
        ];
        arguments.extend(["--ctx", "64", "--windows", "2", "--json"]);
        arguments.extend(extra);
        let output = aqlm(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", support::message(&output));
        json(&output)
    };
    let folder_of_bases = ["--against", MODEL, "--bases", bases.to_str().unwrap()];
    let computed = against(&folder_of_bases);
    let found = &computed["divergence"];
    assert_eq!(
        (&found["positions"], &found["not_finite"]),
        (&json!(126), &json!(0))
    );
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&found["kl"]["value"]) > number(&computed["noise_floor"]["kl"]["value"]));
    let [ours, theirs] = [&found["perplexity"]["value"], &perplexity["perplexity"]].map(number);
    // The losses of `perplexity` are computed in f32.
    assert!((ours / theirs - 1.0).abs() < 1e-5, "{ours} {theirs}");
    let kept = against(&folder_of_bases);
    assert!(kept["base"].is_string() && computed["base"].is_null());
    assert_eq!(kept["divergence"], *found);
    let base = kept["base"].as_str().unwrap();
    let alone = against(&["--base", base]);
    assert_eq!(alone["divergence"], *found);
    assert!(alone["noise_floor"].is_null() && alone["against"].is_null());
    refused(
        &[
            "eval",
            MODEL,
            "--data",
            text.to_str().unwrap(),
            "--ctx",
            "32",
            "--base",
            base,
        ],
        &[base, "ctx", "32", "64"],
    );
}

#[test]
fn a_quantized_model_evaluates_inspects_and_resumes_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path(), 20);
    let whole = folder.path().join("whole");
    let output = aqlm(&quantization(&text, &whole, &[]));
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let document = json(&output);
    let layers = document["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 28);
    for layer in layers {
        let error = layer["relative_layer_error"].as_f64().unwrap();
        assert!(error > 0.0 && error < 1.0, "{layer}");
    }
    assert_eq!(document["out"], whole.to_str().unwrap());

    let inspected = json(&aqlm(&["inspect", whole.to_str().unwrap(), "--json"]));
    let (inspected, reported) = (
        inspected["quantized_bits_per_parameter"].as_f64().unwrap(),
        document["bits_per_parameter"].as_f64().unwrap(),
    );
    // two sums of 28 terms in different order
    assert!((inspected - reported).abs() <= 28.0 * f64::EPSILON * reported);

    let measured = json(&aqlm(&[
        "eval",
        whole.to_str().unwrap(),
        "--data",
        text.to_str().unwrap(),
        "--ctx",
        "64",
        "--windows",
        "2",
        "--json",
    ]));
    assert!(measured["perplexity"].as_f64().unwrap().is_finite());
    diverges(folder.path(), &whole, &text, &measured);

    // Repeating the same command is rejected. With --resume, it finds everything done and changes nothing.
    let before = model_bytes(&whole);
    assert_eq!(aqlm(&quantization(&text, &whole, &[])).status.code(), Some(2));
    assert_eq!(
        aqlm(&quantization(&text, &whole, &["--resume"])).status.code(),
        Some(0)
    );
    assert_eq!(model_bytes(&whole), before);

    // Another seed makes another run.
    let other = aqlm(&quantization(&text, &whole, &["--resume", "--seed", "9"]));
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&other.stderr).contains("settings.seed"));

    // The state after a kill that follows block 1, while the journal's third line was being written.
    let cut = folder.path().join("cut");
    std::fs::create_dir_all(cut.join("blocks")).unwrap();
    std::fs::copy(whole.join("run.json"), cut.join("run.json")).unwrap();
    for block in ["block_0000.safetensors", "block_0001.safetensors"] {
        std::fs::copy(whole.join("blocks").join(block), cut.join("blocks").join(block)).unwrap();
    }
    let journal = std::fs::read_to_string(whole.join("journal.jsonl")).unwrap();
    let lines: Vec<&str> = journal.lines().collect();
    std::fs::write(
        cut.join("journal.jsonl"),
        format!("{}\n{}\n{}", lines[0], lines[1], &lines[2][..40]),
    )
    .unwrap();
    let output = aqlm(&quantization(&text, &cut, &["--resume"]));
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(model_bytes(&cut), before);

    // The checksum reveals a flipped bit in a finished block. The block is named and quantized again.
    let damaged = cut.join("blocks/block_0001.safetensors");
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let output = aqlm(&quantization(&text, &cut, &["--resume"]));
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("block_0001.safetensors"));
    assert_eq!(model_bytes(&cut), before);
}

#[test]
fn generation_is_reproducible() {
    let generate = |seed: &str| {
        let arguments = [
            "generate",
            MODEL,
            "--prompt",
            "Once upon a time",
            "--tokens",
            "12",
            "--temperature",
            "1",
            "--seed",
            seed,
            "--json",
        ];
        let output = aqlm(&arguments);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        json(&output)["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(generate("1"), generate("1"));
    assert_ne!(generate("1"), generate("2"));
}

#[test]
fn bad_input_is_refused_with_a_clear_message_and_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path(), 2);
    let text = text.to_str().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let missing = folder.path().join("no-such-model");
    let missing = missing.to_str().unwrap();

    refused(&["eval", missing, "--data", text], &[missing]);
    refused(&["eval", MODEL, "--data", missing], &[missing]);
    refused(
        &["eval", MODEL, "--data", text, "--ctx", "1"],
        &["--ctx", "2 or more"],
    );
    refused(&["eval", MODEL, "--data", text, "--windows", "0"], &["--windows"]);
    refused(
        &["eval", MODEL, "--data", text, "--ctx", "100000"],
        &[text, "100000"],
    );
    refused(&["inspect", missing], &[missing]);
    refused(
        &["generate", MODEL, "--prompt", "Hi", "--tokens", "100000"],
        &["context", "512"],
    );
    refused(
        &["generate", MODEL, "--prompt", "Hi", "--top-p", "0"],
        &["--top-p"],
    );
    refused(
        &["check", "--vectors", folder.path().to_str().unwrap()],
        &["index.json"],
    );

    let quantize = |extra: &[&str], words: &[&str]| {
        let mut arguments = vec!["quantize", MODEL, "--calib", text, "--out", out];
        arguments.extend(extra);
        refused(&arguments, words);
        assert!(!Path::new(out).exists(), "{arguments:?} left {out} behind");
    };
    quantize(&["--scheme", "2x8"], &["--scheme", "MxBgG"]);
    quantize(
        &["--scheme", "2x8g24"],
        &["self_attn.q_proj", "not divisible", "g16"],
    );
    quantize(&["--scheme", "1x16g8"], &["65536", "--allow-degenerate"]);
    quantize(
        &["--scheme", "1x4g8", "--sequences", "100000"],
        &[text, "100000 sequences"],
    );
    quantize(
        &["--scheme", "1x4g8", "--sequences", "4", "--validation", "4"],
        &["--validation"],
    );
    quantize(&["--scheme", "1x4g8", "--beam", "0"], &["--beam"]);
    quantize(&["--scheme", "1x4g8", "--damping", "NaN"], &["--damping"]);

    std::fs::create_dir(out).unwrap();
    std::fs::write(Path::new(out).join("precious.txt"), "mine").unwrap();
    let arguments = [
        "quantize",
        MODEL,
        "--scheme",
        "1x4g8",
        "--calib",
        text,
        "--out",
        out,
        "--seqlen",
        "32",
        "--sequences",
        "2",
    ];
    refused(&arguments, &[out, "not a run"]);
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 1);
}

#[test]
fn help_names_every_command() {
    let output = aqlm(&["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for command in [
        "demo", "fetch", "inspect", "quantize", "eval", "generate", "check",
    ] {
        assert!(text.contains(command), "{text}");
    }
}

/// With a GPU, both backends generate and measure alike. Without one, the command says what is missing.
#[test]
fn the_gpu_writes_and_measures_or_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let data = short_text(folder.path(), 20);
    let eval = |backend| {
        aqlm(&[
            "eval",
            MODEL,
            "--data",
            data.to_str().unwrap(),
            "--ctx",
            "64",
            "--windows",
            "3",
            "--backend",
            backend,
            "--json",
        ])
    };
    let write = |backend| {
        aqlm(&[
            "generate",
            MODEL,
            "--prompt",
            "Once upon a time",
            "--tokens",
            "30",
            "--backend",
            backend,
            "--json",
        ])
    };
    let found = eval("cuda");
    if found.status.code() == Some(2) {
        for output in [found, write("cuda")] {
            assert_eq!(output.status.code(), Some(2));
            assert!(output.stdout.is_empty());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("GPU"), "{said}");
        }
        println!("waived: no GPU");
        return;
    }
    let perplexity = |output: &Output| json(output)["perplexity"].as_f64().unwrap();
    // A loss of about 2 nats, with f16's rounding in every logit.
    let share = perplexity(&found) / perplexity(&eval("cpu"));
    assert!((share - 1.0).abs() < 1e-2, "{share}");
    let texts = ["cpu", "cuda"].map(|backend| json(&write(backend))["text"].clone());
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn a_model_of_random_weights_is_timed_or_waived() {
    let output = aqlm(&[
        "bench",
        "--random-weights",
        "llama-2-7b",
        "--replays",
        "0",
        "--json",
    ]);
    let report = json(&output);
    match report["outcome"].as_str() {
        Some("pass") => assert!(output.status.success()),
        outcome => {
            assert_eq!(outcome, Some("waived"), "{report}");
            assert_eq!(output.status.code(), Some(1));
            assert!(!report["reason"].as_str().unwrap().is_empty());
        }
    }
    for (arguments, named) in [
        (["--context", "0"], "--context"),
        (["--context", "5000"], "--context"),
        (["--scheme", "2x8g24"], "24"),
        (["--backend", "cpu"], "--backend"),
    ] {
        let mut all = vec!["bench", "--random-weights", "llama-2-7b"];
        all.extend(arguments);
        refused(&all, &[named]);
    }
}
