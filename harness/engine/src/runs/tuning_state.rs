use std::path::Path;

use aqlm_vocabulary::{CodeState, ParameterState, TuningState};
use ndarray::{Array1, ArrayView1, Ix1};

use aqlm_formats::safetensors::{NewTensor, SafetensorFiles, write};
use aqlm_formats::tensors::TensorSource;
use aqlm_formats::{Error, Result};

const STEPS: &str = "steps";

/// Writes a state without loss of precision and returns the SHA-256 of the file.
pub(super) fn write_state(path: &Path, state: &TuningState) -> Result<String> {
    let mut tensors = vec![NewTensor::new(STEPS, &[1], [state.steps])];
    for part in &state.parameters {
        let name = &part.name;
        for (role, values) in [
            ("values", &part.values),
            ("first", &part.first),
            ("second", &part.second),
        ] {
            tensors.push(NewTensor::of(format!("{name}.{role}"), &ArrayView1::from(values)));
        }
    }
    for part in &state.codes {
        let name = &part.name;
        tensors.push(NewTensor::of(format!("{name}.codes"), &part.codes));
        for (role, values) in buffers(part).into_iter().filter(|(_, values)| !values.is_empty()) {
            tensors.push(without_loss(format!("{name}.{role}"), values));
        }
    }
    write(path, tensors)
}

/// The arrays of a matrix with codes, besides its codes, by what the file calls them.
fn buffers(part: &CodeState) -> [(&'static str, &Vec<f64>); 3] {
    [
        ("buffer", &part.buffer),
        ("buffer_first", &part.first),
        ("buffer_second", &part.second),
    ]
}

/// In f32 if no bit is lost, else in f64. Buffers are as large as the weights, and most backends keep them in
/// f32.
fn without_loss(name: String, values: &[f64]) -> NewTensor {
    let narrow = |&value: &f64| value as f32;
    if values
        .iter()
        .all(|value| f64::from(narrow(value)).to_bits() == value.to_bits())
    {
        NewTensor::of(name, &values.iter().map(narrow).collect::<Array1<f32>>())
    } else {
        NewTensor::of(name, &ArrayView1::from(values))
    }
}

/// Reads a state with the same parameters (names and shapes) as `like`.
///
/// # Errors
/// Those of [`SafetensorFiles::open_checked`] and [`SafetensorFiles::read`].
pub(super) fn read_state(path: &Path, sha256: &str, like: &TuningState) -> Result<TuningState> {
    let file = SafetensorFiles::open_checked(path, sha256)?;
    let numbers = |name: &str| Ok::<_, Error>(file.read::<f64, Ix1>(name)?.to_vec());
    file.expect(STEPS, &[1])?;
    let steps = file.read::<u32, Ix1>(STEPS)?[0];
    let parameters = like
        .parameters
        .iter()
        .map(|part| {
            let name = &part.name;
            Ok::<_, Error>(ParameterState {
                parameter: part.parameter,
                name: name.clone(),
                values: numbers(&format!("{name}.values"))?,
                first: numbers(&format!("{name}.first"))?,
                second: numbers(&format!("{name}.second"))?,
            })
        })
        .collect::<Result<_>>()?;
    let wide = |name: &str| Ok::<_, Error>(file.read_as_f64::<Ix1>(name)?.to_vec());
    let codes = like
        .codes
        .iter()
        .map(|part| {
            let name = &part.name;
            let [buffer, first, second] = buffers(part).map(|(role, values)| {
                if values.is_empty() {
                    Ok(Vec::new())
                } else {
                    wide(&format!("{name}.{role}"))
                }
            });
            let codes = format!("{name}.codes");
            file.expect(&codes, part.codes.shape())?;
            Ok::<_, Error>(CodeState {
                block: part.block,
                layer: part.layer,
                name: name.clone(),
                codes: file.read(&codes)?,
                buffer: buffer?,
                first: first?,
                second: second?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(TuningState {
        steps,
        parameters,
        codes,
    })
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::{LayerId, NormPlace, Parameter};
    use ndarray::Array3;

    use super::*;

    #[test]
    fn a_state_comes_back_bit_for_bit_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let part = |parameter, name: &str, salt: f64| ParameterState {
            parameter,
            name: name.into(),
            values: vec![0.1 * salt, -0.0, f64::MIN_POSITIVE / 8.0],
            first: vec![1.0 / 3.0, salt, 0.0],
            second: vec![salt.sqrt(), 1e-300, 2.0],
        };
        let codes = |name: &str, buffer: Vec<f64>| CodeState {
            block: 0,
            layer: LayerId(0),
            name: name.into(),
            codes: Array3::from_shape_vec((1, 2, 1), vec![0, u16::MAX]).unwrap(),
            buffer,
            first: Vec::new(),
            second: vec![1e-300, 0.25, 7.0],
        };
        let state = TuningState {
            steps: 7,
            parameters: vec![
                part(Parameter::FinalNorm, "model.norm.weight", 2.0),
                part(
                    Parameter::Norm(3, NormPlace::BeforeAttention),
                    "model.layers.3.input_layernorm.weight",
                    5.0,
                ),
            ],
            codes: vec![
                codes("model.layers.0.self_attn.q_proj", vec![0.5, -0.0, 3.0]),
                codes("model.layers.0.self_attn.k_proj", vec![0.1, 1.0, 2.0]),
            ],
        };
        let sha256 = write_state(&path, &state).unwrap();
        let read = read_state(&path, &sha256, &state).unwrap();
        assert_eq!(read, state);
        assert_eq!(read.parameters[0].values[1].to_bits(), (-0.0f64).to_bits());
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(
            read_state(&path, &sha256, &state),
            Err(Error::Digest { .. })
        ));
    }
}
