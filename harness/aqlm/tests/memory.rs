//! `--memory`: the same bytes with any bound, and no more memory than the bound.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use aqlm_check::cases::{Case, LlamaData};
use aqlm_engine::backends::{CpuBackend, HiddenStates};
use aqlm_engine::ops::BlockOps;
use aqlm_engine::ranks::Alone;
use aqlm_engine::{hessians, tune_block};
use aqlm_optimized::cpu::llama::working_bytes;
use aqlm_vocabulary::FinetuneSettings;
use aqlm_vocabulary::llama::{DOWN, QUERY};
use peak_alloc::PeakAlloc;
use support::{MODEL, QUICK, aqlm, message, model_bytes, quantization, refused, short_text};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn quantize(text: &Path, out: &Path, extra: &[&str]) -> Output {
    aqlm(&quantization(text, out, extra))
}

/// The smallest bound that a command accepts, as named in its error for a bound of one byte.
fn least(refusal: &Output) -> String {
    let text = message(refusal);
    assert_eq!(refusal.status.code(), Some(2), "{text}");
    let behind = text.split("at least ").nth(1).unwrap_or_default();
    behind.chars().take_while(char::is_ascii_digit).collect()
}

#[test]
fn quantizing_gives_the_same_bytes_with_any_bound() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path(), 20);
    let free = folder.path().join("free");
    assert_eq!(quantize(&text, &free, &[]).status.code(), Some(0));
    let expected = model_bytes(&free);

    let refused_run = folder.path().join("refused");
    let least = least(&quantize(&text, &refused_run, &["--memory", "1"]));
    assert!(!refused_run.exists(), "a refused run left a folder");
    for bound in [least.as_str(), "1G"] {
        let out = folder.path().join(bound);
        let output = quantize(&text, &out, &["--memory", bound]);
        assert_eq!(output.status.code(), Some(0), "{bound}: {}", message(&output));
        assert!(model_bytes(&out) == expected, "other bytes with {bound}");
        let left: Vec<_> = std::fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.') && name != ".lock")
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    // A different bound does not make a different run.
    let cut = folder.path().join("cut");
    std::fs::create_dir_all(cut.join("blocks")).unwrap();
    for file in ["run.json", "blocks/block_0000.safetensors"] {
        std::fs::copy(free.join(file), cut.join(file)).unwrap();
    }
    let journal = std::fs::read_to_string(free.join("journal.jsonl")).unwrap();
    let first = journal.lines().next().unwrap();
    std::fs::write(cut.join("journal.jsonl"), format!("{first}\n")).unwrap();
    let output = quantize(&text, &cut, &["--memory", &least, "--resume"]);
    assert_eq!(output.status.code(), Some(0), "{}", message(&output));
    assert!(model_bytes(&cut) == expected, "other bytes after resuming");
}

#[test]
fn fine_tuning_gives_the_same_bytes_with_any_bound() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path(), 20);
    let model = folder.path().join("quantized");
    assert_eq!(quantize(&text, &model, &[]).status.code(), Some(0));
    let finetune = |out: &Path, extra: &[&str]| {
        let [model, text, out] = [&model, &text, out].map(|path| path.to_str().unwrap());
        let mut arguments = vec![
            "finetune",
            model,
            "--teacher",
            MODEL,
            "--calib",
            text,
            "--out",
            out,
        ];
        arguments.extend([
            "--seqlen",
            "32",
            "--sequences",
            "8",
            "--validation",
            "2",
            "--epochs",
            "1",
        ]);
        arguments.extend(extra);
        aqlm(&arguments)
    };
    let free = folder.path().join("free");
    let output = finetune(&free, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", message(&output));
    let least = least(&finetune(&folder.path().join("refused"), &["--memory", "1"]));
    let bounded = folder.path().join("bounded");
    let output = finetune(&bounded, &["--memory", &least]);
    assert_eq!(output.status.code(), Some(0), "{}", message(&output));
    assert!(model_bytes(&bounded) == model_bytes(&free), "other bytes");
}

#[test]
fn what_is_no_bound_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path(), 20);
    let (text, out) = (text.to_str().unwrap(), folder.path().join("out"));
    let out = out.to_str().unwrap();
    let quantize = [
        "quantize", MODEL, "--calib", text, "--out", out, "--scheme", "1x4g8",
    ];
    let with = |extra: &[&'static str]| [&quantize[..], extra].concat();
    for bad in ["0", "512MB", "1.5G", "lots", ""] {
        refused(&with(&["--memory", bad]), &["--memory", "512M"]);
    }
    let mut reference = with(&["--memory", "1G", "--backend", "reference"]);
    reference.extend(["--seqlen", "32", "--sequences", "6"]);
    refused(&reference, &["--memory", "--backend cpu"]);
    assert!(!Path::new(out).exists(), "a refused run left a folder");
}

/// A limit on file size simulates a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_too_full_for_hidden_states_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path(), 20);
    let out = folder.path().join("full");
    let least = least(&quantize(&text, &out, &["--memory", "1"]));
    let [text, out_text] = [&text, &out].map(|path| path.to_str().unwrap());
    // 6 sequences of 32 tokens are 192 KiB.
    let output = Command::new("bash")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_aqlm"),
        ])
        .args([
            "quantize", MODEL, "--calib", text, "--out", out_text, "--memory", &least,
        ])
        .args(QUICK)
        .output()
        .expect("a shell");
    let text = message(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains(out_text) && text.contains("cannot write hidden states"),
        "{text}"
    );
}

/// Bytes that are not activations: many times the block with its gradients and moments, and each thread's
/// buffers inside products.
fn beside(data: &LlamaData) -> usize {
    let parameters = data.config.blocks[0].parameters();
    16 * parameters * size_of::<f64>() + rayon::current_num_threads() * (4 << 20)
}

/// A block's part of a run: its fine-tuning data, its Hessians, its outputs. Returns these and the peak
/// memory.
fn block(data: &LlamaData, backend: &CpuBackend, sequences: &[&[u32]]) -> (HiddenStates, f64, usize) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let settings = FinetuneSettings {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        epochs: 1,
        batch: 64,
        patience: 1,
        codebooks: true,
        scales: true,
        norms: true,
    };
    let key = aqlm_vocabulary::StreamKey {
        seed: 1,
        block: 0,
        layer: None,
    };
    let dense = backend.load_block(1, &data.blocks[1]).unwrap();
    let mut tuned = backend.load_block(0, &data.blocks[0]).unwrap();
    let inputs = backend.embed(&data.embedding, sequences).unwrap();
    let targets = backend.block_forward(&dense, &inputs).unwrap();
    let all = 0..sequences.len();
    let layers = [QUERY, DOWN];
    let hessians = hessians(backend, &dense, &inputs, all, &layers, &Alone).unwrap();
    assert!(
        hessians
            .iter()
            .all(|hessian| hessian.mean().iter().any(|&x| x != 0.0))
    );
    let report = tune_block(
        backend,
        &mut tuned,
        &inputs,
        &targets,
        sequences.len() / 4,
        &settings,
        key,
        &Alone,
        &mut |_| (),
    )
    .unwrap();
    let outputs = backend.block_forward(&tuned, &inputs).unwrap();
    let squares = backend.squares(&outputs, &targets).unwrap();
    let error: f64 = squares.iter().map(|(difference, _)| difference).sum();
    assert!(report.train_losses[0] > 0.0);
    (outputs, error, MEMORY.peak_usage() - before)
}

#[test]
fn activations_take_no_more_memory_than_they_may() {
    let case: Case = "block_finetune-64x96-k2-q2-d16-n1-t64-w0-nobias-plain-2x4g8-s3"
        .parse()
        .unwrap();
    let data = case.llama().unwrap().data(3);
    let tokens = 64;
    let sequences: Vec<Vec<u32>> = (0..1024)
        .map(|i| (0..tokens).map(|t| ((i * 31 + t * 7) % 50) as u32).collect())
        .collect();
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let states = sequences.len() * tokens * data.config.hidden_size * size_of::<f32>();

    let free = CpuBackend::new(&data.config, tokens).unwrap();
    // Memory that threads and products keep after first use does not count as activations.
    drop(block(&data, &free, &sequences[..64]));
    let (outputs, error, unbounded) = block(&data, &free, &sequences);
    assert!(
        unbounded > 3 * states,
        "{unbounded} bytes for three times {states}"
    );
    let expected = outputs.to_array().unwrap();
    drop(outputs);

    let folder = tempfile::tempdir().unwrap();
    let working = working_bytes(&data.config, sequences.len(), tokens);
    for memory in [working, working + states / 2] {
        let mut bounded = CpuBackend::new(&data.config, tokens).unwrap();
        let bound = memory.to_string().parse().unwrap();
        bounded
            .bound_memory(bound, folder.path(), sequences.len())
            .unwrap();
        let (outputs, same_error, taken) = block(&data, &bounded, &sequences);
        let allowed = memory + beside(&data);
        println!("bound {memory}, taken {taken}, without a bound {unbounded}");
        assert!(taken <= allowed, "{taken} bytes, {allowed} allowed");
        assert!(allowed < unbounded, "the bound bounds nothing");
        assert_eq!(error.to_bits(), same_error.to_bits());
        drop(bounded);
        assert!(outputs.to_array().unwrap() == expected, "other outputs");
    }
}
