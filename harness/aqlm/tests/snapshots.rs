//! User-visible output, and the results of a small quantization, kept under golden/snapshots. `cargo insta
//! test` runs these tests and `cargo insta review` shows changes. Integers, hashes and words are exact;
//! floating-point numbers have a stated number of digits.

mod support;

use std::path::PathBuf;

use aqlm_formats::Error;
use aqlm_formats::durable::sha256;
use aqlm_formats::model::Model;
use aqlm_vocabulary::{AqlmError, LinearWeight};
use serde_json::{Value, json};
use support::{MODEL, aqlm, first_documents, message, quantization};

fn document(arguments: &[&str]) -> Value {
    let output = aqlm(arguments);
    assert!(output.status.success(), "{}", message(&output));
    support::json(&output)
}

/// Rounds every floating-point number to `digits` significant digits.
fn rounded(value: Value, digits: usize) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let text = format!("{number:.*e}", digits - 1);
            json!(text.parse::<f64>().expect("a number that was printed"))
        }
        Value::Array(items) => items.into_iter().map(|item| rounded(item, digits)).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, rounded(value, digits)))
            .collect(),
        other => other,
    }
}

macro_rules! snapshot {
    ($($arguments:tt)*) => {
        insta::with_settings!({
            snapshot_path => "../../../golden/snapshots",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { $($arguments)* })
    };
}

/// One help text per command; a new command is one line here.
#[test]
fn help_texts() {
    for command in [
        "demo", "fetch", "inspect", "quantize", "finetune", "eval", "tasks", "selfgen", "generate", "check",
        "bench", "table", "report",
    ] {
        let output = aqlm(&[command, "--help"]);
        assert!(output.status.success(), "{command}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        snapshot! { insta::assert_snapshot!(format!("help_{command}"), text) }
    }
}

#[test]
fn inspect_of_the_embedded_model() {
    let document = rounded(document(&["inspect", MODEL, "--json"]), 6);
    snapshot! { insta::assert_json_snapshot!("inspect", document) }
}

/// Which cases run, and the outcome of each. Measured differences depend on the machine and are left out.
#[test]
fn check_of_the_reference() {
    let arguments = [
        "check",
        "--backend",
        "reference",
        "--op",
        "matvec",
        "--cases",
        "3",
        "--json",
    ];
    let mut document = document(&arguments);
    for line in document["summary"].as_array_mut().expect("lines") {
        line["worst"]["value"] = json!("[measured]");
        line["worst"]["what"] = json!("[nearest to its limit]");
        line["worst"]["limit"] = json!("[its limit]");
        line["nmse"] = json!("[the same among NMSEs]");
    }
    for row in document["rows"].as_array_mut().expect("rows") {
        row["comparisons"] = json!(row["comparisons"].as_array().map(Vec::len));
    }
    snapshot! { insta::assert_json_snapshot!("check", document) }
}

/// A whole quantization: the codes (by hash), the losses, and the resulting perplexity.
#[test]
fn a_small_quantization() {
    let folder = tempfile::tempdir().unwrap();
    let calibration = first_documents(folder.path(), "calibration.jsonl", 20);
    let evaluation = first_documents(folder.path(), "eval.jsonl", 20);
    let out = folder.path().join("out");
    let arguments = quantization(&calibration, &out, &["--backend", "reference"]);
    let report = document(&arguments);
    let model = Model::open(&out).unwrap();
    let mut codes = Vec::new();
    for block in 0..model.config().blocks.len() {
        for layer in &model.block(block).unwrap().layers {
            if let LinearWeight::Quantized(matrix) = &layer.weight {
                codes.extend(matrix.codes().iter().flat_map(|code| code.to_le_bytes()));
            }
        }
    }
    let perplexity = document(&[
        "eval",
        out.to_str().unwrap(),
        "--backend",
        "reference",
        "--data",
        evaluation.to_str().unwrap(),
        "--ctx",
        "64",
        "--windows",
        "4",
        "--json",
    ]);
    let losses: Vec<Value> = report["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|layer| layer["relative_layer_error"].clone())
        .collect();
    let document = json!({
        "codes_sha256": sha256(&codes),
        "codes": codes.len() / 2,
        "bits_per_parameter": report["bits_per_parameter"],
        "relative_layer_errors": losses,
        "perplexity": perplexity["perplexity"],
    });
    // Fine-tuning adds up thousands of rounded steps. Four digits are equal on every machine, fifteen are
    // not.
    snapshot! { insta::assert_json_snapshot!("quantization", rounded(document, 4)) }
}

/// The name of a variant. The match has no wildcard, so that a new variant must be added here and to the list
/// below.
fn variant(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } => "Io",
        Error::Kind { .. } => "Kind",
        Error::Json { .. } => "Json",
        Error::Field { .. } => "Field",
        Error::Unsupported { .. } => "Unsupported",
        Error::Truncated { .. } => "Truncated",
        Error::Header { .. } => "Header",
        Error::Offsets { .. } => "Offsets",
        Error::Shard { .. } => "Shard",
        Error::MissingTensor { .. } => "MissingTensor",
        Error::UnexpectedTensor { .. } => "UnexpectedTensor",
        Error::TensorShape { .. } => "TensorShape",
        Error::TensorType { .. } => "TensorType",
        Error::NotFinite { .. } => "NotFinite",
        Error::CodeOutOfRange { .. } => "CodeOutOfRange",
        Error::Block { .. } => "Block",
        Error::Vocabulary { .. } => "Vocabulary",
        Error::Tokenizer { .. } => "Tokenizer",
        Error::Line { .. } => "Line",
        Error::TooShort { .. } => "TooShort",
        Error::Exists { .. } => "Exists",
        Error::Layer { .. } => "Layer",
        Error::Fetch { .. } => "Fetch",
        Error::Digest { .. } => "Digest",
        Error::Scheme { .. } => "Scheme",
        Error::RunFolder { .. } => "RunFolder",
        Error::Rank { .. } => "Rank",
        Error::Diverged { .. } => "Diverged",
        Error::Degenerate { .. } => "Degenerate",
        Error::RunExists { .. } => "RunExists",
        Error::Argument { .. } => "Argument",
        Error::Internal(_) => "Internal",
        Error::Device { .. } => "Device",
        Error::Aqlm(_) => "Aqlm",
    }
}

#[test]
fn error_messages() {
    let path = || PathBuf::from("model/file");
    let text = str::to_owned;
    let errors = [
        Error::Io {
            path: path(),
            action: "read",
            source: std::io::Error::other("no space left"),
        },
        Error::Kind {
            path: path(),
            expected: text("a model"),
            found: text("a picture"),
        },
        Error::Json {
            path: path(),
            line: 3,
            column: 7,
            reason: text("a trailing comma"),
        },
        Error::Field {
            path: path(),
            field: text("a.b"),
            expected: text("a number"),
            found: text("nothing"),
        },
        Error::Unsupported {
            path: path(),
            field: text("a.b"),
            expected: text("silu"),
            found: text("gelu"),
        },
        Error::Truncated {
            path: path(),
            what: text("the header"),
            expected: 80,
            found: 8,
        },
        Error::Header {
            path: path(),
            expected: text("JSON"),
            found: text("noise"),
        },
        Error::Offsets {
            path: path(),
            tensor: text("w"),
            expected: text("no gap"),
            begin: 4,
            end: 8,
        },
        Error::Shard {
            index: path(),
            shard: text("a.safetensors"),
            reason: text("there is no such file"),
        },
        Error::MissingTensor {
            path: path(),
            tensor: text("w"),
        },
        Error::UnexpectedTensor {
            path: path(),
            tensor: text("w"),
            reason: text("embeddings are tied"),
        },
        Error::TensorShape {
            path: path(),
            tensor: text("w"),
            expected: vec![2, 3],
            found: vec![3, 2],
        },
        Error::TensorType {
            path: path(),
            tensor: text("w"),
            expected: text("F16"),
            found: text("I8"),
        },
        Error::NotFinite {
            path: path(),
            tensor: text("w"),
            element: 5,
            value: f64::INFINITY,
        },
        Error::CodeOutOfRange {
            path: path(),
            tensor: text("codes"),
            element: 5,
            low: -8,
            high: 8,
            found: 9,
        },
        Error::Block {
            path: path(),
            blocks: 4,
            block: 4,
        },
        Error::Vocabulary {
            path: path(),
            rows: 32,
            id: 40,
            token: text("<x>"),
        },
        Error::Tokenizer {
            path: path(),
            reason: text("no model"),
        },
        Error::Line {
            path: path(),
            line: 3,
            expected: text("a field `text`"),
            found: text("a list"),
        },
        Error::TooShort {
            path: path(),
            what: text("2 sequences of 8"),
            expected: 16,
            found: 9,
        },
        Error::Exists {
            path: path(),
            what: text("model"),
        },
        Error::Layer {
            layer: text("mlp.up_proj"),
            source: AqlmError::argument("beam", "at least 1 hypothesis", 0),
        },
        Error::Fetch {
            name: text("x/y"),
            tried: vec![text("the Hub: no answer"), text("the package: none")],
        },
        Error::Digest {
            path: path(),
            what: "sha256",
            expected: text("00"),
            found: text("ff"),
        },
        Error::Scheme {
            layer: text("mlp.up_proj"),
            reason: text("has 172 inputs, try g4"),
        },
        Error::RunFolder {
            path: path(),
            reason: text("another process is quantizing into it"),
        },
        Error::Rank {
            name: text("rank 1 of 2 (a host, process 7)"),
            reason: text("ended without a word"),
        },
        Error::Diverged {
            epoch: 2,
            step: 7,
            loss: text("NaN"),
            layer: text("block 3, mlp.up_proj"),
            kept: text("the state of epoch 1 is kept"),
        },
        Error::Degenerate {
            layer: text("mlp.up_proj"),
            out_features: 704,
            in_features: 256,
            source: AqlmError::Degenerate {
                scheme: text("1x16g8"),
                codebook_size: 65536,
                groups: 22528,
            },
        },
        Error::RunExists { path: path() },
        Error::Argument {
            what: text("beam"),
            expected: text("1 or more"),
            found: text("0"),
        },
        Error::Internal(text("a loss without a token")),
        Error::Device {
            reason: text("out of memory while uploading a matrix"),
        },
        Error::Aqlm(AqlmError::NotPositiveDefinite {
            what: text("hessian"),
            pivot: 3,
        }),
    ];
    let lines: Vec<String> = errors
        .iter()
        .map(|error| format!("{}: {error}", variant(error)))
        .collect();
    let mut variants: Vec<&str> = errors.iter().map(variant).collect();
    variants.dedup();
    assert_eq!(variants.len(), errors.len(), "one message a variant");
    snapshot! { insta::assert_snapshot!("errors", lines.join("\n")) }
}
