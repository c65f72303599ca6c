use super::*;
use crate::model::Model;
use proptest::prelude::*;
use serde_json::json;

fn embedded() -> Tokenizer {
    Model::embedded().unwrap().tokenizer().unwrap()
}

#[test]
fn markers_come_from_the_models_configuration() {
    let tokenizer = embedded();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    // this tokenizer.json has no post-processor
    assert!(!tokenizer.adds_bos() && !tokenizer.adds_eos());
    assert_eq!(tokenizer.vocab_size(), 2048);
    assert_eq!(tokenizer.largest_id().unwrap().0, 2047);
}

/// The embedded tokenizer with a post-processor that puts BOS before a text.
fn with_bos() -> Tokenizer {
    let mut document: Value = serde_json::from_str(&embedded().to_json().unwrap()).unwrap();
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    document["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [bos, text("A")], "pair": [bos, text("A"), text("B")],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    });
    let bytes = document.to_string();
    let tokenizer = Tokenizer::from_bytes(Path::new("tokenizer.json"), bytes.as_bytes()).unwrap();
    tokenizer.with_markers(Some(1), vec![2])
}

fn configured(tokenizer: Tokenizer, config: &Value) -> Result<Tokenizer> {
    tokenizer.with_tokenizer_config(Path::new("tokenizer_config.json"), config)
}

/// transformers 5.23.0 ignores the flags beside a tokenizer.json; 4.57.6 reads them for the classes of Llama.
#[test]
fn the_post_processor_decides_about_markers_and_a_contradiction_is_named() {
    let plain = embedded().encode("Once", true).unwrap();
    let marked = [vec![1], plain.clone()].concat();
    for (class, bos, eos, warnings) in [
        ("LlamaTokenizer", None, None, [1, 0]),
        ("LlamaTokenizerFast", Some(true), Some(true), [2, 1]),
        ("LlamaTokenizerFast", Some(false), None, [0, 1]),
        ("PreTrainedTokenizerFast", Some(true), Some(true), [0, 0]),
        ("Qwen2Tokenizer", None, None, [0, 0]),
    ] {
        let config = json!({"tokenizer_class": class, "add_bos_token": bos, "add_eos_token": eos});
        for (tokenizer, ids, warnings) in [
            (embedded(), &plain, warnings[0]),
            (with_bos(), &marked, warnings[1]),
        ] {
            let tokenizer = configured(tokenizer, &config).unwrap();
            assert_eq!(tokenizer.encode("Once", true).unwrap(), *ids, "{config}");
            assert_eq!(tokenizer.encode("Once", false).unwrap(), plain);
            assert_eq!(
                tokenizer.warnings().len(),
                warnings,
                "{config}: {:?}",
                tokenizer.warnings()
            );
        }
    }
}

#[test]
fn a_flag_without_its_token_adds_nothing() {
    let config = json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "bos_token": null});
    let tokenizer = configured(embedded(), &config).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (None, false));
    assert!(tokenizer.warnings().is_empty());
}

#[test]
fn generation_stops_at_the_first_list_that_a_file_has() {
    let named = |tokenizer: Tokenizer| configured(tokenizer, &json!({"eos_token": "</s>"})).unwrap();
    let bare = || with_bos().with_markers(Some(1), Vec::new());
    assert_eq!(named(bare()).stops(), [2]);
    let by_config = || bare().with_markers(Some(1), vec![7, 8]);
    assert_eq!(
        (named(by_config()).stops(), named(by_config()).eos()),
        ([7, 8].as_slice(), Some(2))
    );
    let by_generation = named(by_config().with_stops(vec![25]));
    assert_eq!(
        (by_generation.stops(), by_generation.eos()),
        ([25].as_slice(), Some(2))
    );
    assert_eq!(named(by_config().with_stops(Vec::new())).stops(), [7, 8]);
}

#[test]
fn a_stand_in_or_a_byte_order_mark_is_no_broken_file() {
    let path = Path::new("tokenizer.json");
    let text = format!("\u{feff}{}", embedded().to_json().unwrap());
    assert_eq!(
        Tokenizer::from_bytes(path, text.as_bytes()).unwrap().vocab_size(),
        2048
    );
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    assert!(matches!(
        Tokenizer::from_bytes(path, pointer),
        Err(Error::Kind { .. })
    ));
}

#[test]
fn a_marker_outside_the_vocabulary_is_refused() {
    let result = configured(embedded(), &json!({"bos_token": "<begin>"}));
    assert!(matches!(result, Err(Error::Field { field, .. }) if field == "bos_token"));
}

#[test]
fn fields_of_another_kind_are_refused() {
    for (config, name) in [
        (json!({"add_bos_token": "true"}), "add_bos_token"),
        (json!({"add_eos_token": 1}), "add_eos_token"),
        (json!({"eos_token": 2}), "eos_token"),
        (json!({"bos_token": {"text": "<s>"}}), "bos_token"),
    ] {
        let result = configured(embedded(), &config);
        assert!(
            matches!(result, Err(Error::Field { field, .. }) if field == name),
            "{config}"
        );
    }
    let config = json!({"add_bos_token": null, "bos_token": null});
    let tokenizer = configured(embedded(), &config).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (None, false));
}

#[test]
fn broken_files_are_refused() {
    let result = Tokenizer::from_bytes(Path::new("tokenizer.json"), b"{\"version\": \"1.0\"");
    assert!(matches!(result, Err(Error::Tokenizer { .. })));
    // found by harness/aqlm/tests/hostile_files.rs: the library panics on both
    for text in ["{\"decoder\":{\"type\":\"By\u{1}\"}", "{\"decoder\":7}"] {
        let result = Tokenizer::from_bytes(Path::new("tokenizer.json"), text.as_bytes());
        assert!(matches!(result, Err(Error::Tokenizer { .. })), "{text}");
    }
    let result = Tokenizer::from_file(Path::new("no/such/tokenizer.json"));
    assert!(matches!(result, Err(Error::Io { action: "read", .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Byte-level BPE is lossless, and the pieces of a stream add up to the whole text.
    #[test]
    fn text_round_trips(text in "\\PC{0,40}") {
        let tokenizer = embedded();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(&tokenizer.decode(&ids, false).unwrap(), &text);
        let mut stream = tokenizer.stream();
        let mut pieces = String::new();
        for &id in &ids {
            pieces += &stream.push(id).unwrap();
        }
        pieces += &stream.finish().unwrap();
        prop_assert_eq!(pieces, text);
    }
}
