//! Small valid model folders, which tests damage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aqlm_vocabulary::Scheme;
use half::f16;
use serde_json::{Value, json};

use crate::safetensors::{Dtype, NewTensor, write};

/// Names and shapes of a block's linear layers.
const LAYERS: [(&str, (usize, usize)); 7] = [
    ("self_attn.q_proj", (8, 8)),
    ("self_attn.k_proj", (4, 8)),
    ("self_attn.v_proj", (4, 8)),
    ("self_attn.o_proj", (8, 8)),
    ("mlp.gate_proj", (12, 8)),
    ("mlp.up_proj", (12, 8)),
    ("mlp.down_proj", (8, 12)),
];

/// A model folder in memory.
pub(crate) struct Fixture {
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    folder: tempfile::TempDir,
}

impl Fixture {
    /// Two dense f16 blocks: hidden 8, ffn 12, 2 heads, 1 key head, vocabulary 6, untied head.
    pub(crate) fn dense() -> Self {
        let config = json!({
            "model_type": "llama", "vocab_size": 6, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "torch_dtype": "float16", "custom": "kept",
        });
        let mut fixture = Self {
            config,
            tensors: BTreeMap::new(),
            folder: tempfile::tempdir().unwrap(),
        };
        for (name, shape) in [
            ("model.embed_tokens.weight", vec![6, 8]),
            ("lm_head.weight", vec![6, 8]),
            ("model.norm.weight", vec![8]),
        ] {
            fixture.put_halves(name, &shape);
        }
        for block in 0..2 {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                fixture.put_halves(&format!("model.layers.{block}.{norm}.weight"), &[8]);
            }
            for (layer, (out_features, in_features)) in LAYERS {
                fixture.put_halves(
                    &format!("model.layers.{block}.{layer}.weight"),
                    &[out_features, in_features],
                );
            }
        }
        fixture
    }

    /// The same model with every layer quantized; codes count up from the smallest.
    pub(crate) fn quantized(scheme: Scheme) -> Self {
        let mut fixture = Self::dense();
        fixture.config["quantization_config"] = json!({
            "quant_method": "aqlm", "in_group_size": scheme.in_group_size, "out_group_size": scheme.out_group_size,
            "num_codebooks": scheme.num_codebooks, "nbits_per_codebook": scheme.nbits,
        });
        for block in 0..2 {
            for (layer, (out_features, in_features)) in LAYERS {
                let name = format!("model.layers.{block}.{layer}");
                let (out_groups, in_groups) = scheme.groups(out_features, in_features).unwrap();
                fixture.tensors.remove(&format!("{name}.weight"));
                let half = 1_i32 << (scheme.nbits - 1);
                let codes = (0..out_groups * in_groups * scheme.num_codebooks)
                    .map(|index| index as i32 % (2 * half) - half);
                let (dtype, bytes): (_, Vec<u8>) = if scheme.nbits <= 8 {
                    (Dtype::I8, codes.map(|code| code as i8 as u8).collect())
                } else {
                    (
                        Dtype::I16,
                        codes.flat_map(|code| (code as i16).to_le_bytes()).collect(),
                    )
                };
                let shape = vec![out_groups, in_groups, scheme.num_codebooks];
                fixture
                    .tensors
                    .insert(format!("{name}.codes"), (dtype, shape, bytes));
                fixture.put_halves(
                    &format!("{name}.codebooks"),
                    &[
                        scheme.num_codebooks,
                        scheme.codebook_size(),
                        scheme.out_group_size,
                        scheme.in_group_size,
                    ],
                );
                fixture.put_halves(&format!("{name}.scales"), &[out_groups, 1, 1, 1]);
            }
        }
        fixture
    }

    /// Adds an f16 tensor whose values differ between elements and between names.
    pub(crate) fn put_halves(&mut self, name: &str, shape: &[usize]) {
        let salt = name
            .bytes()
            .fold(7_usize, |sum, byte| (sum * 31 + byte as usize) % 1009);
        let bytes = (0..shape.iter().product())
            .flat_map(|index: usize| {
                let value = ((index * 37 + salt) % 201) as f32 / 64.0 - 1.5;
                f16::from_f32(value).to_le_bytes()
            })
            .collect();
        self.tensors
            .insert(name.into(), (Dtype::F16, shape.to_vec(), bytes));
    }

    /// Overwrites bytes of a tensor.
    pub(crate) fn damage(&mut self, name: &str, at: usize, bytes: &[u8]) {
        self.tensors.get_mut(name).unwrap().2[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes the folder and returns its path. The folder exists as long as the fixture.
    pub(crate) fn write(&self) -> PathBuf {
        let tensors = self
            .tensors
            .iter()
            .map(|(name, (dtype, shape, bytes))| NewTensor {
                name: name.clone(),
                dtype: *dtype,
                shape: shape.clone(),
                bytes: bytes.clone(),
            });
        let path = self.folder.path();
        std::fs::write(path.join("config.json"), self.config.to_string()).unwrap();
        write(&path.join("model.safetensors"), tensors.collect()).unwrap();
        path.into()
    }
}

/// A file in `../shared` beside the repository, or in `AQLM_SHARED`. If neither exists, prints why a test is
/// waived.
pub(crate) fn shared(relative: &str) -> Option<PathBuf> {
    let root = std::env::var_os("AQLM_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let path = root.join(relative);
    if path.exists() {
        return Some(path);
    }
    println!("waived: {} is not there", path.display());
    None
}
