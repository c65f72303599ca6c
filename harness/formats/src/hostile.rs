//! The readers of untrusted files as functions of bytes, for fuzzers (docs/checking.md).
//!
//! A reader may reject any input. It must not panic, and must not use more memory than the file's size
//! justifies.

use std::path::Path;

use crate::gguf;
use crate::huggingface::index::open_folder;
use crate::model::{Model, ModelConfig};
use crate::safetensors::SafetensorFiles;
use crate::tensors::TensorSource;
use crate::texts::parquet;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::sentence_piece::{self, Beside};

/// One reader.
#[derive(Clone, Copy)]
pub struct Target {
    /// the reader's name, which is also its corpus's name
    pub name: &'static str,
    /// reads the bytes; `folder` is a private empty folder that the reader may write to
    pub read: fn(&[u8], &Path),
    /// words of the format, inserted by mutations
    pub words: &'static [&'static str],
    /// minimal inputs that are valid or nearly so: the files of `harness/tools/fuzz/seeds`
    pub seeds: &'static [&'static [u8]],
}

/// The readers of this crate.
pub const TARGETS: [Target; 9] = [
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
        seeds: &[
            include_bytes!("../../tools/fuzz/seeds/safetensors/one.safetensors"),
            include_bytes!("../../tools/fuzz/seeds/safetensors/two.safetensors"),
        ],
    },
    Target {
        name: "gguf",
        read: |bytes, folder| {
            let path = folder.join("model.gguf");
            if std::fs::write(&path, bytes).is_ok()
                && let Ok(model) = Model::open(&path)
            {
                _ = model.tokenizer();
                _ = model.block(0);
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
        seeds: &[include_bytes!("../../tools/fuzz/seeds/gguf/small.gguf")],
    },
    Target {
        name: "split-gguf",
        read: |bytes, folder| {
            // the second part begins where its magic bytes do
            let second = bytes.windows(4).skip(1).position(|window| window == gguf::MAGIC);
            let (first, second) = bytes.split_at(second.map_or(bytes.len(), |position| position + 1));
            let path = folder.join("m-00001-of-00002.gguf");
            if std::fs::write(&path, first).is_ok()
                && std::fs::write(folder.join("m-00002-of-00002.gguf"), second).is_ok()
            {
                _ = gguf::decode_all(&path);
                if let Ok(model) = Model::open(&path) {
                    _ = model.block(0);
                }
            }
        },
        words: &[
            "GGUF",
            "split.no",
            "split.count",
            "split.tensors.count",
            "output.weight",
        ],
        seeds: &[include_bytes!("../../tools/fuzz/seeds/split-gguf/two.gguf")],
    },
    Target {
        name: "k-quants",
        read: |bytes, folder| {
            let path = folder.join("tensors.gguf");
            if std::fs::write(&path, bytes).is_ok() {
                _ = gguf::decode_all(&path);
            }
        },
        words: &[
            "GGUF",
            "\n\0\0\0",
            "\u{b}\0\0\0",
            "\u{d}\0\0\0",
            "\u{f}\0\0\0",
            "\0\u{1}\0\0\0\0\0\0",
        ],
        seeds: &[include_bytes!("../../tools/fuzz/seeds/k-quants/types.gguf")],
    },
    Target {
        name: "sentence-piece",
        read: |bytes, folder| {
            let path = folder.join("tokenizer.model");
            if let Ok(tokenizer) = sentence_piece::from_bytes(&path, bytes, &Beside::default()) {
                match tokenizer.encode("Once  upon a Time \u{e9}\u{1f600} ", true) {
                    Ok(ids) => _ = tokenizer.decode(&ids, true),
                    Err(_) => _ = tokenizer.decode(&[], true),
                }
            }
        },
        words: &[
            "\u{2581}",
            "\n\u{5}\n\u{3}",
            "\u{18}\u{1}",
            "\u{18}\u{2}",
            "<unk>",
            "<0x41>",
        ],
        seeds: &[
            include_bytes!("../../tools/fuzz/seeds/sentence-piece/bpe.model"),
            include_bytes!("../../tools/fuzz/seeds/sentence-piece/unigram.model"),
        ],
    },
    Target {
        name: "parquet",
        read: |bytes, folder| {
            let path = folder.join("rows.parquet");
            _ = parquet::texts(&path, bytes);
            if let Some(bytes) = with_footer(bytes) {
                _ = parquet::texts(&path, &bytes);
            }
        },
        words: &["PAR1", "text", "\u{15}\0", "\u{1c}", "\u{2c}", "\u{19}"],
        seeds: &[
            include_bytes!("../../tools/fuzz/seeds/parquet/snappy.parquet"),
            include_bytes!("../../tools/fuzz/seeds/parquet/plain.parquet"),
        ],
    },
    Target {
        name: "config",
        read: |bytes, folder| {
            _ = ModelConfig::from_text(&folder.join("config.json"), &String::from_utf8_lossy(bytes));
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
        seeds: &[
            include_bytes!("../../tools/fuzz/seeds/config/llama.json"),
            include_bytes!("../../tools/fuzz/seeds/config/mistral.json"),
        ],
    },
    Target {
        name: "tokenizer",
        read: |bytes, folder| {
            if let Ok(tokenizer) = Tokenizer::from_bytes(&folder.join("tokenizer.json"), bytes) {
                match tokenizer.encode("Once upon a time \u{e9}\u{1f600}", true) {
                    Ok(ids) => _ = tokenizer.decode(&ids, true),
                    Err(_) => _ = tokenizer.decode(&[], true),
                }
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
        seeds: &[include_bytes!("../../tools/fuzz/seeds/tokenizer/bpe.json")],
    },
    Target {
        name: "index",
        read: |bytes, folder| {
            let shard = folder.join("a.safetensors");
            let whole = include_bytes!("../../tools/fuzz/seeds/safetensors/one.safetensors");
            if (shard.is_file() || std::fs::write(&shard, whole).is_ok())
                && std::fs::write(folder.join("model.safetensors.index.json"), bytes).is_ok()
                && let Ok(files) = open_folder(folder)
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
        seeds: &[
            include_bytes!("../../tools/fuzz/seeds/index/one.json"),
            include_bytes!("../../tools/fuzz/seeds/index/missing.json"),
        ],
    },
];

/// A damaged parquet file whose last bytes again say where its metadata begin, so that the reader comes to
/// the pages: they begin as those of the seeds. `None` if they do not.
fn with_footer(bytes: &[u8]) -> Option<Vec<u8>> {
    // version 2, then a list of 3 columns
    let begin = bytes
        .windows(4)
        .rposition(|window| window == [0x15, 4, 0x19, 0x3c])?;
    let end = bytes.len().saturating_sub(8).max(begin);
    let length = (end - begin) as u32;
    Some([&bytes[..end], &length.to_le_bytes(), b"PAR1"].concat())
}

/// Reads every tensor found; offsets accepted by the header's check must be readable.
fn read_tensors(files: &SafetensorFiles) {
    for name in files.names() {
        _ = files.read_floats(&name);
        _ = files.read_integers(&name);
    }
}
