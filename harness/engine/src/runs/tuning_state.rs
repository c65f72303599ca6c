use std::path::Path;

use aqlm_vocabulary::{ParameterState, TuningState};

use super::arrays::{Arrays, NewArray, write};
use aqlm_formats::{Error, Result};

const STEPS: &str = "steps";

/// Writes a state exactly and returns the SHA-256 of the file.
pub(super) fn write_state(path: &Path, state: &TuningState) -> Result<String> {
    let mut arrays = vec![NewArray::u32(STEPS, &[1], [state.steps].iter())];
    for part in &state.parameters {
        let name = &part.name;
        arrays.push(NewArray::f64(format!("{name}.values"), &part.values));
        arrays.push(NewArray::f64(format!("{name}.first"), &part.first));
        arrays.push(NewArray::f64(format!("{name}.second"), &part.second));
    }
    write(path, &arrays)
}

/// Reads the state of a run whose parameters are those of `like`.
///
/// # Errors
/// `Io`, `Digest`, and `Header` when the file lacks a parameter.
pub(super) fn read_state(path: &Path, sha256: &str, like: &TuningState) -> Result<TuningState> {
    let arrays = Arrays::read(path, sha256)?;
    let (_, steps) = arrays.u32(STEPS)?;
    let steps = *steps
        .first()
        .ok_or_else(|| arrays.misshapen(STEPS, "one number"))?;
    let parameters = like
        .parameters
        .iter()
        .map(|part| {
            let name = &part.name;
            Ok::<_, Error>(ParameterState {
                parameter: part.parameter,
                name: name.clone(),
                values: arrays.f64(&format!("{name}.values"))?,
                first: arrays.f64(&format!("{name}.first"))?,
                second: arrays.f64(&format!("{name}.second"))?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(TuningState { steps, parameters })
}

#[cfg(test)]
mod tests {
    use aqlm_vocabulary::Parameter;

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
                    Parameter::InputNorm(3),
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
