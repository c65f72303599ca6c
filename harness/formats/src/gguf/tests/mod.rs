//! GGUF files generated from a small model, intact and damaged.

mod damage;
mod families;
mod model;
mod split;
mod tokenizer;

use std::path::PathBuf;

use super::*;
use crate::model::Model;
use crate::model::fixture::Fixture;

/// A metadata value to write.
#[derive(Clone)]
enum Put {
    U32(u32),
    F32(f32),
    Flag(bool),
    Flags(Vec<bool>),
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
                Put::Flags(list) => {
                    kind(9);
                    kind(7);
                    out.extend((list.len() as u64).to_le_bytes());
                    out.extend(list.iter().map(|&value| u8::from(value)));
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

/// The converter's row order: pair j of a head is rows 2 j and 2 j + 1.
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

/// The dense fixture as an F32 GGUF file, and the folder from which it was converted.
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
        writer.put_floats(&name("attn_norm"), &[8], &weights.norms[0].to_vec());
        writer.put_floats(&name("ffn_norm"), &[8], &weights.norms[1].to_vec());
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
