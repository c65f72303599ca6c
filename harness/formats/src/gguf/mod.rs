//! GGUF files of the llama architecture, presented with the names and conventions of a Hugging Face folder.

mod config;
mod container;
mod dequantize;
mod fields;
mod keys;
mod metadata;
mod names;
mod reader;
mod rope;
mod split;
mod tensors;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::Path;

use crate::model::ModelConfig;
use crate::{Error, Result};
use config::config;
pub(crate) use container::MAGIC;
use fields::Fields;
use names::hugging_face_name;
use rope::ROPE_FACTORS;
use tensors::{GgufTensors, Tensor};
pub(crate) use tokenizer::GgufTokenizer;

/// A model's description in a GGUF file.
pub(crate) struct Gguf {
    pub(crate) config: ModelConfig,
    pub(crate) tensors: GgufTensors,
    pub(crate) tokenizer: GgufTokenizer,
}

/// Opens a file, with all other parts if it is one of several, and interprets its metadata.
///
/// # Errors
/// `Io`, `Truncated`, `Header`, `Offsets` and `TensorType` for a file that cannot be read; `Kind` for missing
/// parts; `Unsupported` for
/// another architecture, experts, or RoPE variants that are not implemented; `Field` for missing or
/// contradictory metadata; `UnexpectedTensor` for tensors that a Llama does not have.
pub(crate) fn open(path: &Path) -> Result<Gguf> {
    let mut container = split::open(path)?;
    let path = &container.path().to_path_buf();
    let fields = Fields {
        path,
        metadata: &container.metadata,
    };
    let architecture = fields.text("general.architecture")?;
    if architecture != "llama" {
        return Err(fields.unsupported("general.architecture", "llama", format!("{architecture:?}")));
    }
    let mut warnings = keys::check(&fields)?;
    warnings.extend(tokenizer::warning(&fields)?);
    let config = config(&container, &fields)?;
    let mut config = ModelConfig::from_json(path, config)?;
    config.warnings.extend(warnings);
    let mut tensors = BTreeMap::new();
    for (name, place) in std::mem::take(&mut container.tensors) {
        if name == ROPE_FACTORS {
            continue;
        }
        let Some(hugging_face) = hugging_face_name(&name) else {
            return Err(Error::UnexpectedTensor {
                path: container.path_of(&place).into(),
                tensor: name,
                reason: "as a Llama has no such tensor".into(),
            });
        };
        // the converter reorders the rows of q and k for the other RoPE convention
        let interleaved_heads = if hugging_face.contains(".q_proj.") {
            Some(config.arch.attention().heads)
        } else if hugging_face.contains(".k_proj.") {
            Some(config.arch.attention().kv_heads)
        } else {
            None
        };
        tensors.insert(
            hugging_face,
            Tensor {
                place,
                interleaved_heads,
            },
        );
    }
    let tokenizer = GgufTokenizer::new(path, std::mem::take(&mut container.metadata));
    Ok(Gguf {
        config,
        tensors: GgufTensors { container, tensors },
        tokenizer,
    })
}

/// Decodes every tensor of a file, whatever its architecture, for fuzzers. Returns the number of elements.
///
/// # Errors
/// Those of [`open`] for a file that cannot be read.
pub(crate) fn decode_all(path: &Path) -> Result<usize> {
    let container = split::open(path)?;
    let tensors = container.tensors.values();
    let counts = tensors.map(|place| Ok(place.kind.decode(&container.read(place)?).len()));
    counts.sum()
}

#[cfg(test)]
mod tests;
