//! A checkpoint read back equals what was written.

use aqlm_vocabulary::QuantizedMatrix;
use aqlm_vocabulary::llama::QUERY;
use ndarray::{Array1, Array3, Array4};
use proptest::prelude::*;

use super::super::index::open_folder;
use super::super::tokenizer_files::TOKENIZER_CONFIG;
use super::*;
use crate::model::fixture::{Fixture, shared};
use crate::tensors::TensorSource;

fn assert_same(a: &Model, b: &Model) {
    assert_eq!(a.config(), b.config());
    assert_eq!(a.embedding().unwrap(), b.embedding().unwrap());
    assert_eq!(a.final_norm().unwrap(), b.final_norm().unwrap());
    assert_eq!(a.lm_head().unwrap(), b.lm_head().unwrap());
    for block in 0..a.config().blocks.len() {
        assert_eq!(a.block(block).unwrap(), b.block(block).unwrap());
    }
}

fn rewrite(source: &Model, out: &Path, options: &WriteOptions) -> Result<Written> {
    write_checkpoint(out, source, |block| source.block(block), options)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any fitting scheme and any shard size: a checkpoint read back equals what was written.
    #[test]
    fn a_quantized_model_round_trips(
        nbits in 1_u32..=16, num in 1_usize..4, out_group in 1_usize..3, shard_bytes in 1_u64..4000
    ) {
        let scheme = Scheme::with_out_group(num, nbits, 4, out_group).unwrap();
        let fixture = Fixture::quantized(scheme);
        let source = Model::open(fixture.write()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let options = WriteOptions { shard_bytes, ..WriteOptions::default() };
        let written = rewrite(&source, &out, &options).unwrap();
        prop_assert_eq!(written.scheme, Some(scheme));
        assert_same(&Model::open(&out).unwrap(), &source);
    }
}

#[test]
fn shards_are_listed_and_small() {
    let source = Model::embedded().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let limit = 2_000_000;
    let options = WriteOptions {
        shard_bytes: limit,
        ..WriteOptions::default()
    };
    let written = rewrite(&source, folder.path(), &options).unwrap();
    assert_eq!(written.bytes, 2 * 4_262_144);
    let shards = written.files.iter().filter(|name| name.contains("-of-")).count() as u64;
    assert!(shards >= written.bytes.div_ceil(limit), "{:?}", written.files);
    assert!(written.files.contains(&"model.safetensors.index.json".into()));
    for name in written
        .files
        .iter()
        .filter(|name| is_weights_file(Path::new(name)) && !name.contains("index"))
    {
        let size = std::fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(size < limit + 10_000, "{name} has {size} bytes");
    }
    assert_same(&Model::open(folder.path()).unwrap(), &source);
    // writing again with fewer shards leaves none of the old ones
    let options = WriteOptions {
        replace: true,
        ..WriteOptions::default()
    };
    rewrite(&source, folder.path(), &options).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
}

#[test]
fn a_folder_without_tokenizer_config_gets_one_that_keeps_the_tokens() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny-stories-4m");
    assert!(!golden.join(TOKENIZER_CONFIG).exists());
    let source = Model::open(golden).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let written = rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
    assert!(written.files.contains(&TOKENIZER_CONFIG.into()));
    let (before, after) = (
        source.tokenizer().unwrap(),
        Model::open(folder.path()).unwrap().tokenizer().unwrap(),
    );
    assert_eq!((after.bos(), after.eos()), (before.bos(), before.eos()));
    let text = "Once upon a time, there was a car.";
    assert_eq!(
        after.encode(text, true).unwrap(),
        before.encode(text, true).unwrap()
    );
}

/// Readers view a tensor's bytes as numbers in place. Three int8 codes before an f16 tensor would misalign
/// it.
#[test]
fn every_tensor_is_aligned_to_its_type() {
    let mut fixture = Fixture::quantized(Scheme::new(1, 2, 4).unwrap());
    let norm = "model.layers.0.input_layernorm.weight";
    let (dtype, _, bytes) = fixture.tensors.get_mut(norm).unwrap();
    *dtype = safetensors::Dtype::F32;
    *bytes = [0.5_f32; 8].map(f32::to_le_bytes).concat();
    let source = Model::open(fixture.write()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header + 8) % 8, 0);
    for (name, info) in metadata.tensors() {
        assert_eq!(info.data_offsets.0 % (info.dtype.bitsize() / 8), 0, "{name}");
    }
    let tensors = open_folder(folder.path()).unwrap();
    assert_eq!(tensors.info(norm).unwrap().dtype, "F32");
}

#[test]
fn config_keeps_the_sources_fields_and_says_what_is_quantized() {
    let mut fixture = Fixture::dense();
    fixture.config["dtype"] = json!("bfloat16");
    let source = Model::open(fixture.write()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let scheme = Scheme::new(1, 2, 4).unwrap();
    let blocks = |block| {
        let mut weights = source.block(block)?;
        if block == 1 {
            weights.layer_mut(QUERY).weight = quantized(scheme, 0.5);
        }
        Ok(weights)
    };
    write_checkpoint(folder.path(), &source, blocks, &WriteOptions::default()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["custom"], "kept");
    assert_eq!(config["torch_dtype"], "float16");
    assert_eq!(config.get("dtype"), None);
    assert_eq!(config["architectures"], json!(["LlamaForCausalLM"]));
    let quantization = &config["quantization_config"];
    assert_eq!(quantization["quant_method"], "aqlm");
    assert_eq!(quantization["nbits_per_codebook"], 2);
    let listed: Vec<&str> = quantization["linear_weights_not_to_quantize"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    for name in [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "lm_head",
        "model.norm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj",
    ] {
        assert!(listed.contains(&name), "{name}");
    }
    assert!(
        !listed
            .iter()
            .any(|name| name.starts_with("model.layers.1.self_attn.q_proj"))
    );
    let written = Model::open(folder.path()).unwrap();
    assert_eq!(written.block(0).unwrap(), source.block(0).unwrap());
    assert_eq!(written.inventory().layers[7].scheme, Some(scheme));
}

/// transformers 4 reads `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`; the head is tied
/// there as it is here.
#[test]
fn config_has_every_spelling_that_a_release_reads() {
    let mut fixture = Fixture::dense();
    fixture.config["model_type"] = json!("llama_aqlm");
    fixture.config["aqlm"] = json!({"num_codebooks": 1, "nbits_per_codebook": 3, "in_group_size": 4});
    fixture.config["auto_map"] = json!({"AutoConfig": "configuration.Own"});
    fixture.config["tie_word_embeddings"] = json!(true);
    fixture.config["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5});
    let source = Model::open(fixture.write()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        source.source().join("generation_config.json"),
        "{\"eos_token_id\": [4, 5]}",
    )
    .unwrap();
    rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["rope_theta"], json!(5e5));
    assert_eq!(
        config["rope_scaling"],
        json!({"rope_type": "linear", "factor": 2.0})
    );
    assert_eq!(
        config["rope_parameters"],
        json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    );
    assert_eq!(
        (&config["model_type"], &config["tie_word_embeddings"]),
        (&json!("llama"), &json!(false))
    );
    assert!(config.get("aqlm").is_none() && config.get("auto_map").is_none());
    assert!(folder.path().join("generation_config.json").is_file());
    assert_same(&Model::open(folder.path()).unwrap(), &source);
}

fn quantized(scheme: Scheme, entry: f64) -> LinearWeight {
    let codebooks = Array4::from_elem((1, scheme.codebook_size(), 1, scheme.in_group_size), entry);
    let codes = Array3::zeros((8, 8 / scheme.in_group_size, 1));
    LinearWeight::Quantized(QuantizedMatrix::new(scheme, codes, codebooks, Array1::ones(8)).unwrap())
}

#[test]
fn errors_leave_nothing_behind() {
    let fixture = Fixture::dense();
    let source = Model::open(fixture.write()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let with = |weight: fn(usize) -> LinearWeight| {
        let blocks = |block| {
            let mut weights = source.block(block)?;
            weights.layer_mut(QUERY).weight = weight(block);
            Ok(weights)
        };
        write_checkpoint(&out, &source, blocks, &WriteOptions::default())
    };
    let mixed = with(|block| quantized(Scheme::new(1, 2 + block as u32, 4).unwrap(), 0.5));
    assert!(matches!(mixed, Err(Error::Layer { layer, .. }) if layer == "model.layers.1.self_attn.q_proj"));
    assert!(!out.exists());
    let too_large = with(|_| quantized(Scheme::new(1, 2, 4).unwrap(), 1e6));
    assert!(matches!(too_large, Err(Error::NotFinite { tensor, .. })
        if tensor == "model.layers.0.self_attn.q_proj.codebooks"));
    assert!(!out.exists());
}

#[test]
fn a_checkpoint_is_replaced_only_when_asked() {
    let fixture = Fixture::dense();
    let source = Model::open(fixture.write()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
    let again = rewrite(&source, folder.path(), &WriteOptions::default());
    assert!(matches!(again, Err(Error::Exists { .. })));
    let replace = WriteOptions {
        replace: true,
        ..WriteOptions::default()
    };
    rewrite(&source, folder.path(), &replace).unwrap();
    // never overwrites the files that are being read
    assert!(matches!(
        rewrite(&source, source.source(), &replace),
        Err(Error::Exists { .. })
    ));
    assert!(Model::open(source.source()).is_ok());
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let source = Model::embedded().unwrap();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [a, b] = folders.each_ref().map(|folder| {
        let written = rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
        let read = |name: &String| std::fs::read(folder.path().join(name)).unwrap();
        (
            written.files.clone(),
            written.files.iter().map(read).collect::<Vec<_>>(),
        )
    });
    assert!(a == b);
    // the generated tokenizer equals the embedded one
    let written = Model::open(folders[0].path()).unwrap().tokenizer().unwrap();
    let embedded = source.tokenizer().unwrap();
    let text = "Once upon a time, 12 café\n";
    assert_eq!(
        written.encode(text, true).unwrap(),
        embedded.encode(text, true).unwrap()
    );
    assert_eq!(
        (written.bos(), written.stops()),
        (embedded.bos(), embedded.stops())
    );
}

#[test]
fn storage_can_be_chosen() {
    let source = Model::embedded().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = WriteOptions {
        storage: Some(StorageType::F32),
        ..WriteOptions::default()
    };
    write_dense(folder.path(), &source, &options).unwrap();
    let written = Model::open(folder.path()).unwrap();
    assert_eq!(
        (written.storage(), written.details().storage),
        (StorageType::F32, Some(StorageType::F32))
    );
    assert_same(&written, &source);
}

#[test]
fn checkpoints_of_the_official_engine_survive_rewriting() {
    let Some(folder) = shared("peer/aqlm-hf") else {
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        let source = Model::open(entry.unwrap().path()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        rewrite(&source, folder.path(), &WriteOptions::default()).unwrap();
        assert_same(&Model::open(folder.path()).unwrap(), &source);
        let read = |folder: &Path| {
            let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
            serde_json::from_str::<Value>(&text).unwrap()
        };
        let (ours, theirs) = (read(folder.path()), read(source.source()));
        let mut names = [&ours, &theirs].map(|config| {
            let list = &config["quantization_config"]["linear_weights_not_to_quantize"];
            let names = list.as_array().unwrap().iter();
            names
                .map(|name| name.as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        });
        for names in &mut names {
            names.sort();
        }
        assert_eq!(names[0], names[1]);
        assert!(write_dense(&folder.path().join("dense"), &source, &WriteOptions::default()).is_err());
    }
}
