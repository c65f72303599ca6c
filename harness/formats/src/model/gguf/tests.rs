//! GGUF files made here from a small model, whole and damaged.

use std::fmt::Write as _;
use std::path::PathBuf;

use half::f16;
use serde_json::Value;

use super::*;
use crate::model::fixture::{Fixture, shared};
use crate::model::{Model, StorageType, embedded};
use crate::tokenizer::Tokenizer;

/// A metadata value to write.
#[derive(Clone)]
enum Put {
    U32(u32),
    F32(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Integers(Vec<i32>),
}

impl Put {
    fn text(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// A file to write: tensors with dimensions in the file's order, fastest first.
struct Writer {
    version: u32,
    metadata: Vec<(String, Put)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Writer {
    fn set(&mut self, name: &str, value: Put) {
        self.metadata.retain(|(other, _)| other != name);
        self.metadata.push((name.into(), value));
    }

    fn remove(&mut self, name: &str) {
        self.metadata.retain(|(other, _)| other != name);
    }

    fn tensor(&mut self, name: &str) -> &mut (String, Vec<u64>, u32, Vec<u8>) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }

    fn put_floats(&mut self, name: &str, dimensions: &[u64], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push((name.into(), dimensions.to_vec(), 0, bytes));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (name, value) in &self.metadata {
            put_text(&mut out, name);
            let mut kind = |id: u32| out.extend(id.to_le_bytes());
            match value {
                Put::U32(value) => {
                    kind(4);
                    out.extend(value.to_le_bytes());
                }
                Put::F32(value) => {
                    kind(6);
                    out.extend(value.to_le_bytes());
                }
                Put::Flag(value) => {
                    kind(7);
                    out.push(u8::from(*value));
                }
                Put::Text(text) => {
                    kind(8);
                    put_text(&mut out, text);
                }
                Put::Texts(list) => {
                    kind(9);
                    kind(8);
                    out.extend((list.len() as u64).to_le_bytes());
                    for text in list {
                        put_text(&mut out, text);
                    }
                }
                Put::Floats(list) => {
                    kind(9);
                    kind(6);
                    out.extend((list.len() as u64).to_le_bytes());
                    out.extend(list.iter().flat_map(|value| value.to_le_bytes()));
                }
                Put::Integers(list) => {
                    kind(9);
                    kind(5);
                    out.extend((list.len() as u64).to_le_bytes());
                    out.extend(list.iter().flat_map(|value| value.to_le_bytes()));
                }
            }
        }
        let mut data = Vec::new();
        for (name, dimensions, kind, bytes) in &self.tensors {
            put_text(&mut out, name);
            out.extend((dimensions.len() as u32).to_le_bytes());
            for side in dimensions {
                out.extend(side.to_le_bytes());
            }
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    fn write(&self) -> (tempfile::TempDir, PathBuf) {
        write(&self.bytes())
    }

    fn open(&self) -> Result<Model> {
        let (_folder, path) = self.write();
        Model::open(path)
    }
}

fn write(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The converter's order of rows: pair j of a head at rows 2 j and 2 j + 1.
fn interleave(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let (head_dim, width) = (rows / heads, values.len() / rows);
    let mut out = Vec::new();
    for head in 0..heads {
        for pair in 0..head_dim / 2 {
            for side in 0..2 {
                let row = head * head_dim + side * head_dim / 2 + pair;
                out.extend(&values[row * width..(row + 1) * width]);
            }
        }
    }
    out
}

/// The dense fixture as a GGUF file of F32, and the folder it was made from.
fn converted() -> (Writer, Fixture) {
    let fixture = Fixture::dense();
    let model = Model::open(fixture.write()).unwrap();
    let mut writer = Writer {
        version: 3,
        metadata: Vec::new(),
        tensors: Vec::new(),
    };
    writer.set("general.architecture", Put::text("llama"));
    for (name, value) in [
        ("embedding_length", 8),
        ("feed_forward_length", 12),
        ("block_count", 2),
        ("context_length", 2048),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 4),
    ] {
        writer.set(&format!("llama.{name}"), Put::U32(value));
    }
    writer.set("llama.attention.layer_norm_rms_epsilon", Put::F32(1e-6));
    let flat = |matrix: ndarray::Array2<f32>| matrix.into_iter().collect::<Vec<_>>();
    writer.put_floats("token_embd.weight", &[8, 6], &flat(model.embedding().unwrap()));
    writer.put_floats("output.weight", &[8, 6], &flat(model.lm_head().unwrap()));
    writer.put_floats("output_norm.weight", &[8], &model.final_norm().unwrap().to_vec());
    for block in 0..2 {
        let weights = model.block(block).unwrap();
        let name = |part: &str| format!("blk.{block}.{part}.weight");
        writer.put_floats(&name("attn_norm"), &[8], &weights.input_layernorm.to_vec());
        writer.put_floats(
            &name("ffn_norm"),
            &[8],
            &weights.post_attention_layernorm.to_vec(),
        );
        let parts = [
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        ];
        for (part, layer) in parts.into_iter().zip(&weights.layers) {
            let aqlm_vocabulary::LinearWeight::Dense(weight) = &layer.weight else {
                panic!("a quantized layer")
            };
            let (rows, columns) = weight.dim();
            let values: Vec<f32> = weight.iter().copied().collect();
            let values = match part {
                "attn_q" => interleave(&values, 2, rows),
                "attn_k" => interleave(&values, 1, rows),
                _ => values,
            };
            writer.put_floats(&name(part), &[columns as u64, rows as u64], &values);
        }
    }
    (writer, fixture)
}

#[test]
fn a_converted_model_is_the_model() {
    let (writer, fixture) = converted();
    for version in [2, 3] {
        let model = Writer {
            version,
            ..converted().0
        }
        .open()
        .unwrap();
        let original = Model::open(fixture.write()).unwrap();
        assert_eq!(model.config(), original.config());
        assert_eq!(model.embedding().unwrap(), original.embedding().unwrap());
        assert_eq!(model.lm_head().unwrap(), original.lm_head().unwrap());
        assert_eq!(model.final_norm().unwrap(), original.final_norm().unwrap());
        for block in 0..2 {
            assert_eq!(model.block(block).unwrap(), original.block(block).unwrap());
        }
    }
    assert!(
        writer
            .open()
            .unwrap()
            .inventory()
            .layers
            .iter()
            .all(|layer| layer.bits_per_parameter == 32.0)
    );
}

#[test]
fn the_head_is_tied_when_there_is_none() {
    let (mut writer, _) = converted();
    writer.tensors.retain(|tensor| tensor.0 != "output.weight");
    let model = writer.open().unwrap();
    assert!(model.config().tied);
    assert_eq!(model.lm_head().unwrap(), model.embedding().unwrap());
}

#[test]
fn f32_metadata_become_the_decimals_that_were_meant() {
    let (mut writer, _) = converted();
    writer.set("llama.attention.layer_norm_rms_epsilon", Put::F32(1e-5));
    writer.set("llama.rope.freq_base", Put::F32(500_000.0));
    let model = writer.open().unwrap();
    assert_eq!(model.config().final_norm.epsilon, 1e-5);
    assert_eq!(model.config().attention().rotary.as_ref().unwrap().theta, 5e5);
}

#[test]
fn other_architectures_are_refused_by_name() {
    let (mut writer, _) = converted();
    writer.set("general.architecture", Put::text("gpt2"));
    assert!(
        matches!(writer.open(), Err(Error::Unsupported { field, expected, found, .. })
        if field == "general.architecture" && expected == "llama" && found == "\"gpt2\"")
    );
    writer.remove("general.architecture");
    assert!(matches!(writer.open(), Err(Error::Field { field, .. }) if field == "general.architecture"));
}

#[test]
fn types_that_are_not_read_are_refused_by_name() {
    let (mut writer, _) = converted();
    writer.tensor("blk.1.ffn_up.weight").2 = 13;
    assert!(
        matches!(writer.open(), Err(Error::TensorType { tensor, found, .. })
        if tensor == "blk.1.ffn_up.weight" && found == "Q5_K")
    );
}

#[test]
fn tensors_that_a_llama_does_not_have_are_refused() {
    let (mut writer, _) = converted();
    writer.put_floats("blk.0.attn_q_norm.weight", &[4], &[1.0; 4]);
    assert!(
        matches!(writer.open(), Err(Error::UnexpectedTensor { tensor, .. }) if tensor == "blk.0.attn_q_norm.weight")
    );
}

#[test]
fn missing_tensors_and_metadata_are_named() {
    let (mut writer, _) = converted();
    writer.tensors.retain(|tensor| tensor.0 != "blk.1.ffn_up.weight");
    assert!(matches!(writer.open(), Err(Error::MissingTensor { tensor, .. })
        if tensor == "model.layers.1.mlp.up_proj.weight"));
    let (mut writer, _) = converted();
    writer.remove("llama.block_count");
    assert!(matches!(writer.open(), Err(Error::Field { field, .. }) if field == "llama.block_count"));
    let (mut writer, _) = converted();
    writer.set("llama.block_count", Put::text("two"));
    assert!(matches!(writer.open(), Err(Error::Field { found, .. }) if found == "\"two\""));
}

#[test]
fn arithmetic_that_is_not_implemented_is_refused() {
    for (name, value) in [
        ("llama.rope.scaling.type", Put::text("yarn")),
        ("llama.rope.dimension_count", Put::U32(2)),
        ("llama.expert_count", Put::U32(8)),
        ("llama.attention.value_length", Put::U32(8)),
    ] {
        let (mut writer, _) = converted();
        writer.set(name, value);
        assert!(
            matches!(writer.open(), Err(Error::Unsupported { field, .. }) if field == name),
            "{name}"
        );
    }
}

#[test]
fn linear_scaling_and_windows_are_honoured() {
    let (mut writer, _) = converted();
    writer.set("llama.rope.scaling.type", Put::text("linear"));
    writer.set("llama.rope.scaling.factor", Put::F32(4.0));
    writer.set("llama.attention.sliding_window", Put::U32(16));
    let model = writer.open().unwrap();
    assert_eq!(
        model.config().attention().rotary.as_ref().unwrap().scaling,
        aqlm_vocabulary::RopeScaling::Linear { factor: 4.0 }
    );
    assert_eq!(model.config().attention().window, Some(16));
}

/// The divisors as the converter computes them, in f32.
fn llama3_divisors(factor: f32, theta: f32, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|pair| {
            let frequency = 1.0 / theta.powf(2.0 * pair as f32 / head_dim as f32);
            let wavelength = std::f32::consts::TAU / frequency;
            if wavelength < 8192.0 / 4.0 {
                1.0
            } else if wavelength > 8192.0 {
                factor
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect()
}

#[test]
fn llama3s_frequencies_are_recognised_and_others_refused() {
    for (factor, head_dim) in [(8.0, 128), (32.0, 64), (32.0, 128)] {
        let divisors = llama3_divisors(factor, 500_000.0, head_dim);
        assert_eq!(llama3_factor(&divisors, 5e5, head_dim), Some(f64::from(factor)));
        assert_eq!(llama3_factor(&divisors, 1e4, head_dim), None);
        let mut off = divisors.clone();
        off[head_dim / 4] *= 1.01;
        assert_eq!(llama3_factor(&off, 5e5, head_dim), None);
        assert_eq!(llama3_factor(&divisors[1..], 5e5, head_dim), None);
    }
    let (mut writer, _) = converted();
    writer.put_floats(ROPE_FACTORS, &[2], &[1.0, 3.0]);
    assert!(matches!(writer.open(), Err(Error::UnexpectedTensor { tensor, .. }) if tensor == ROPE_FACTORS));
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let (mut writer, _) = converted();
    writer.tensor("blk.0.ffn_up.weight").3[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(
        matches!(writer.open().unwrap().block(0), Err(Error::NotFinite { tensor, element: 0, .. })
        if tensor == "model.layers.0.mlp.up_proj.weight")
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = converted().0.bytes();
    // every cut in the header, a sample of those in the data
    for length in (4..1500).chain((1500..bytes.len()).step_by(61)) {
        let (_folder, path) = write(&bytes[..length]);
        let result = Model::open(path);
        assert!(
            matches!(result, Err(Error::Truncated { .. })),
            "{length}: {result:?}"
        );
    }
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    let bytes = converted().0.bytes();
    // number of tensors, number of fields, length of the first name
    for position in [8, 16, 24] {
        let mut bytes = bytes.clone();
        bytes[position..position + 8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        let (_folder, path) = write(&bytes);
        assert!(Model::open(path).is_err(), "{position}");
    }
    for list in [Put::Floats(vec![1.0]), Put::Texts(vec!["a".into()])] {
        let mut writer = converted().0;
        writer.metadata.insert(0, ("x".into(), list));
        let mut bytes = writer.bytes();
        // magic, version, two counts, name, kind of field, kind of elements: then the count
        let count = 24 + 9 + 4 + 4;
        for lie in [u64::MAX, 1 << 61, 1 << 32, bytes.len() as u64] {
            bytes[count..count + 8].copy_from_slice(&lie.to_le_bytes());
            let (_folder, path) = write(&bytes);
            assert!(
                matches!(Model::open(path), Err(Error::Truncated { what, .. }) if what == "x"),
                "{lie}"
            );
        }
    }
}

#[test]
fn tensors_outside_or_on_top_of_each_other_are_refused() {
    let writer = converted().0;
    let bytes = writer.bytes();
    // the second tensor's offset is the last field of its header
    let name = b"output.weight";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    let offset = at + name.len() + 4 + 2 * 8 + 4;
    for (value, overlap) in [(0_u64, true), (1 << 40, false), (u64::MAX - 31, false)] {
        let mut bytes = bytes.clone();
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        let (_folder, path) = write(&bytes);
        match Model::open(path) {
            Err(Error::Offsets { tensor, .. }) if overlap => assert_eq!(tensor, "token_embd.weight"),
            Err(Error::Truncated { .. }) if !overlap => {}
            other => panic!("{value}: {other:?}"),
        }
    }
    let mut unaligned = bytes.clone();
    unaligned[offset] = 8;
    let (_folder, path) = write(&unaligned);
    assert!(
        matches!(Model::open(path), Err(Error::Offsets { expected, .. }) if expected.contains("multiple of 32"))
    );
}

#[test]
fn shapes_that_overflow_or_split_a_block_are_refused() {
    let mut writer = converted().0;
    writer.tensor("blk.0.ffn_up.weight").1 = vec![1 << 40, 1 << 40];
    assert!(matches!(writer.open(), Err(Error::Offsets { .. })));
    let mut writer = converted().0;
    writer.tensor("blk.0.ffn_up.weight").2 = 8;
    assert!(
        matches!(writer.open(), Err(Error::Offsets { expected, .. }) if expected.contains("multiple of 32 elements"))
    );
}

#[test]
fn other_versions_and_files_are_refused() {
    for version in [0, 1, 4, 3_u32.swap_bytes()] {
        let writer = Writer {
            version,
            ..converted().0
        };
        assert!(matches!(writer.open(), Err(Error::Header { .. })), "{version}");
    }
    let (_folder, path) = write(b"GGML and so on");
    assert!(matches!(Model::open(path), Err(Error::Kind { .. })));
    let mut writer = converted().0;
    writer.set("general.alignment", Put::U32(24));
    assert!(matches!(writer.open(), Err(Error::Field { field, .. }) if field == "general.alignment"));
}

#[test]
fn a_quantized_file_becomes_a_folder() {
    let (mut writer, _) = converted();
    let up = writer.tensor("blk.0.ffn_up.weight");
    // the same bytes as rows of F16: half as wide, so give twice as many
    up.2 = 1;
    up.3 = (0..96)
        .flat_map(|index| f16::from_f32(index as f32 / 8.0).to_le_bytes())
        .collect();
    with_tokenizer(&mut writer);
    let (_folder, path) = writer.write();
    let source = Model::open(path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    crate::model::write::write_dense(&out, &source, &crate::model::write::WriteOptions::default()).unwrap();
    let written = Model::open(&out).unwrap();
    assert_eq!(written.config(), source.config());
    assert_eq!(written.storage(), StorageType::F32);
    for block in 0..2 {
        assert_eq!(written.block(block).unwrap(), source.block(block).unwrap());
    }
    let (ours, theirs) = (written.tokenizer().unwrap(), source.tokenizer().unwrap());
    assert_eq!(
        ours.encode("ab ba", true).unwrap(),
        theirs.encode("ab ba", true).unwrap()
    );
    assert_eq!((ours.bos(), ours.stops()), (theirs.bos(), theirs.stops()));
}

/// Six SentencePiece tokens.
fn with_tokenizer(writer: &mut Writer) {
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

/// A file of so many tokens and nothing else that matters, with this vocabulary.
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
    // é has no token: its two bytes
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
    let json: Value = serde_json::from_slice(embedded::TOKENIZER).unwrap();
    let (tokens, merges) = byte_level_parts(&json);
    let types = (0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
    tokenizer_of(tokens, |writer| {
        writer.set("tokenizer.ggml.model", Put::text("gpt2"));
        writer.set("tokenizer.ggml.pre", Put::text(pre));
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
    // digits that a kind splits individually give the tokens of the single digits
    for pre in ["smollm", "qwen2"] {
        let single: Vec<u32> = "2468"
            .chars()
            .flat_map(|digit| pieces(pre, &digit.to_string()))
            .collect();
        assert_eq!(pieces(pre, "2468"), single, "{pre}");
    }
    // and Llama 3 adds BOS by itself
    assert!(byte_level("llama-bpe").unwrap().adds_bos());
    assert!(!byte_level("qwen2").unwrap().adds_bos());
    // a newline after punctuation belongs to it for GPT-4's splitting, not for GPT-2's; both keep the text
    pieces("llama-bpe", "Well.\n\n1234 isn't  it\r\n");
    pieces("gpt-2", "Well.\n\n1234 isn't  it\r\n");
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

/// stories260K's tokenizer came from SentencePiece with scores 0, -1, -2, … after its byte tokens.
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

/// The fetched SmolLM2 (`aqlm fetch smollm2-135m`, or the file that AQLM_SMOLLM2 names).
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
    let peer = crate::model::tensors::SafetensorFiles::open_file(&peer).unwrap();
    let expected = peer.read_integers("input_ids").unwrap();
    let found: Vec<i64> = stream.tokens()[..expected.len()]
        .iter()
        .map(|&id| i64::from(id))
        .collect();
    assert_eq!(found, expected);
}
