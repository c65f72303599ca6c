//! The contents of a model as printed by `aqlm inspect`, from headers only.

use std::collections::BTreeSet;

use aqlm_vocabulary::Scheme;
use serde::{Deserialize, Serialize};

use super::Model;

/// One tensor of a model's files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// its name
    pub name: String,
    /// its shape, row-major
    pub shape: Vec<usize>,
    /// its type, in the format's own spelling
    pub dtype: String,
    /// bytes in the file
    pub bytes: u64,
}

/// One linear layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerEntry {
    /// path in the checkpoint, for example `model.layers.0.self_attn.q_proj`
    pub name: String,
    /// rows
    pub out_features: usize,
    /// columns
    pub in_features: usize,
    /// the AQLM scheme, if quantized
    pub scheme: Option<Scheme>,
    /// bits per parameter: by the paper's appendix H for AQLM layers, else from the bytes in the file
    pub bits_per_parameter: f64,
}

/// The contents of a model's files.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    /// all tensors, by name
    pub tensors: Vec<TensorEntry>,
    /// all linear layers of all blocks, in order
    pub layers: Vec<LayerEntry>,
    /// parameters of the model; a tied head counts once
    pub parameters: u64,
    /// bytes of all tensors
    pub bytes: u64,
    /// parameters in AQLM-quantized layers
    pub quantized_parameters: u64,
    /// average bits per parameter over the AQLM-quantized layers (codes, codebooks, scales); `None` without
    /// any
    pub quantized_bits_per_parameter: Option<f64>,
}

impl Model {
    /// The formats with fewer bits than 16 in which linear layers are stored, by name: AQLM schemes and types
    /// of GGUF. Empty for a model that is not quantized.
    pub fn quantized_formats(&self) -> BTreeSet<String> {
        let config = self.config();
        let mut formats = BTreeSet::new();
        for (block, spec) in config.blocks.iter().enumerate() {
            for layer in spec.layers() {
                let name = config.layer_name(block, layer);
                let stored = self.tensors.info(&format!("{name}.weight"));
                if let Some(scheme) = self.scheme_of(&name) {
                    formats.insert(format!("AQLM {scheme}"));
                } else if let Some(info) = stored
                    && !["F16", "BF16", "F32", "F64"].contains(&info.dtype.as_str())
                {
                    formats.insert(info.dtype);
                }
            }
        }
        formats
    }

    /// Lists tensors and layers, reading headers only.
    pub fn inventory(&self) -> Inventory {
        let tensors: Vec<TensorEntry> = self
            .listed()
            .into_iter()
            .map(|(name, info)| TensorEntry {
                name,
                shape: info.shape,
                dtype: info.dtype,
                bytes: info.bytes,
            })
            .collect();
        let config = self.config();
        let mut layers = Vec::new();
        let linears = config.blocks.iter().flat_map(|spec| &spec.linears);
        let names: BTreeSet<String> = linears.map(|linear| format!(".{}.", linear.name)).collect();
        let of_a_layer = |entry: &TensorEntry| names.iter().any(|name| entry.name.contains(name));
        let mut other_parameters: u64 = tensors
            .iter()
            .filter(|entry| !of_a_layer(entry))
            .map(|entry| entry.shape.iter().product::<usize>() as u64)
            .sum();
        let (mut quantized_parameters, mut quantized_bits, mut layer_parameters) = (0, 0.0, 0);
        for (block, spec) in config.blocks.iter().enumerate() {
            for layer in spec.layers() {
                let name = config.layer_name(block, layer);
                let (out_features, in_features) = spec.shape(layer);
                let parameters = (out_features * in_features) as u64;
                layer_parameters += parameters;
                if let Some(bias) = self.tensors.info(&format!("{name}.bias")) {
                    other_parameters += bias.shape.iter().product::<usize>() as u64;
                }
                let scheme = self.scheme_of(&name);
                let bits_per_parameter = match scheme {
                    Some(scheme) => {
                        quantized_parameters += parameters;
                        quantized_bits += scheme.bits(out_features, in_features);
                        scheme.bits_per_parameter(out_features, in_features)
                    }
                    None => self
                        .tensors
                        .info(&format!("{name}.weight"))
                        .map_or(f64::NAN, |info| 8.0 * info.bytes as f64 / parameters as f64),
                };
                layers.push(LayerEntry {
                    name,
                    out_features,
                    in_features,
                    scheme,
                    bits_per_parameter,
                });
            }
        }
        Inventory {
            bytes: tensors.iter().map(|entry| entry.bytes).sum(),
            parameters: other_parameters + layer_parameters,
            quantized_parameters,
            quantized_bits_per_parameter: (quantized_parameters > 0)
                .then(|| quantized_bits / quantized_parameters as f64),
            tensors,
            layers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_model_is_what_its_note_says() {
        let inventory = Model::embedded().unwrap().inventory();
        assert_eq!(inventory.tensors.len(), 4 * 9 + 3);
        assert_eq!(inventory.layers.len(), 28);
        // 2 x 2048 x 256 + 4 x (4 x 256^2 + 3 x 704 x 256 + 2 x 256) + 256
        assert_eq!(inventory.parameters, 4_262_144);
        assert_eq!(inventory.bytes, 2 * inventory.parameters);
        assert_eq!(inventory.quantized_bits_per_parameter, None);
        assert!(
            inventory
                .layers
                .iter()
                .all(|layer| layer.bits_per_parameter == 16.0)
        );
    }
}
