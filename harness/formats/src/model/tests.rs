//! Valid and contradictory folders and files.

use aqlm_vocabulary::LinearWeight;
use aqlm_vocabulary::llama::{KEY, OUTPUT, QUERY};
use half::f16;
use serde_json::json;

use super::fixture::{Fixture, shared};
use super::*;
use crate::safetensors::Dtype;

const Q0: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn the_embedded_model_opens() {
    let model = Model::embedded().unwrap();
    assert_eq!(model.config().blocks.len(), 4);
    assert_eq!(model.embedding().unwrap().dim(), (2048, 256));
    assert_ne!(model.embedding().unwrap(), model.lm_head().unwrap());
    assert_eq!(model.final_norm().unwrap().len(), 256);
    assert_eq!(model.storage(), StorageType::F16);
    for block in 0..4 {
        let weights = model.block(block).unwrap();
        let shapes: Vec<_> = weights.layers.iter().map(|layer| layer.weight.shape()).collect();
        let (square, tall) = ((256, 256), (704, 256));
        assert_eq!(shapes, [square, square, square, square, tall, tall, (256, 704)]);
    }
    assert!(matches!(
        model.block(4),
        Err(Error::Block {
            blocks: 4,
            block: 4,
            ..
        })
    ));
}

#[test]
fn a_folder_and_the_embedded_files_give_the_same_model() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny-stories-4m");
    let (folder, embedded) = (Model::open(folder).unwrap(), Model::embedded().unwrap());
    assert_eq!(folder.config(), embedded.config());
    assert_eq!(folder.block(3).unwrap(), embedded.block(3).unwrap());
    assert_eq!(folder.lm_head().unwrap(), embedded.lm_head().unwrap());
    let text = "Once upon a time";
    let ids = |model: &Model| model.tokenizer().unwrap().encode(text, true).unwrap();
    assert_eq!(ids(&folder), ids(&embedded));
}

#[test]
fn a_tied_head_is_the_embedding() {
    let mut fixture = Fixture::dense();
    fixture.config["tie_word_embeddings"] = json!(true);
    fixture.tensors.remove("lm_head.weight");
    let model = Model::open(fixture.write()).unwrap();
    assert_eq!(model.lm_head().unwrap(), model.embedding().unwrap());
}

/// transformers 5.23.0 keeps a head that differs; 4.57.6 ties.
#[test]
fn a_head_that_differs_is_used_although_the_flag_ties_it() {
    let mut fixture = Fixture::dense();
    fixture.config["tie_word_embeddings"] = json!(true);
    let model = Model::open(fixture.write()).unwrap();
    assert!(!model.config().tied);
    assert_ne!(model.lm_head().unwrap(), model.embedding().unwrap());
    assert!(
        model
            .warnings()
            .iter()
            .any(|warning| warning.contains("tie_word_embeddings"))
    );
    let same = fixture.tensors["model.embed_tokens.weight"].clone();
    fixture.tensors.insert("lm_head.weight".into(), same);
    fixture.config.as_object_mut().unwrap().remove("custom");
    let model = Model::open(fixture.write()).unwrap();
    assert!(model.config().tied && model.warnings().is_empty());
}

#[test]
fn names_without_the_prefix_and_a_tied_head_alone_are_understood() {
    let mut fixture = Fixture::dense();
    fixture.config["tie_word_embeddings"] = json!(true);
    fixture.tensors.remove("lm_head.weight");
    let usual = Model::open(fixture.write()).unwrap();
    let whole = usual.weights().unwrap();
    let mut bare = Fixture::dense();
    bare.config = fixture.config.clone();
    let stored = fixture.tensors.iter();
    let shortened = stored.map(|(name, tensor)| (name.replace("model.", ""), tensor.clone()));
    bare.tensors = shortened.collect();
    let bare = Model::open(bare.write()).unwrap();
    assert_eq!(bare.weights().unwrap(), whole);
    assert_eq!(bare.inventory().tensors, usual.inventory().tensors);
    let embedding = fixture.tensors.remove("model.embed_tokens.weight").unwrap();
    fixture.tensors.insert("lm_head.weight".into(), embedding);
    assert_eq!(Model::open(fixture.write()).unwrap().weights().unwrap(), whole);
    fixture.config["tie_word_embeddings"] = json!(false);
    let result = Model::open(fixture.write());
    assert!(
        matches!(result, Err(Error::MissingTensor { tensor, .. }) if tensor == "model.embed_tokens.weight")
    );
}

#[test]
fn tensors_that_the_configuration_does_not_need_are_named() {
    let mut fixture = Fixture::dense();
    fixture.config.as_object_mut().unwrap().remove("custom");
    fixture.put_halves("model.layers.0.self_attn.rotary_emb.inv_freq", &[4]);
    assert!(Model::open(fixture.write()).unwrap().warnings().is_empty());
    fixture.put_halves("model.layers.0.self_attn.q_norm.weight", &[4]);
    fixture.config["num_hidden_layers"] = json!(1);
    let model = Model::open(fixture.write()).unwrap();
    let [warning] = model.warnings() else {
        panic!("{:?}", model.warnings())
    };
    assert!(
        warning.contains("q_norm") && warning.contains("model.layers.1") && warning.contains("and 6 more")
    );
}

#[test]
fn formats_of_quantized_layers_are_listed() {
    let dense = Model::open(Fixture::dense().write()).unwrap();
    assert!(dense.quantized_formats().is_empty());
    let fixture = Fixture::quantized("2x3g4".parse().unwrap());
    let quantized = Model::open(fixture.write()).unwrap();
    assert_eq!(Vec::from_iter(quantized.quantized_formats()), ["AQLM 2x3g4"]);
}

#[test]
fn stand_ins_and_marks_are_recognised_in_every_file() {
    let fixture = Fixture::dense();
    let folder = fixture.write();
    let config = std::fs::read(folder.join("config.json")).unwrap();
    std::fs::write(
        folder.join("config.json"),
        [b"\xef\xbb\xbf", config.as_slice()].concat(),
    )
    .unwrap();
    Model::open(&folder).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let pages = ["<!DOCTYPE html>\n<html>", pointer];
    for (text, file) in pages.into_iter().flat_map(|text| {
        let files = [
            "generation_config.json",
            "tokenizer_config.json",
            "tokenizer.json",
            "model.safetensors",
            "config.json",
        ];
        files.map(|file| (text, file))
    }) {
        let fixture = Fixture::dense();
        let folder = fixture.write();
        std::fs::write(folder.join("tokenizer.json"), embedded::TOKENIZER).unwrap();
        std::fs::write(folder.join(file), text).unwrap();
        let result = Model::open(&folder).and_then(|model| model.tokenizer());
        assert!(
            matches!(&result, Err(Error::Kind { path, .. }) if path.ends_with(file)),
            "{file}: {result:?}"
        );
        let result = Model::open(folder.join(file));
        assert!(matches!(&result, Err(Error::Kind { .. })), "{file}: {result:?}");
    }
}

#[test]
fn generation_stops_where_generation_config_says() {
    let fixture = Fixture::dense();
    let folder = fixture.write();
    let ids = |text: &str| {
        std::fs::write(folder.join("generation_config.json"), text).unwrap();
        crate::huggingface::generation_stops(&folder)
    };
    assert_eq!(
        ids(r#"{"eos_token_id": [25, 3], "temperature": NaN}"#).unwrap(),
        [25, 3]
    );
    assert_eq!(ids(r#"{"eos_token_id": 25}"#).unwrap(), [25]);
    assert_eq!(ids(r#"{"eos_token_id": null}"#).unwrap(), [0; 0]);
    assert!(
        matches!(ids(r#"{"eos_token_id": "a"}"#), Err(Error::Field { field, .. }) if field == "eos_token_id")
    );
}

#[test]
fn codes_are_read_from_twos_complement() {
    for (scheme, code_bytes) in [("2x3g4", [0xfc_u8, 0xff, 0x03]), ("1x8g4", [0x80, 0xff, 0x7f])] {
        let mut fixture = Fixture::quantized(scheme.parse().unwrap());
        fixture.damage(&format!("{Q0}.codes"), 0, &code_bytes);
        let block = Model::open(fixture.write()).unwrap().block(0).unwrap();
        let LinearWeight::Quantized(matrix) = &block.layer(QUERY).weight else {
            panic!("a dense layer")
        };
        let size = matrix.scheme().codebook_size() as u16;
        let codes: Vec<u16> = matrix.codes().iter().copied().take(3).collect();
        assert_eq!(codes, [size / 2, size - 1, size / 2 - 1]);
    }
}

#[test]
fn codes_beyond_their_bits_are_named() {
    let mut fixture = Fixture::quantized("2x3g4".parse().unwrap());
    fixture.damage(&format!("{Q0}.codes"), 5, &[4]);
    let result = Model::open(fixture.write()).unwrap().block(0);
    assert!(
        matches!(result, Err(Error::CodeOutOfRange { tensor, element: 5, low: -4, high: 4, found: 4, .. })
            if tensor == format!("{Q0}.codes"))
    );
}

#[test]
fn codes_of_another_type_are_refused() {
    let mut fixture = Fixture::quantized("1x3g4".parse().unwrap());
    let (dtype, _, bytes) = fixture.tensors.get_mut(&format!("{Q0}.codes")).unwrap();
    *dtype = Dtype::I16;
    bytes.extend(vec![0; bytes.len()]);
    let result = Model::open(fixture.write());
    assert!(matches!(result, Err(Error::TensorType { expected, .. }) if expected.starts_with("I8")));
}

#[test]
fn codes_without_a_quantization_config_are_refused() {
    let mut fixture = Fixture::quantized("1x3g4".parse().unwrap());
    fixture.config["quantization_config"] = json!(null);
    let result = Model::open(fixture.write());
    assert!(matches!(result, Err(Error::UnexpectedTensor { tensor, .. }) if tensor == format!("{Q0}.codes")));
}

#[test]
fn a_layer_with_both_codes_and_a_weight_is_refused() {
    let mut fixture = Fixture::quantized("1x3g4".parse().unwrap());
    fixture.put_halves(&format!("{Q0}.weight"), &[8, 8]);
    let result = Model::open(fixture.write());
    assert!(
        matches!(result, Err(Error::UnexpectedTensor { tensor, .. }) if tensor == format!("{Q0}.weight"))
    );
}

#[test]
fn a_group_size_that_does_not_divide_names_the_layer() {
    let mut fixture = Fixture::quantized("1x3g4".parse().unwrap());
    fixture.config["quantization_config"]["in_group_size"] = json!(3);
    let result = Model::open(fixture.write());
    assert!(matches!(result, Err(Error::Layer { layer, .. }) if layer.contains(Q0)));
}

#[test]
fn missing_tensors_are_named() {
    for name in [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.1.mlp.down_proj.weight",
    ] {
        let mut fixture = Fixture::dense();
        fixture.tensors.remove(name);
        let result = Model::open(fixture.write());
        assert!(matches!(result, Err(Error::MissingTensor { tensor, .. }) if tensor == name));
    }
}

#[test]
fn shapes_that_contradict_the_configuration_are_named() {
    let mut fixture = Fixture::dense();
    fixture.config["intermediate_size"] = json!(16);
    let result = Model::open(fixture.write());
    assert!(
        matches!(result, Err(Error::TensorShape { tensor, expected, found, .. })
        if tensor == "model.layers.0.mlp.gate_proj.weight" && expected == [16, 8] && found == [12, 8])
    );
}

#[test]
fn biases_are_read_when_announced_and_refused_otherwise() {
    let mut fixture = Fixture::dense();
    fixture.put_halves(&format!("{Q0}.bias"), &[8]);
    let result = Model::open(fixture.write());
    assert!(matches!(result, Err(Error::UnexpectedTensor { tensor, .. }) if tensor == format!("{Q0}.bias")));

    fixture.config["model_type"] = json!("qwen2");
    for block in 0..2 {
        for (layer, length) in [("q", 8), ("k", 4), ("v", 4)] {
            let name = format!("model.layers.{block}.self_attn.{layer}_proj.bias");
            fixture.put_halves(&name, &[length]);
        }
    }
    let block = Model::open(fixture.write()).unwrap().block(1).unwrap();
    assert_eq!(block.layer(KEY).bias.as_ref().unwrap().len(), 4);
    assert_eq!(block.layer(OUTPUT).bias, None);
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let mut fixture = Fixture::dense();
    fixture.damage(&format!("{Q0}.weight"), 2 * 9, &f16::NAN.to_le_bytes());
    let result = Model::open(fixture.write()).unwrap().block(0);
    assert!(
        matches!(result, Err(Error::NotFinite { tensor, element: 9, .. }) if tensor == format!("{Q0}.weight"))
    );
}

#[test]
fn a_tokenizer_larger_than_the_embedding_is_refused() {
    let fixture = Fixture::dense();
    let folder = fixture.write();
    std::fs::write(folder.join("tokenizer.json"), embedded::TOKENIZER).unwrap();
    let result = Model::open(folder).unwrap().tokenizer();
    assert!(matches!(
        result,
        Err(Error::Vocabulary {
            rows: 6,
            id: 2047,
            ..
        })
    ));
}

#[test]
fn paths_that_are_no_models_are_refused() {
    assert!(matches!(Model::open("no/such/model"), Err(Error::Io { .. })));
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Model::open(folder.path()), Err(Error::Kind { .. })));
    let fixture = Fixture::dense();
    let file = fixture.write().join("model.safetensors");
    assert!(matches!(Model::open(file), Err(Error::Kind { .. })));
    let result = Model::open(fixture.write()).unwrap().tokenizer();
    assert!(matches!(result, Err(Error::Kind { expected, .. }) if expected.contains("tokenizer.json")));
}

#[test]
fn real_models_open() {
    for (name, blocks, tied) in [
        ("models/tiny-stories-4m", 4, false),
        ("models/babyllama105-hf", 5, true),
        ("models/stories260K-hf", 5, true),
    ] {
        let Some(folder) = shared(name) else { continue };
        let model = Model::open(folder).unwrap();
        assert_eq!(model.config().blocks.len(), blocks);
        assert_eq!(model.config().tied, tied);
        for block in 0..blocks {
            model.block(block).unwrap();
        }
        assert!(model.tokenizer().unwrap().vocab_size() <= model.config().vocab_size);
    }
}

#[test]
fn checkpoints_of_the_official_engine_open() {
    let Some(folder) = shared("peer/aqlm-hf") else {
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let scheme: Scheme = name.rsplit('-').next().unwrap().parse().unwrap();
        let model = Model::open(&folder).unwrap();
        for block in 0..model.config().blocks.len() {
            for layer in &model.block(block).unwrap().layers {
                assert!(
                    matches!(&layer.weight, LinearWeight::Quantized(matrix) if matrix.scheme() == scheme)
                );
            }
        }
        let inventory = model.inventory();
        assert!(inventory.layers.iter().all(|layer| layer.scheme == Some(scheme)));
        seen += 1;
    }
    assert!(seen > 0);
}
