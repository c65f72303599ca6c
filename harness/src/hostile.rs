//! The readers of files from elsewhere, each as one function of bytes: what fuzzers call (docs/checking.md).
//!
//! A reader may refuse anything, but must not panic, and must not take more memory than the file justifies.

use std::path::Path;

use crate::model::tensors::{SafetensorFiles, TensorSource};
use crate::model::{Model, ModelConfig};
use crate::pipeline::finished_blocks;
use crate::tokenizer::Tokenizer;

/// One reader.
#[derive(Clone, Copy)]
pub struct Target {
    /// its name, and that of its corpus
    pub name: &'static str,
    /// reads the bytes; `folder` is empty, its own, and may be written to
    pub read: fn(&[u8], &Path),
    /// words of the format, which mutations put in
    pub words: &'static [&'static str],
    /// the least that is valid, or nearly
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All readers.
pub const TARGETS: [Target; 6] = [
    Target {
        name: "safetensors",
        read: |bytes, folder| {
            let path = folder.join("model.safetensors");
            if std::fs::write(&path, bytes).is_ok()
                && let Ok(file) = SafetensorFiles::open_file(&path)
            {
                read_tensors(&file);
            }
        },
        words: &[
            "\"dtype\":",
            "\"F16\"",
            "\"shape\":",
            "\"data_offsets\":",
            "[0,8]",
            "__metadata__",
        ],
        seeds: safetensors_seeds,
    },
    Target {
        name: "gguf",
        read: |bytes, folder| {
            let path = folder.join("model.gguf");
            if std::fs::write(&path, bytes).is_ok()
                && let Ok(model) = Model::open(&path)
            {
                let _ = model.tokenizer();
                let _ = model.block(0);
            }
        },
        words: &[
            "GGUF",
            "general.architecture",
            "llama",
            "general.alignment",
            "llama.block_count",
            "token_embd.weight",
        ],
        seeds: gguf_seeds,
    },
    Target {
        name: "config",
        read: |bytes, folder| {
            let _ = ModelConfig::from_text(&folder.join("config.json"), &String::from_utf8_lossy(bytes));
        },
        words: &[
            "\"hidden_size\":",
            "\"rope_scaling\":",
            "\"llama3\"",
            "\"quantization_config\":",
            "\"num_codebooks\":",
            "\"sliding_window\":",
            "null",
            "1e308",
            "18446744073709551615",
        ],
        seeds: || {
            vec![
                include_bytes!("../../golden/tiny-stories-4m/config.json").to_vec(),
                br#"{"model_type":"mistral","architectures":["MistralForCausalLM"],"hidden_size":64,"intermediate_size":96,
                "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":32,"rms_norm_eps":1e-5,
                "sliding_window":8,"rope_theta":10000.0,"quantization_config":{"quant_method":"aqlm","in_group_size":8,
                "out_group_size":1,"num_codebooks":2,"nbits_per_codebook":8,"linear_weights_not_to_quantize":["lm_head"]}}"#
                    .to_vec(),
            ]
        },
    },
    Target {
        name: "tokenizer",
        read: |bytes, folder| {
            if let Ok(tokenizer) = Tokenizer::from_bytes(&folder.join("tokenizer.json"), bytes) {
                let ids = tokenizer
                    .encode("Once upon a time \u{e9}\u{1f600}", true)
                    .unwrap_or_default();
                let _ = tokenizer.decode(&ids, true);
            }
        },
        words: &[
            "\"type\":",
            "\"BPE\"",
            "\"merges\":",
            "\"vocab\":",
            "\"ByteLevel\"",
            "\"added_tokens\":",
            "\\u0120",
        ],
        seeds: || {
            vec![
                br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"<s>",
                "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,
                "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
                "post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,
                "use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
                "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
                "vocab":{"<s>":0,"a":1,"e":2,"t":3,"at":4},"merges":["a t"]}}"#
                    .to_vec(),
            ]
        },
    },
    Target {
        name: "index",
        read: |bytes, folder| {
            let shard = folder.join("a.safetensors");
            let whole = safetensors_seeds().swap_remove(0);
            if (shard.is_file() || std::fs::write(&shard, whole).is_ok())
                && std::fs::write(folder.join("model.safetensors.index.json"), bytes).is_ok()
                && let Ok(files) = SafetensorFiles::open_folder(folder)
            {
                read_tensors(&files);
            }
        },
        words: &[
            "\"weight_map\":",
            "\"metadata\":",
            "\"a.safetensors\"",
            "\"../a\"",
            "\"w\"",
            "total_size",
        ],
        seeds: || {
            vec![
                br#"{"metadata":{"total_size":8},"weight_map":{"w":"a.safetensors"}}"#.to_vec(),
                br#"{"weight_map":{"w":"a.safetensors","v":"b.safetensors"}}"#.to_vec(),
            ]
        },
    },
    Target {
        name: "journal",
        read: |bytes, folder| {
            if std::fs::write(folder.join("journal.jsonl"), bytes).is_ok() {
                let _ = finished_blocks(folder);
            }
        },
        words: &[
            "\"block\":",
            "\"file\":",
            "\"sha256\":",
            "\"report\":",
            "\n",
            "{}",
        ],
        seeds: || {
            vec![
                b"{\"block\":0,\"file\":\"blocks/block_0000.safetensors\",\"sha256\":\"00\",\"report\":{}}\n".to_vec(),
                b"{\"block\":0,\"file\":\"x\",\"sha256\":\"00\",\"report\":{\"block\":0,\"layers\":[],\"seconds\":1.0}}\n{\"block\":1"
                    .to_vec(),
            ]
        },
    },
];

/// Reads every tensor that was found: offsets that the header's check let through must be good.
fn read_tensors(files: &SafetensorFiles) {
    for name in files.names() {
        let _ = files.read_floats(&name);
        let _ = files.read_integers(&name);
    }
}

fn safetensors_seeds() -> Vec<Vec<u8>> {
    let file = |header: &str, data: &[u8]| -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    };
    vec![
        file(
            r#"{"w":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}"#,
            &[0; 8],
        ),
        file(
            r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"I8","shape":[2],"data_offsets":[4,6]}}"#,
            &[1, 2, 3, 4, 5, 6],
        ),
    ]
}

/// A GGUF file of version 3 with a few keys and one tensor.
fn gguf_seeds() -> Vec<Vec<u8>> {
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(3u64.to_le_bytes());
    text(&mut bytes, "general.architecture");
    bytes.extend(8u32.to_le_bytes());
    text(&mut bytes, "llama");
    text(&mut bytes, "llama.block_count");
    bytes.extend(4u32.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    text(&mut bytes, "tokenizer.ggml.tokens");
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(8u32.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    text(&mut bytes, "a");
    text(&mut bytes, "b");
    text(&mut bytes, "token_embd.weight");
    bytes.extend(2u32.to_le_bytes());
    bytes.extend(4u64.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    while !bytes.len().is_multiple_of(32) {
        bytes.push(0);
    }
    bytes.extend([0; 32]);
    vec![bytes]
}
