//! One finished block as one safetensors file, for the run folder.
//!
//! A block read back equals the block written, bit for bit, and the same block gives the same bytes. A
//! resumed run can therefore end with exactly the files of an uninterrupted one.

use std::path::Path;

use aqlm_vocabulary::{AqlmError, BlockNorm, BlockSpec, BlockWeights, Linear, LinearSpec, Scheme};

use super::linear::{exact_storage, float_tensor, linear_tensors, read_linear, refuse_rounding};
use super::norms::{norm_tensors, read_norm};
use crate::safetensors::{self, NewTensor, SafetensorFiles};
use crate::tensors::TensorSource;
use crate::{Error, Result};

/// Writes a block and returns the SHA-256 of the file, in hexadecimal.
///
/// Codebooks and scales are stored as f16. Dense weights, biases and norms are stored in the smallest of f16,
/// bf16 and f32 that represents them exactly.
///
/// # Errors
/// `Layer` when codebooks or scales are not rounded to f16 yet; `NotFinite`; `Io`.
pub fn write(path: &Path, spec: &BlockSpec, block: &BlockWeights) -> Result<String> {
    safetensors::write(path, tensors_of(path, spec, block)?)
}

fn tensors_of(path: &Path, spec: &BlockSpec, block: &BlockWeights) -> Result<Vec<NewTensor>> {
    let exact = |_: &str, values: &[f32]| exact_storage(values);
    let mut tensors = Vec::new();
    for (BlockNorm { name, norm, .. }, parameters) in spec.norms.iter().zip(&block.norms) {
        for (name, values) in norm_tensors(&format!("{name}.weight"), *norm, parameters) {
            tensors.push(float_tensor(path, name, vec![values.len()], &values, &exact)?);
        }
    }
    for (LinearSpec { name, .. }, linear) in spec.linears.iter().zip(&block.layers) {
        refuse_rounding(name, linear)?;
        tensors.extend(linear_tensors(path, name, linear, &exact)?);
    }
    Ok(tensors)
}

/// Reads a block of this shape.
///
/// # Errors
/// Those of [`SafetensorFiles::open_file`]; `MissingTensor`, `TensorShape`, `TensorType`, `NotFinite`,
/// `CodeOutOfRange` and `Layer` when the file does not fit the shape.
pub fn read(path: &Path, spec: &BlockSpec) -> Result<BlockWeights> {
    let tensors = SafetensorFiles::open_file(path)?;
    Ok(BlockWeights {
        norms: spec
            .norms
            .iter()
            .map(|norm| {
                let name = format!("{}.weight", norm.name);
                read_norm(&tensors, &name, norm.norm, norm.width)
            })
            .collect::<Result<_>>()?,
        layers: spec
            .linears
            .iter()
            .map(|linear| read_layer(path, &tensors, linear))
            .collect::<Result<_>>()?,
    })
}

fn read_layer(path: &Path, tensors: &SafetensorFiles, spec: &LinearSpec) -> Result<Linear> {
    let name = &spec.name;
    let codebooks = format!("{name}.codebooks");
    // the shape of the codebooks determines the scheme
    let scheme = match tensors.info(&codebooks) {
        None => None,
        Some(info) => Some(scheme_of(&info.shape).map_err(|source| Error::Layer {
            layer: format!("{}: {codebooks}", path.display()),
            source,
        })?),
    };
    let has_bias = tensors.info(&format!("{name}.bias")).is_some();
    read_linear(tensors, name, spec.shape, scheme, has_bias)
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
    use aqlm_vocabulary::llama::{LlamaBlock, QUERY};
    use aqlm_vocabulary::{LinearWeight, QuantizedMatrix, Rope, RopeScaling};
    use half::f16;
    use ndarray::{Array1, Array2, Array3, Array4};
    use proptest::prelude::*;

    use super::*;
    use crate::durable;
    use crate::model::Model;

    fn spec() -> BlockSpec {
        BlockSpec::llama(LlamaBlock {
            hidden_size: 8,
            intermediate_size: 12,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            epsilon: 1e-5,
            rotary: Rope {
                theta: 1e4,
                scaling: RopeScaling::None,
            },
            window: None,
        })
    }

    /// Pseudo-random bits, so that every value of a type eventually occurs.
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
        let spec = spec();
        let mut next = bits(seed);
        let layers = spec.linears.iter().map(|linear| {
            let (out_features, in_features) = linear.shape;
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
        let layers = layers.collect();
        BlockWeights {
            norms: vec![
                Array1::from_shape_fn(8, |_| half(next()).to_f32()),
                Array1::from_shape_fn(8, |_| single(next())),
            ],
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
            let checksum = write(&path, &spec(), &block).unwrap();
            prop_assert_eq!(durable::sha256_of_file(&path).unwrap(), checksum.clone());
            let read = read(&path, &spec()).unwrap();
            prop_assert_eq!(&read, &block);
            // numerical equality is not enough: -0 must stay -0
            prop_assert_eq!(write(&path, &spec(), &read).unwrap(), checksum);
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
        block.layer_mut(QUERY).weight = LinearWeight::Quantized(matrix.clone());
        assert!(
            matches!(write(&path, &spec(), &block), Err(Error::Layer { layer, .. }) if layer == "self_attn.q_proj")
        );
        assert!(!path.exists());
        block.layer_mut(QUERY).weight = LinearWeight::Quantized(matrix.rounded_to_f16().unwrap());
        write(&path, &spec(), &block).unwrap();
    }

    #[test]
    fn a_block_of_another_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.safetensors");
        write(&path, &spec(), &block(Scheme::new(1, 3, 4).unwrap(), 1)).unwrap();
        let other = Model::embedded().unwrap();
        let result = read(&path, &other.config().blocks[0]);
        assert!(matches!(result, Err(Error::TensorShape { .. })));
    }

    #[test]
    fn dense_f16_blocks_stay_f16() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.safetensors");
        let model = Model::embedded().unwrap();
        let block = model.block(2).unwrap();
        write(&path, &model.config().blocks[2], &block).unwrap();
        assert_eq!(read(&path, &model.config().blocks[2]).unwrap(), block);
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
