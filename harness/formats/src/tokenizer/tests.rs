use super::*;
use crate::model::Model;
use proptest::prelude::*;

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

#[test]
fn tokenizer_config_decides_about_markers() {
    let tokenizer = embedded();
    let plain = tokenizer.encode("Once", true).unwrap();
    let text = r#"{"add_bos_token": true, "add_eos_token": true, "bos_token": {"content": "<s>"}}"#;
    let tokenizer = tokenizer
        .with_tokenizer_config(Path::new("tokenizer_config.json"), text)
        .unwrap();
    let marked = tokenizer.encode("Once", true).unwrap();
    assert_eq!(marked, [vec![1], plain.clone(), vec![2]].concat());
    assert_eq!(tokenizer.encode("Once", false).unwrap(), plain);
}

#[test]
fn a_marker_outside_the_vocabulary_is_refused() {
    let text = r#"{"bos_token": "<begin>"}"#;
    let result = embedded().with_tokenizer_config(Path::new("tokenizer_config.json"), text);
    assert!(matches!(result, Err(Error::Field { field, .. }) if field == "bos_token"));
}

#[test]
fn fields_of_another_kind_are_refused() {
    for (text, name) in [
        (r#"{"add_bos_token": "true"}"#, "add_bos_token"),
        (r#"{"add_eos_token": 1}"#, "add_eos_token"),
        (r#"{"eos_token": 2}"#, "eos_token"),
        (r#"{"bos_token": {"text": "<s>"}}"#, "bos_token"),
    ] {
        let result = embedded().with_tokenizer_config(Path::new("tokenizer_config.json"), text);
        assert!(
            matches!(result, Err(Error::Field { field, .. }) if field == name),
            "{text}"
        );
    }
    let text = r#"{"add_bos_token": null, "bos_token": null}"#;
    let tokenizer = embedded()
        .with_tokenizer_config(Path::new("tokenizer_config.json"), text)
        .unwrap();
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
