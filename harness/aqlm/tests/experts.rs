//! A small mixture of experts through the program: read, evaluated, generated from, quantized and tuned.

mod support;

use std::path::{Path, PathBuf};

use aqlm_formats::safetensors::{NewTensor, SafetensorFiles, write};
use aqlm_formats::tensors::TensorSource;
use aqlm_vocabulary::{Purpose, stream};
use rand::RngExt;
use serde_json::{Value, json};

use support::{aqlm, golden, json, message, short_text};

/// Most that losses in f32 and in f64 differ by: some 450 terms stand behind a logit of a few nats (two
/// blocks with sums of 32 to 48 terms, a head). A wrong name or order would show in the first digit.
const LIMIT: f64 = 4.0 * 450.0 / (1 << 24) as f64;

/// A random Qwen2-MoE of two blocks, the first of them dense, with five experts and a shared one.
fn model(folder: &Path) -> PathBuf {
    let config = json!({
        "model_type": "qwen2_moe", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "torch_dtype": "float32",
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2, "bos_token_id": 1, "eos_token_id": 2,
    });
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![2048, 32]),
        ("lm_head.weight".to_owned(), vec![2048, 32]),
        ("model.norm.weight".to_owned(), vec![32]),
    ];
    for block in 0..2 {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{block}.{name}"), shape.to_vec()));
        };
        for (name, rows) in [("q", 32), ("k", 16), ("v", 16)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, 32]);
            add(&format!("self_attn.{name}_proj.bias"), &[rows]);
        }
        add("self_attn.o_proj.weight", &[32, 32]);
        add("input_layernorm.weight", &[32]);
        add("post_attention_layernorm.weight", &[32]);
        let mut gated = |name: &str, inner: usize| {
            add(&format!("{name}.gate_proj.weight"), &[inner, 32]);
            add(&format!("{name}.up_proj.weight"), &[inner, 32]);
            add(&format!("{name}.down_proj.weight"), &[32, inner]);
        };
        if block == 0 {
            gated("mlp", 48);
            continue;
        }
        gated("mlp.shared_expert", 24);
        for expert in 0..5 {
            gated(&format!("mlp.experts.{expert}"), 16);
        }
        add("mlp.gate.weight", &[5, 32]);
        add("mlp.shared_expert_gate.weight", &[1, 32]);
    }
    let mut rng = stream(5, 0, None, Purpose::TestData);
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let (middle, size) = match (name.contains("norm"), shape.len()) {
            (true, _) => (1.0, 0.2),
            (false, 1) => (0.0, 0.2),
            _ => (0.0, 2.0 / (shape[shape.len() - 1] as f32).sqrt()),
        };
        let values = (0..shape.iter().product()).map(|_| middle + size * rng.random_range(-1.0..1.0_f32));
        NewTensor::new(name, &shape, values.collect::<Vec<_>>())
    });
    let path = folder.join("experts");
    std::fs::create_dir(&path).unwrap();
    write(&path.join("model.safetensors"), tensors.collect()).unwrap();
    std::fs::write(path.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(golden("tokenizer.json"), path.join("tokenizer.json")).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Mean loss of a token in nats.
fn loss(model: &Path, data: &Path, backend: &str) -> f64 {
    let arguments = [
        "eval",
        text(model),
        "--data",
        text(data),
        "--ctx",
        "48",
        "--windows",
        "2",
        "--backend",
        backend,
        "--json",
    ];
    let output = aqlm(&arguments);
    assert!(output.status.success(), "{}", message(&output));
    json(&output)["mean_nll"].as_f64().unwrap()
}

#[test]
fn experts_are_quantized_and_routers_stay_dense() {
    let folder = tempfile::tempdir().unwrap();
    let (dense, data) = (model(folder.path()), short_text(folder.path(), 20));
    let difference = (loss(&dense, &data, "cpu") - loss(&dense, &data, "reference")).abs();
    assert!(difference < LIMIT, "{difference:e}");

    let out = folder.path().join("quantized");
    let calibration = golden("calibration.jsonl");
    let output = aqlm(&[
        "quantize",
        text(&dense),
        "--calib",
        text(&calibration),
        "--out",
        text(&out),
        "--scheme",
        "1x4g8",
        "--seqlen",
        "16",
        "--sequences",
        "4",
        "--validation",
        "1",
        "--max-rounds",
        "1",
        "--beam",
        "1",
        "--finetune-epochs",
        "1",
        "--allow-degenerate",
        "--json",
    ]);
    assert!(output.status.success(), "{}", message(&output));
    let record = json(&output);
    let blocks = record["blocks"].as_array().unwrap();
    let layers: Vec<&Value> = blocks
        .iter()
        .flat_map(|block| block["layers"].as_array().unwrap())
        .collect();
    // a dense block; attention, a shared expert and five others
    assert_eq!(layers.len(), 7 + 4 + 3 + 15);
    let own = |part: &str| -> Vec<u64> {
        let of_part = layers.iter().filter(|layer| {
            let name = layer["name"].as_str().unwrap();
            name.contains(".experts.") && name.ends_with(part)
        });
        of_part.filter_map(|layer| layer["own_tokens"].as_u64()).collect()
    };
    // 48 tokens pass two of five experts: fewer than 32 for most
    let gates = own("gate_proj");
    assert!(
        gates.len() >= 3 && gates.iter().all(|&tokens| tokens < 32),
        "{gates:?}"
    );
    assert_eq!(gates, own("up_proj"));
    assert!(own("down_proj").iter().all(|&tokens| tokens < 16));
    assert!(own("shared_expert.up_proj").is_empty());

    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    let kept = config["quantization_config"]["linear_weights_not_to_quantize"]
        .as_array()
        .unwrap();
    let tensors = SafetensorFiles::open_file(&out.join("model.safetensors")).unwrap();
    for router in ["model.layers.1.mlp.gate", "model.layers.1.mlp.shared_expert_gate"] {
        assert!(kept.contains(&json!(format!("{router}.weight"))) && kept.contains(&json!(router)));
        assert!(tensors.info(&format!("{router}.weight")).is_some());
    }
    for expert in 0..5 {
        for part in ["gate_proj", "up_proj", "down_proj"] {
            let name = format!("model.layers.1.mlp.experts.{expert}.{part}");
            assert!(tensors.info(&format!("{name}.codes")).is_some(), "{name}");
            assert!(tensors.info(&format!("{name}.weight")).is_none(), "{name}");
        }
    }
    let difference = (loss(&out, &data, "cpu") - loss(&out, &data, "reference")).abs();
    assert!(difference < LIMIT, "{difference:e}");
}

#[test]
fn a_cache_writes_what_both_backends_find_likeliest() {
    let folder = tempfile::tempdir().unwrap();
    let dense = model(folder.path());
    let written = |backend: &str| -> Value {
        let arguments = [
            "generate",
            text(&dense),
            "--prompt",
            "Once upon a time",
            "--tokens",
            "12",
            "--backend",
            backend,
            "--json",
        ];
        let output = aqlm(&arguments);
        assert!(output.status.success(), "{}", message(&output));
        json(&output)["tokens"].clone()
    };
    let tokens = written("cpu");
    assert!(tokens.as_array().is_some_and(|tokens| !tokens.is_empty()));
    assert_eq!(tokens, written("reference"));
}
