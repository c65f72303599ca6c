//! Reading and writing one linear layer as named tensors: dense, or codes, codebooks and scales.

use std::path::Path;

use aqlm_vocabulary::{AqlmError, Linear, LinearWeight, QuantizedMatrix, Scheme};
use half::{bf16, f16};
use ndarray::{Array1, Array2, Array3, Array4};

use crate::model::StorageType;
use crate::safetensors::{Dtype, NewTensor};
use crate::tensors::TensorSource;
use crate::{Error, Result};

/// Error for a source that returned another number of elements than its header promised.
fn unshaped(tensors: &dyn TensorSource, tensor: &str, error: &ndarray::ShapeError) -> Error {
    Error::Internal(format!(
        "{}: tensor `{tensor}` was read with other elements than its shape says: {error}",
        tensors.path().display()
    ))
}

pub(crate) fn read_matrix(
    tensors: &dyn TensorSource,
    name: &str,
    shape: (usize, usize),
) -> Result<Array2<f32>> {
    tensors.expect(name, &[shape.0, shape.1])?;
    let values = tensors.read_floats(name)?;
    Array2::from_shape_vec(shape, values).map_err(|error| unshaped(tensors, name, &error))
}

pub(crate) fn read_vector(tensors: &dyn TensorSource, name: &str, length: usize) -> Result<Array1<f32>> {
    tensors.expect(name, &[length])?;
    Ok(Array1::from_vec(tensors.read_floats(name)?))
}

/// Reads a layer of this (out_features, in_features); with a scheme, a quantized one.
pub(crate) fn read_linear(
    tensors: &dyn TensorSource,
    name: &str,
    shape: (usize, usize),
    scheme: Option<Scheme>,
    has_bias: bool,
) -> Result<Linear> {
    let bias = has_bias
        .then(|| read_vector(tensors, &format!("{name}.bias"), shape.0))
        .transpose()?;
    let weight = match scheme {
        Some(scheme) => LinearWeight::Quantized(read_quantized(tensors, name, scheme, shape)?),
        None => LinearWeight::Dense(read_matrix(tensors, &format!("{name}.weight"), shape)?),
    };
    Ok(Linear { weight, bias })
}

fn read_quantized(
    tensors: &dyn TensorSource,
    layer: &str,
    scheme: Scheme,
    shape: (usize, usize),
) -> Result<QuantizedMatrix> {
    let in_layer = |source| Error::Layer {
        layer: format!("{}: {layer}", tensors.path().display()),
        source,
    };
    let (out_groups, in_groups) = scheme.groups(shape.0, shape.1).map_err(in_layer)?;
    let [codes_name, codebooks_name, scales_name] =
        ["codes", "codebooks", "scales"].map(|part| format!("{layer}.{part}"));
    let code_shape = [out_groups, in_groups, scheme.num_codebooks];
    tensors.expect(&codes_name, &code_shape)?;
    let codes = Array3::from_shape_vec(code_shape, read_codes(tensors, &codes_name, scheme.nbits)?)
        .map_err(|error| unshaped(tensors, &codes_name, &error))?;
    let codebook_shape = codebook_shape(scheme);
    tensors.expect(&codebooks_name, &codebook_shape)?;
    let codebooks = Array4::from_shape_vec(codebook_shape, tensors.read_floats(&codebooks_name)?)
        .map_err(|error| unshaped(tensors, &codebooks_name, &error))?;
    tensors.expect(&scales_name, &[out_groups, 1, 1, 1])?;
    let scales = Array1::from_vec(tensors.read_floats(&scales_name)?);
    QuantizedMatrix::new(scheme, codes, codebooks.mapv(f64::from), scales.mapv(f64::from)).map_err(in_layer)
}

/// [M, 2^B, out_group_size, in_group_size].
pub(crate) fn codebook_shape(scheme: Scheme) -> [usize; 4] {
    [
        scheme.num_codebooks,
        scheme.codebook_size(),
        scheme.out_group_size,
        scheme.in_group_size,
    ]
}

/// The type in which codes of B bits are stored.
pub(crate) fn code_type(nbits: u32) -> Dtype {
    if nbits <= 8 { Dtype::I8 } else { Dtype::I16 }
}

/// Reads codes, which are stored as two's complement of B bits so that int8 and int16 can hold them.
fn read_codes(tensors: &dyn TensorSource, name: &str, nbits: u32) -> Result<Vec<u16>> {
    let half = 1_i64 << (nbits - 1);
    let mask = (1_i64 << nbits) - 1;
    let stored = tensors.read_integers(name)?;
    if let Some(element) = stored.iter().position(|code| !(-half..half).contains(code)) {
        let info = tensors.info(name);
        return Err(Error::CodeOutOfRange {
            path: info.map_or_else(|| tensors.path().into(), |info| info.path),
            tensor: name.into(),
            element,
            low: -half,
            high: half,
            found: stored[element],
        });
    }
    Ok(stored.into_iter().map(|code| (code & mask) as u16).collect())
}

/// The inverse of [`read_codes`]: 2^B is subtracted from values of 2^(B-1) and above.
fn code_bytes(codes: &Array3<u16>, nbits: u32) -> Vec<u8> {
    let half = 1_i32 << (nbits - 1);
    let signed = codes.iter().map(|&code| {
        let code = i32::from(code);
        if code >= half { code - 2 * half } else { code }
    });
    if nbits <= 8 {
        signed.flat_map(|code| (code as i8).to_le_bytes()).collect()
    } else {
        signed.flat_map(|code| (code as i16).to_le_bytes()).collect()
    }
}

/// A layer's tensors. `storage` decides the type of a dense layer's weight and bias by name. Codebooks and
/// scales are f16, as the layout requires.
pub(super) fn linear_tensors(
    path: &Path,
    name: &str,
    linear: &Linear,
    storage: &dyn Fn(&str, &[f32]) -> StorageType,
) -> Result<Vec<NewTensor>> {
    let mut tensors = Vec::new();
    match &linear.weight {
        LinearWeight::Dense(weight) => {
            let (rows, columns) = weight.dim();
            let values: Vec<f32> = weight.iter().copied().collect();
            tensors.push(float_tensor(
                path,
                format!("{name}.weight"),
                vec![rows, columns],
                &values,
                storage,
            )?);
        }
        LinearWeight::Quantized(matrix) => {
            tensors.push(NewTensor {
                name: format!("{name}.codes"),
                dtype: code_type(matrix.scheme().nbits),
                shape: matrix.codes().shape().to_vec(),
                bytes: code_bytes(matrix.codes(), matrix.scheme().nbits),
            });
            let halves = |part: &str, shape: Vec<usize>, values: &mut dyn Iterator<Item = f64>| {
                let name = format!("{name}.{part}");
                Ok::<_, Error>(NewTensor {
                    dtype: Dtype::F16,
                    shape,
                    bytes: half_bytes(path, &name, values)?,
                    name,
                })
            };
            tensors.push(halves(
                "codebooks",
                codebook_shape(matrix.scheme()).to_vec(),
                &mut matrix.codebooks().iter().copied(),
            )?);
            tensors.push(halves(
                "scales",
                vec![matrix.scales().len(), 1, 1, 1],
                &mut matrix.scales().iter().copied(),
            )?);
        }
    }
    if let Some(bias) = &linear.bias {
        let values = bias.to_vec();
        tensors.push(float_tensor(
            path,
            format!("{name}.bias"),
            vec![values.len()],
            &values,
            storage,
        )?);
    }
    Ok(tensors)
}

/// A tensor of floats; `storage` decides its type by name.
pub(super) fn float_tensor(
    path: &Path,
    name: String,
    shape: Vec<usize>,
    values: &[f32],
    storage: &dyn Fn(&str, &[f32]) -> StorageType,
) -> Result<NewTensor> {
    let storage = storage(&name, values);
    let not_finite = |element: usize, value: f64| Error::NotFinite {
        path: path.into(),
        tensor: name.clone(),
        element,
        value,
    };
    let (dtype, bytes) = match storage {
        StorageType::F16 => {
            let values = &mut values.iter().copied().map(f64::from);
            (Dtype::F16, half_bytes(path, &name, values)?)
        }
        StorageType::BF16 => {
            let mut bytes = Vec::with_capacity(2 * values.len());
            for (element, &value) in values.iter().enumerate() {
                let rounded = bf16::from_f32(value);
                if !rounded.is_finite() {
                    return Err(not_finite(element, rounded.to_f64()));
                }
                bytes.extend(rounded.to_le_bytes());
            }
            (Dtype::BF16, bytes)
        }
        StorageType::F32 => {
            if let Some(element) = values.iter().position(|value| !value.is_finite()) {
                return Err(not_finite(element, f64::from(values[element])));
            }
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (Dtype::F32, bytes)
        }
    };
    Ok(NewTensor {
        name,
        dtype,
        shape,
        bytes,
    })
}

/// Converts to f16; rejects values that overflow.
fn half_bytes(path: &Path, name: &str, values: &mut dyn Iterator<Item = f64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(2 * values.size_hint().0);
    for (element, value) in values.enumerate() {
        let rounded = f16::from_f64(value);
        if !rounded.is_finite() {
            return Err(Error::NotFinite {
                path: path.into(),
                tensor: name.into(),
                element,
                value: rounded.to_f64(),
            });
        }
        bytes.extend(rounded.to_le_bytes());
    }
    Ok(bytes)
}

/// The smallest type that represents all values exactly. Nothing is lost, and dense f16 models stay small.
pub(super) fn exact_storage(values: &[f32]) -> StorageType {
    let exact = |round: fn(f32) -> f32| {
        values
            .iter()
            .all(|&value| round(value).to_bits() == value.to_bits())
    };
    if exact(|value| f16::from_f32(value).to_f32()) {
        StorageType::F16
    } else if exact(|value| bf16::from_f32(value).to_f32()) {
        StorageType::BF16
    } else {
        StorageType::F32
    }
}

/// Rejects a quantized layer whose codebooks or scales would change when rounded to f16.
pub(super) fn refuse_rounding(name: &str, linear: &Linear) -> Result<()> {
    let LinearWeight::Quantized(matrix) = &linear.weight else {
        return Ok(());
    };
    let exact = |value: &f64| f16::from_f64(*value).to_f64().to_bits() == value.to_bits();
    for (part, exact) in [
        ("codebooks", matrix.codebooks().iter().all(exact)),
        ("scales", matrix.scales().iter().all(exact)),
    ] {
        if !exact {
            return Err(Error::Layer {
                layer: name.into(),
                source: AqlmError::argument(
                    part,
                    "values rounded to f16 (QuantizedMatrix::rounded_to_f16)",
                    "others",
                ),
            });
        }
    }
    Ok(())
}
