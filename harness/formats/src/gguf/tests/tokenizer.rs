use std::fmt::Write as _;

use serde_json::Value;

use super::*;
use crate::model::embedded;
use crate::model::fixture::shared;
use crate::tensors::TensorSource;
use crate::tokenizer::Tokenizer;

/// Six SentencePiece tokens.
pub(super) fn with_tokenizer(writer: &mut Writer) {
    let tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b"];
    writer.set("tokenizer.ggml.model", Put::text("llama"));
    writer.set(
        "tokenizer.ggml.tokens",
        Put::Texts(tokens.map(Into::into).to_vec()),
    );
    writer.set("tokenizer.ggml.scores", Put::Floats(vec![0.0; 6]));
    writer.set("tokenizer.ggml.token_type", Put::Integers(vec![2, 3, 3, 1, 1, 1]));
    writer.set("tokenizer.ggml.bos_token_id", Put::U32(1));
    writer.set("tokenizer.ggml.eos_token_id", Put::U32(2));
}

/// A file with this vocabulary and otherwise minimal contents.
fn tokenizer_of(tokens: Vec<String>, set: impl FnOnce(&mut Writer)) -> Result<Tokenizer> {
    let (mut writer, _) = converted();
    let rows = tokens.len() as u64;
    for name in ["token_embd.weight", "output.weight"] {
        let tensor = writer.tensor(name);
        tensor.1 = vec![8, rows];
        tensor.3 = vec![0; 8 * 4 * tokens.len()];
    }
    writer.set("tokenizer.ggml.tokens", Put::Texts(tokens));
    set(&mut writer);
    writer.open().unwrap().tokenizer()
}

#[test]
fn sentence_piece_joins_by_score() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(Into::into).to_vec();
    let mut types = vec![2, 3, 3];
    for byte in 0..=255 {
        let mut token = String::new();
        write!(token, "<0x{byte:02X}>").unwrap();
        tokens.push(token);
        types.push(6);
    }
    // "bc" outranks "ab", so "abc" is a + bc although "ab" comes first
    let pieces = ["▁", "a", "b", "c", "ab", "bc", "▁a"];
    let scores = [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0];
    tokens.extend(pieces.map(String::from));
    types.extend([1; 7]);
    let first = 259;
    let build = |prefix: bool| {
        tokenizer_of(tokens.clone(), |writer| {
            writer.set("tokenizer.ggml.model", Put::text("llama"));
            writer.set("tokenizer.ggml.token_type", Put::Integers(types.clone()));
            let scores = [vec![0.0; 259], scores.to_vec()].concat();
            writer.set("tokenizer.ggml.scores", Put::Floats(scores));
            writer.set("tokenizer.ggml.bos_token_id", Put::U32(1));
            writer.set("tokenizer.ggml.eos_token_id", Put::U32(2));
            writer.set("tokenizer.ggml.add_space_prefix", Put::Flag(prefix));
        })
        .unwrap()
    };
    let (space, a, bc, space_a) = (first, first + 1, first + 5, first + 6);
    let tokenizer = build(true);
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [1, space_a, bc]);
    assert_eq!(tokenizer.encode("bc a", false).unwrap(), [space, bc, space_a]);
    // é has no token, so its two bytes are used
    assert_eq!(tokenizer.encode("é", false).unwrap(), [space, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(
        tokenizer
            .decode(&[1, space_a, bc, 3 + 0xc3, 3 + 0xa9], true)
            .unwrap(),
        "abcé"
    );
    let tokenizer = build(false);
    assert_eq!(tokenizer.encode("abc", false).unwrap(), [a, bc]);
    assert_eq!(tokenizer.decode(&[space_a, bc], true).unwrap(), " abc");
}

/// Vocabulary and merges of a byte-level tokenizer.json.
fn byte_level_parts(json: &Value) -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<(u64, String)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap(), token.clone()))
        .collect();
    tokens.sort();
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    let merges = merges.map(|merge| match merge {
        Value::String(text) => text.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    });
    (
        tokens.into_iter().map(|(_, token)| token).collect(),
        merges.collect(),
    )
}

fn byte_level(pre: &str) -> Result<Tokenizer> {
    byte_level_with(Some(pre))
}

fn byte_level_with(pre: Option<&str>) -> Result<Tokenizer> {
    let json: Value = serde_json::from_slice(embedded::TOKENIZER).unwrap();
    let (tokens, merges) = byte_level_parts(&json);
    let types = (0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
    tokenizer_of(tokens, |writer| {
        writer.set("tokenizer.ggml.model", Put::text("gpt2"));
        if let Some(pre) = pre {
            writer.set("tokenizer.ggml.pre", Put::text(pre));
        }
        writer.set("tokenizer.ggml.merges", Put::Texts(merges));
        writer.set("tokenizer.ggml.token_type", Put::Integers(types));
        writer.set("tokenizer.ggml.bos_token_id", Put::U32(1));
        writer.set("tokenizer.ggml.eos_token_id", Put::U32(2));
    })
}

#[test]
fn byte_level_metadata_give_the_tokenizer_they_came_from() {
    let ours = byte_level("gpt-2").unwrap();
    let original = Model::embedded().unwrap().tokenizer().unwrap();
    let text = std::str::from_utf8(&embedded::EVALUATION_TEXT[..20_000]).unwrap();
    assert_eq!(
        ours.encode(text, true).unwrap(),
        original.encode(text, true).unwrap()
    );
    assert_eq!((ours.bos(), ours.eos()), (Some(1), Some(2)));
}

#[test]
fn splitting_of_words_follows_the_named_kind() {
    let pieces = |pre: &str, text: &str| {
        let tokenizer = byte_level(pre).unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        ids
    };
    // pre-tokenizers that split digits individually give the tokens of the single digits
    for pre in ["smollm", "qwen2"] {
        let single: Vec<u32> = "2468"
            .chars()
            .flat_map(|digit| pieces(pre, &digit.to_string()))
            .collect();
        assert_eq!(pieces(pre, "2468"), single, "{pre}");
    }
    // Llama 3 adds BOS itself
    assert!(byte_level("llama-bpe").unwrap().adds_bos());
    assert!(!byte_level("qwen2").unwrap().adds_bos());
    // GPT-4's splitting attaches a newline to the punctuation before it, GPT-2's does not; both preserve the
    // text
    pieces("llama-bpe", "Well.\n\n1234 isn't  it\r\n");
    pieces("gpt-2", "Well.\n\n1234 isn't  it\r\n");
}

#[test]
fn some_names_stand_for_the_splitting_of_another() {
    let text = "Well.\n\n1234 isn't  it\r\n12a";
    let ids = |tokenizer: &Tokenizer| tokenizer.encode(text, false).unwrap();
    for (name, other) in [
        ("olmo", "gpt-2"),
        ("refact", "smollm"),
        ("dbrx", "llama-bpe"),
        ("smaug-bpe", "llama-bpe"),
        ("chatglm-bpe", "llama-bpe"),
        ("glm4", "llama-bpe"),
        ("stablelm2", "qwen2"),
    ] {
        let (named, other) = (byte_level(name).unwrap(), byte_level(other).unwrap());
        assert_eq!(ids(&named), ids(&other), "{name}");
        // only Llama 3's begins with BOS by default
        assert!(!named.adds_bos(), "{name}");
    }
}

/// llama.cpp's default isolates runs of punctuation and groups of three digits, and tells contractions from
/// nothing.
#[test]
fn without_a_named_splitting_llama_cpps_default_is_taken() {
    let given = byte_level_with(None).unwrap();
    let named = byte_level("default").unwrap();
    // the pieces, and nothing joins tokens across them
    for (text, pieces) in [
        ("it's so", &["it", "'", "s", " so"][..]),
        ("a.\"b\"", &["a", ".\"", "b", "\""]),
        ("was 12345", &["was", " ", "123", "45"]),
        ("so  x\n\ny", &["so", " ", " x", "\n", "\n", "y"]),
        ("a+=b #c", &["a", "+=", "b", " ", "#", "c"]),
    ] {
        let expected: Vec<u32> = pieces
            .iter()
            .flat_map(|piece| given.encode(piece, false).unwrap())
            .collect();
        assert_eq!(given.encode(text, false).unwrap(), expected, "{text:?}");
        assert_eq!(named.encode(text, false).unwrap(), expected, "{text:?}");
    }
    assert!(!given.adds_bos());
}

#[test]
fn a_missing_splitting_is_a_warning() {
    let (mut writer, _) = converted();
    writer.set("tokenizer.ggml.model", Put::text("llama"));
    assert!(writer.open().unwrap().warnings().is_empty());
    writer.set("tokenizer.ggml.model", Put::text("gpt2"));
    let model = writer.open().unwrap();
    assert!(matches!(model.warnings(), [one] if one.contains("`tokenizer.ggml.pre`")));
    writer.set("tokenizer.ggml.pre", Put::text("gpt-2"));
    assert!(writer.open().unwrap().warnings().is_empty());
}

#[test]
fn tokenizers_of_other_kinds_are_refused_by_name() {
    assert!(
        matches!(byte_level("tekken"), Err(Error::Unsupported { field, found, .. })
        if field == "tokenizer.ggml.pre" && found == "\"tekken\"")
    );
    let result = tokenizer_of(vec!["a".into()], |writer| {
        writer.set("tokenizer.ggml.model", Put::text("t5"));
    });
    assert!(matches!(result, Err(Error::Unsupported { field, .. }) if field == "tokenizer.ggml.model"));
    let result = tokenizer_of(vec!["a".into(), "a".into()], |_| {});
    assert!(matches!(result, Err(Error::Field { field, .. }) if field == "tokenizer.ggml.tokens"));
    let result = tokenizer_of(vec!["a".into()], |writer| {
        writer.set("tokenizer.ggml.model", Put::text("gpt2"));
        writer.set("tokenizer.ggml.merges", Put::Texts(vec!["ab".into()]));
    });
    assert!(matches!(result, Err(Error::Field { field, .. }) if field == "tokenizer.ggml.merges"));
}

/// stories260K's tokenizer was converted from SentencePiece, with scores 0, -1, -2, … after its byte tokens.
#[test]
fn a_real_sentence_piece_vocabulary_gives_its_tokens() {
    let Some(path) = shared("models/stories260K-hf/tokenizer.json") else {
        return;
    };
    let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let (tokens, _) = byte_level_parts(&json);
    let scores = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 });
    let types = (0..tokens.len()).map(|id| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    });
    let (scores, types) = (scores.collect(), types.collect());
    let ours = tokenizer_of(tokens, |writer| {
        writer.set("tokenizer.ggml.model", Put::text("llama"));
        writer.set("tokenizer.ggml.token_type", Put::Integers(types));
        writer.set("tokenizer.ggml.scores", Put::Floats(scores));
        writer.set("tokenizer.ggml.bos_token_id", Put::U32(1));
        writer.set("tokenizer.ggml.eos_token_id", Put::U32(2));
    })
    .unwrap();
    let original = Tokenizer::from_file(&path).unwrap();
    for line in std::str::from_utf8(embedded::EVALUATION_TEXT)
        .unwrap()
        .lines()
        .take(50)
    {
        assert_eq!(
            ours.encode(line, true).unwrap(),
            original.encode(line, true).unwrap()
        );
    }
}

/// The fetched SmolLM2 (`aqlm fetch smollm2-135m`, or the file named by AQLM_SMOLLM2).
fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("AQLM_SMOLLM2").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf")
        },
        PathBuf::from,
    );
    if path.exists() {
        return Some(path);
    }
    println!("waived: {} is not there", path.display());
    None
}

#[test]
fn smollm2_tokenises_wikitext_as_its_own_tokenizer_does() {
    let (Some(model), Some(text), Some(peer)) = (
        smollm2(),
        shared("data/wikitext2/test.txt"),
        shared("peer/models/smollm2-135m-wikitext2.safetensors"),
    ) else {
        return;
    };
    let model = Model::open(model).unwrap();
    assert_eq!(model.config().final_norm.epsilon, 1e-5);
    model.block(29).unwrap();
    let stream = crate::texts::TokenStream::load(&text, &model.tokenizer().unwrap()).unwrap();
    let peer = crate::safetensors::SafetensorFiles::open_file(&peer).unwrap();
    let expected = peer.read_integers("input_ids").unwrap();
    let found: Vec<i64> = stream.tokens()[..expected.len()]
        .iter()
        .map(|&id| i64::from(id))
        .collect();
    assert_eq!(found, expected);
}
