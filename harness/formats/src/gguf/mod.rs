//! GGUF files, presented with the names and conventions of a Hugging Face folder.

mod architectures;
mod config;
mod container;
mod dequantize;
mod fields;
mod file;
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

use aqlm_vocabulary::ArchSpec;

use crate::huggingface::names::needed_tensors;
use crate::model::ModelConfig;
use crate::{Error, Result};
use architectures::Architecture;
use config::config;
pub(crate) use container::MAGIC;
use container::{Container, TensorPlace};
use fields::Fields;
use names::Holds;
use rope::{LONG_FACTORS, ROPE_FACTORS};
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
/// parts; `Unsupported` for another architecture, or RoPE variants that are not implemented; `Field` for
/// missing or contradictory metadata; `UnexpectedTensor` and `TensorShape` for tensors that do not fit the
/// architecture.
pub(crate) fn open(path: &Path) -> Result<Gguf> {
    let mut container = split::open(path)?;
    let path = &container.path().to_path_buf();
    let fields = |architecture| Fields {
        path,
        architecture,
        metadata: &container.metadata,
    };
    let architecture = Architecture::of(&fields(""))?;
    let fields = fields(architecture.name);
    let mut warnings = keys::check(&fields, architecture)?;
    warnings.extend(tokenizer::warning(&fields)?);
    let config = config(&container, &fields, architecture)?;
    let mut config = ModelConfig::from_json(path, config)?;
    config.warnings.extend(warnings);
    let places = std::mem::take(&mut container.tensors);
    let tensors = under_usual_names(places, architecture, &config.arch, &container)?;
    let tokenizer = GgufTokenizer::new(path, std::mem::take(&mut container.metadata));
    Ok(Gguf {
        config,
        tensors: GgufTensors {
            container,
            architecture,
            tensors,
        },
        tokenizer,
    })
}

/// The tensors that the model needs, under the names of a Hugging Face folder.
///
/// # Errors
/// `UnexpectedTensor` for a tensor that the model does not need; `TensorShape` for experts of another number.
fn under_usual_names(
    places: BTreeMap<String, TensorPlace>,
    architecture: &Architecture,
    arch: &ArchSpec,
    container: &Container,
) -> Result<BTreeMap<String, Tensor>> {
    let needed = needed_tensors(arch);
    let experts = arch.blocks.iter().filter_map(|block| block.mlp.routed());
    let experts = experts.map(|mlp| mlp.experts.len()).max().unwrap_or(0);
    let mut tensors = BTreeMap::new();
    for (name, place) in places {
        if name == ROPE_FACTORS || LONG_FACTORS.contains(&name.as_str()) {
            continue;
        }
        let path = container.path_of(&place);
        let shape = place.shape.clone();
        let other_number = || Error::TensorShape {
            path: path.into(),
            tensor: name.clone(),
            expected: [&[experts], &shape[shape.len().saturating_sub(2)..]].concat(),
            found: shape.clone(),
        };
        let named: Vec<(String, TensorPlace)> = match architecture.holds(&name, experts) {
            Some(Holds::One(usual)) => vec![(usual, place)],
            Some(Holds::Stacked(all)) if !all.is_empty() => {
                let matrix = match shape[..] {
                    [count, rows, columns] if count == experts => [rows, columns],
                    _ => return Err(other_number()),
                };
                let all = all.into_iter().enumerate();
                all.map(|(index, usual)| (usual, place.matrix(index, experts, matrix)))
                    .collect()
            }
            None | Some(Holds::Stacked(_)) => Vec::new(),
        };
        let unexpected = |reason: String| Error::UnexpectedTensor {
            path: path.into(),
            tensor: name.clone(),
            reason,
        };
        if named.iter().any(|(usual, _)| !needed.contains(usual)) || named.is_empty() {
            let model = architecture.name;
            return Err(unexpected(format!(
                "as a {model} model of this shape has no such tensor"
            )));
        }
        if named.iter().any(|(usual, _)| tensors.contains_key(usual)) {
            return Err(unexpected("as another tensor has the same weights".into()));
        }
        for (usual, place) in named {
            tensors.insert(usual.clone(), tensor(architecture, arch, &usual, place));
        }
    }
    Ok(tensors)
}

/// What the converter did to a tensor, which reading undoes.
fn tensor(architecture: &Architecture, arch: &ArchSpec, name: &str, mut place: TensorPlace) -> Tensor {
    let heads = |part: &str, heads| (architecture.interleaved && name.contains(part)).then_some(heads);
    // one row of weights may be stored as a list
    if name.contains("shared_expert_gate.") && place.shape.len() == 1 {
        place.shape.insert(0, 1);
    }
    let attention = arch.attention();
    Tensor {
        place,
        interleaved_heads: heads(".q_proj.", attention.heads).or(heads(".k_proj.", attention.kv_heads)),
        one_plus: architecture.one_plus && name.ends_with("norm.weight"),
    }
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
