//! One finished block as one safetensors file, for the run folder.
//!
//! What is read equals what was written, bit for bit, and the same block gives the same bytes: resuming a run
//! may end in exactly the files of an uninterrupted one.

use std::path::Path;

use aqlm_vocabulary::{AqlmError, BlockWeights, LayerKind, Linear, LlamaConfig, Scheme};

use super::linear::{exact_storage, float_tensor, linear_tensors, read_linear, read_vector, refuse_rounding};
use crate::safetensors::{self, NewTensor, SafetensorFiles};
use crate::tensors::TensorSource;
use crate::{Error, Result};

const NORMS: [&str; 2] = ["input_layernorm.weight", "post_attention_layernorm.weight"];

/// Writes a block and returns the SHA-256 of the file, in hexadecimal.
///
/// Codebooks and scales are stored as f16; dense weights, biases and norms in the smallest of f16, bf16 and
/// f32 that holds them exactly.
///
/// # Errors
/// `Layer` when codebooks or scales are not rounded to f16 yet; `NotFinite`; `Io`.
pub fn write(path: &Path, block: &BlockWeights) -> Result<String> {
    safetensors::write(path, tensors_of(path, block)?)
}

fn tensors_of(path: &Path, block: &BlockWeights) -> Result<Vec<NewTensor>> {
    let exact = |_: &str, values: &[f32]| exact_storage(values);
    let mut tensors = Vec::new();
    for (name, norm) in NORMS
        .into_iter()
        .zip([&block.input_layernorm, &block.post_attention_layernorm])
    {
        let values = norm.to_vec();
        tensors.push(float_tensor(
            path,
            name.into(),
            vec![values.len()],
            &values,
            &exact,
        )?);
    }
    for kind in LayerKind::ALL {
        let linear = block.layer(kind);
        refuse_rounding(kind.path(), linear)?;
        tensors.extend(linear_tensors(path, kind.path(), linear, &exact)?);
    }
    Ok(tensors)
}

/// Reads a block of a model of this configuration.
///
/// # Errors
/// Those of [`SafetensorFiles::open_file`]; `MissingTensor`, `TensorShape`, `TensorType`, `NotFinite`,
/// `CodeOutOfRange` and `Layer` when the file does not fit the configuration.
pub fn read(path: &Path, config: &LlamaConfig) -> Result<BlockWeights> {
    let tensors = SafetensorFiles::open_file(path)?;
    let [q, k, v, o, gate, up, down] = LayerKind::ALL;
    let linear = |kind| read_layer(path, &tensors, config, kind);
    Ok(BlockWeights {
        input_layernorm: read_vector(&tensors, NORMS[0], config.hidden_size)?,
        post_attention_layernorm: read_vector(&tensors, NORMS[1], config.hidden_size)?,
        layers: [
            linear(q)?,
            linear(k)?,
            linear(v)?,
            linear(o)?,
            linear(gate)?,
            linear(up)?,
            linear(down)?,
        ],
    })
}

fn read_layer(
    path: &Path,
    tensors: &SafetensorFiles,
    config: &LlamaConfig,
    kind: LayerKind,
) -> Result<Linear> {
    let name = kind.path();
    let codebooks = format!("{name}.codebooks");
    // the shape of the codebooks says the scheme
    let scheme = match tensors.info(&codebooks) {
        None => None,
        Some(info) => Some(scheme_of(&info.shape).map_err(|source| Error::Layer {
            layer: format!("{}: {codebooks}", path.display()),
            source,
        })?),
    };
    let has_bias = tensors.info(&format!("{name}.bias")).is_some();
    read_linear(tensors, name, config.layer_shape(kind), scheme, has_bias)
}

fn scheme_of(codebooks: &[usize]) -> std::result::Result<Scheme, AqlmError> {
    match codebooks {
        &[num, size, out_group, in_group] if size.is_power_of_two() => {
            Scheme::with_out_group(num, size.ilog2(), in_group, out_group)
        }
        other => Err(AqlmError::Shape {
            what: "codebooks".into(),
            expected: vec![1, 256, 1, 8],
            found: other.to_vec(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::{LinearWeight, QuantizedMatrix};
    use half::f16;
    use ndarray::{Array1, Array2, Array3, Array4};
    use proptest::prelude::*;

    use super::*;
    use crate::durable;
    use crate::model::Model;

    fn config() -> LlamaConfig {
        LlamaConfig {
            hidden_size: 8,
            intermediate_size: 12,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            ..Model::embedded().unwrap().config().clone()
        }
    }

    /// Pseudo-random bits, so that every value of a type turns up sooner or later.
    fn bits(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed | 1;
        move || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            state >> 20
        }
    }

    fn half(bits: u64) -> f16 {
        let value = f16::from_bits(bits as u16);
        if value.is_finite() {
            value
        } else {
            f16::from_bits(bits as u16 & 0x83ff)
        }
    }

    fn single(bits: u64) -> f32 {
        let value = f32::from_bits(bits as u32);
        if value.is_finite() {
            value
        } else {
            f32::from_bits(bits as u32 & 0x807f_ffff)
        }
    }

    fn block(scheme: Scheme, seed: u64) -> BlockWeights {
        let config = config();
        let mut next = bits(seed);
        let layers = LayerKind::ALL.map(|kind| {
            let (out_features, in_features) = config.layer_shape(kind);
            let bias = next()
                .is_multiple_of(2)
                .then(|| Array1::from_shape_fn(out_features, |_| single(next())));
            let groups = scheme.groups(out_features, in_features);
            let weight = match groups {
                Ok((out_groups, in_groups)) if !next().is_multiple_of(4) => {
                    let mask = (scheme.codebook_size() - 1) as u64;
                    let codes = Array3::from_shape_fn((out_groups, in_groups, scheme.num_codebooks), |_| {
                        (next() & mask) as u16
                    });
                    let codebooks = Array4::from_shape_fn(
                        (
                            scheme.num_codebooks,
                            scheme.codebook_size(),
                            scheme.out_group_size,
                            scheme.in_group_size,
                        ),
                        |_| half(next()).to_f64(),
                    );
                    let scales = Array1::from_shape_fn(out_groups, |_| half(next()).to_f64());
                    LinearWeight::Quantized(QuantizedMatrix::new(scheme, codes, codebooks, scales).unwrap())
                }
                _ => LinearWeight::Dense(Array2::from_shape_fn((out_features, in_features), |_| {
                    single(next())
                })),
            };
            Linear { weight, bias }
        });
        BlockWeights {
            input_layernorm: Array1::from_shape_fn(8, |_| half(next()).to_f32()),
            post_attention_layernorm: Array1::from_shape_fn(8, |_| single(next())),
            layers,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Every B, both group sides, biases and dense layers among quantized ones.
        #[test]
        fn a_block_round_trips(nbits in 1_u32..=16, num in 1_usize..4, out_group in 1_usize..3, seed: u64) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("block.safetensors");
            let block = block(Scheme::with_out_group(num, nbits, 4, out_group).unwrap(), seed);
            let checksum = write(&path, &block).unwrap();
            prop_assert_eq!(durable::sha256_of_file(&path).unwrap(), checksum.clone());
            let read = read(&path, &config()).unwrap();
            prop_assert_eq!(&read, &block);
            // equal as numbers is not enough: -0 must stay -0
            prop_assert_eq!(write(&path, &read).unwrap(), checksum);
        }
    }

    #[test]
    fn codebooks_that_f16_would_change_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.safetensors");
        let mut block = block(Scheme::new(1, 3, 4).unwrap(), 1);
        let scheme = Scheme::new(1, 1, 4).unwrap();
        let codebooks = Array4::from_elem((1, 2, 1, 4), 0.1);
        let matrix =
            QuantizedMatrix::new(scheme, Array3::zeros((8, 2, 1)), codebooks, Array1::ones(8)).unwrap();
        block.layer_mut(LayerKind::QProj).weight = LinearWeight::Quantized(matrix.clone());
        assert!(
            matches!(write(&path, &block), Err(Error::Layer { layer, .. }) if layer == "self_attn.q_proj")
        );
        assert!(!path.exists());
        block.layer_mut(LayerKind::QProj).weight = LinearWeight::Quantized(matrix.rounded_to_f16().unwrap());
        write(&path, &block).unwrap();
    }

    #[test]
    fn a_block_of_another_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.safetensors");
        write(&path, &block(Scheme::new(1, 3, 4).unwrap(), 1)).unwrap();
        let other = Model::embedded().unwrap();
        let result = read(&path, other.config());
        assert!(matches!(result, Err(Error::TensorShape { .. })));
    }

    #[test]
    fn dense_f16_blocks_stay_f16() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.safetensors");
        let model = Model::embedded().unwrap();
        let block = model.block(2).unwrap();
        write(&path, &block).unwrap();
        assert_eq!(read(&path, model.config()).unwrap(), block);
        let tensors = SafetensorFiles::open_file(&path).unwrap();
        let names = tensors.names();
        assert_eq!(names.len(), 9);
        assert!(
            names
                .iter()
                .all(|name| tensors.info(name).unwrap().dtype == "F16")
        );
    }
}
