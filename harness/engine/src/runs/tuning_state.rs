use std::path::Path;

use aqlm_vocabulary::{ParameterState, TuningState};
use ndarray::{ArrayView1, Ix1};

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
    write(path, tensors)
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
    Ok(TuningState { steps, parameters })
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::{NormPlace, Parameter};

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
