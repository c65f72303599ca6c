use std::path::Path;

use aqlm_vocabulary::{CodeState, ModelTraining, ParameterState, PartOutline, StatePart};
use ndarray::{Array1, ArrayView1, Ix1};

use aqlm_formats::safetensors::{NewTensor, Place, PlacedTensors, SafetensorFiles};
use aqlm_formats::tensors::TensorSource;
use aqlm_formats::{Error, Result};

const STEPS: &str = "steps";

/// Writes the state of a tuner without loss of precision and returns the SHA-256 of the file. One part of it
/// is in memory at a time. With `only_finite`, a state with parameters or buffers that are not finite is not
/// written: `None`.
///
/// # Errors
/// Errors of the machine; `Io`.
pub(super) fn write_state(
    path: &Path,
    tuner: &impl ModelTraining,
    only_finite: bool,
) -> Result<Option<String>> {
    let outline = tuner.outline();
    // Most backends keep buffers in f32. Where one does not, the first part of the kind tells, and all parts
    // are looked at before the file is laid out again.
    let mut wide = vec![[false; ARRAYS]; outline.len()];
    for attempt in 0..2 {
        let mut places = vec![Place::of::<u32>(STEPS, &[1])];
        for (part, wide) in outline.iter().zip(&wide) {
            places.extend(layout(part, *wide));
        }
        let mut file = PlacedTensors::new(path, places)?;
        file.put(&NewTensor::new(STEPS, &[1], [tuner.steps()]))?;
        let mut fits = true;
        for (number, wide) in wide.iter_mut().enumerate() {
            let part = tuner.state_part(number)?;
            if only_finite && !is_finite(&part) {
                return Ok(None);
            }
            let needed = widths(&part);
            fits &= needed == *wide;
            *wide = needed;
            if fits {
                for tensor in tensors(&part, needed) {
                    file.put(&tensor)?;
                }
            }
        }
        if fits {
            return file.finish().map(Some);
        }
        debug_assert_eq!(attempt, 0, "the second layout is that of the numbers");
    }
    Err(Error::Internal(
        "a training state changed while it was written".into(),
    ))
}

/// Opens a state that has this checksum and the arrays of this outline.
///
/// # Errors
/// Those of [`SafetensorFiles::open_checked`]; `Shape` and its like for arrays that are missing or have other
/// shapes.
pub(super) fn open_state(path: &Path, sha256: &str, outline: &[PartOutline]) -> Result<SafetensorFiles> {
    let file = SafetensorFiles::open_checked(path, sha256)?;
    file.expect(STEPS, &[1])?;
    for part in outline {
        match part {
            PartOutline::Parameter { name, len, .. } => {
                for role in ["values", "first", "second"] {
                    file.expect(&format!("{name}.{role}"), &[*len])?;
                }
            }
            PartOutline::Codes { name, shape, .. } => {
                file.expect(&format!("{name}.codes"), shape)?;
                for (role, len) in buffer_lengths(part).into_iter().filter(|(_, len)| *len > 0) {
                    file.expect(&format!("{name}.{role}"), &[len])?;
                }
            }
        }
    }
    Ok(file)
}

/// Continues a tuner from such a state. One part of it is in memory at a time.
///
/// # Errors
/// As [`open_state`]; those of [`ModelTraining::check_part`] and of the machine. The tuner must not be used
/// then.
pub(super) fn restore_state(path: &Path, sha256: &str, tuner: &mut impl ModelTraining) -> Result<()> {
    let outline = tuner.outline();
    let file = open_state(path, sha256, &outline)?;
    let steps = file.read::<u32, Ix1>(STEPS)?[0];
    for (number, part) in outline.iter().enumerate() {
        let part = read_part(&file, part)?;
        tuner.check_part(number, &part)?;
        tuner.restore_part(steps, number, part)?;
    }
    Ok(tuner.restored(steps)?)
}

fn read_part(file: &SafetensorFiles, outline: &PartOutline) -> Result<StatePart> {
    match outline {
        PartOutline::Parameter { parameter, name, .. } => {
            let numbers =
                |role: &str| Ok::<_, Error>(file.read::<f64, Ix1>(&format!("{name}.{role}"))?.to_vec());
            Ok(StatePart::Parameter(ParameterState {
                parameter: *parameter,
                name: name.clone(),
                values: numbers("values")?,
                first: numbers("first")?,
                second: numbers("second")?,
            }))
        }
        PartOutline::Codes {
            block, layer, name, ..
        } => {
            let [buffer, first, second, metric] = buffer_lengths(outline).map(|(role, len)| {
                if len == 0 {
                    return Ok(Vec::new());
                }
                Ok::<_, Error>(file.read_as_f64::<Ix1>(&format!("{name}.{role}"))?.to_vec())
            });
            Ok(StatePart::Codes(CodeState {
                block: *block,
                layer: *layer,
                name: name.clone(),
                codes: file.read(&format!("{name}.codes"))?,
                buffer: buffer?,
                first: first?,
                second: second?,
                metric: metric?,
            }))
        }
    }
}

/// Number of arrays of a matrix with codes, besides its codes.
const ARRAYS: usize = 4;

/// What the file calls these arrays, and their lengths; all 0 for a parameter.
fn buffer_lengths(outline: &PartOutline) -> [(&'static str, usize); ARRAYS] {
    let lengths = match outline {
        PartOutline::Parameter { .. } => [0; ARRAYS],
        &PartOutline::Codes {
            len, first, metric, ..
        } => [len, first, len, metric],
    };
    let names = ["buffer", "buffer_first", "buffer_second", "gradient_products"];
    std::array::from_fn(|index| (names[index], lengths[index]))
}

/// These arrays.
fn buffers(part: &CodeState) -> [&Vec<f64>; ARRAYS] {
    [&part.buffer, &part.first, &part.second, &part.metric]
}

/// The tensors of a part, with f64 for the arrays that are wide.
fn layout(outline: &PartOutline, wide: [bool; ARRAYS]) -> Vec<Place> {
    match outline {
        PartOutline::Parameter { name, len, .. } => ["values", "first", "second"]
            .map(|role| Place::of::<f64>(format!("{name}.{role}"), &[*len]))
            .into(),
        PartOutline::Codes { name, shape, .. } => {
            let mut places = vec![Place::of::<u16>(format!("{name}.codes"), shape)];
            let arrays = buffer_lengths(outline).into_iter().zip(wide);
            for ((role, len), wide) in arrays.filter(|((_, len), _)| *len > 0) {
                let name = format!("{name}.{role}");
                places.push(if wide {
                    Place::of::<f64>(name, &[len])
                } else {
                    Place::of::<f32>(name, &[len])
                });
            }
            places
        }
    }
}

/// Which arrays of a part need f64: those of which f32 would lose a bit.
fn widths(part: &StatePart) -> [bool; ARRAYS] {
    let narrow = |value: &f64| f64::from(*value as f32).to_bits() == value.to_bits();
    match part {
        StatePart::Parameter(_) => [false; ARRAYS],
        StatePart::Codes(part) => buffers(part).map(|values| !values.iter().all(narrow)),
    }
}

fn tensors(part: &StatePart, wide: [bool; ARRAYS]) -> Vec<NewTensor> {
    match part {
        StatePart::Parameter(part) => [
            ("values", &part.values),
            ("first", &part.first),
            ("second", &part.second),
        ]
        .map(|(role, values)| NewTensor::of(format!("{}.{role}", part.name), &ArrayView1::from(values)))
        .into(),
        StatePart::Codes(part) => {
            let name = &part.name;
            let mut tensors = vec![NewTensor::of(format!("{name}.codes"), &part.codes)];
            let names = ["buffer", "buffer_first", "buffer_second", "gradient_products"];
            for ((role, values), wide) in names.into_iter().zip(buffers(part)).zip(wide) {
                let name = format!("{name}.{role}");
                match (values.is_empty(), wide) {
                    (true, _) => {}
                    (false, true) => tensors.push(NewTensor::of(name, &ArrayView1::from(values))),
                    (false, false) => {
                        let narrow = values.iter().map(|&value| value as f32);
                        tensors.push(NewTensor::of(name, &narrow.collect::<Array1<f32>>()));
                    }
                }
            }
            tensors
        }
    }
}

/// Whether what a model computes with is finite.
fn is_finite(part: &StatePart) -> bool {
    let values = match part {
        StatePart::Parameter(part) => &part.values,
        StatePart::Codes(part) => &part.buffer,
    };
    values.iter().all(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use aqlm_formats::safetensors::Dtype;
    use aqlm_vocabulary::{
        AqlmError, CodeChange, LayerId, ModelWeights, NormPlace, Parameter, PartSums, Rates, Target,
        TuningState,
    };
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
            metric: vec![0.1],
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
        let sha256 = write_state(&path, &Kept(state.clone()), true).unwrap().unwrap();
        let mut read = Kept(without_numbers(&state));
        restore_state(&path, &sha256, &mut read).unwrap();
        let read = read.0;
        assert_eq!(read, state);
        assert_eq!(read.parameters[0].values[1].to_bits(), (-0.0f64).to_bits());
        // a matrix in f32, for one in f32 loses a bit of the other
        let file = SafetensorFiles::open_checked(&path, &sha256).unwrap();
        let types = ["q_proj", "k_proj"].map(|layer| {
            let name = format!("model.layers.0.self_attn.{layer}.buffer");
            file.read_bytes(&name).unwrap().0
        });
        assert_eq!(types, [Dtype::F32, Dtype::F64]);

        let mut broken = state.clone();
        broken.codes[1].buffer[0] = f64::NAN;
        let other = folder.path().join("broken.safetensors");
        assert_eq!(write_state(&other, &Kept(broken.clone()), true).unwrap(), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_state(&other, &Kept(broken), false).unwrap().is_some());

        let mut longer = Kept(state.clone());
        longer.0.codes[0].second.push(0.0);
        longer.0.codes[0].buffer.push(0.0);
        let refused = restore_state(&path, &sha256, &mut longer);
        assert!(matches!(refused, Err(Error::TensorShape { .. })), "{refused:?}");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let refused = restore_state(&path, &sha256, &mut Kept(state));
        assert!(matches!(refused, Err(Error::Digest { .. })), "{refused:?}");
    }

    /// The same shapes, with zeros.
    fn without_numbers(state: &TuningState) -> TuningState {
        let mut state = state.clone();
        state.steps = 0;
        for part in &mut state.parameters {
            for list in [&mut part.values, &mut part.first, &mut part.second] {
                list.fill(0.0);
            }
        }
        for part in &mut state.codes {
            part.codes.fill(0);
            for list in [
                &mut part.buffer,
                &mut part.first,
                &mut part.second,
                &mut part.metric,
            ] {
                list.fill(0.0);
            }
        }
        state
    }

    /// A tuner that does nothing but have a state.
    struct Kept(TuningState);

    impl PartSums for Kept {
        fn take(&mut self) -> Vec<f64> {
            Vec::new()
        }

        fn add(&mut self, _sums: &[f64]) -> aqlm_vocabulary::Result<()> {
            Ok(())
        }
    }

    impl ModelTraining for Kept {
        type WeightGradient = ();

        fn losses(&mut self, _: &[&[u32]], _: &[Target<'_>]) -> aqlm_vocabulary::Result<Vec<f64>> {
            Ok(Vec::new())
        }

        fn accumulate(
            &mut self,
            _: &[&[u32]],
            _: &[Target<'_>],
            _: f64,
            _: &mut dyn FnMut(usize, LayerId, &()),
        ) -> aqlm_vocabulary::Result<Vec<f64>> {
            Ok(Vec::new())
        }

        fn step(&mut self, _: Rates) -> aqlm_vocabulary::Result<CodeChange> {
            Ok(CodeChange::default())
        }

        fn steps(&self) -> u32 {
            self.0.steps
        }

        fn outline(&self) -> Vec<PartOutline> {
            let parameters = self.0.parameters.iter().map(|part| PartOutline::Parameter {
                parameter: part.parameter,
                name: part.name.clone(),
                len: part.values.len(),
            });
            let codes = self.0.codes.iter().map(|part| PartOutline::Codes {
                block: part.block,
                layer: part.layer,
                name: part.name.clone(),
                shape: part.codes.dim().into(),
                len: part.buffer.len(),
                first: part.first.len(),
                metric: part.metric.len(),
            });
            parameters.chain(codes).collect()
        }

        fn state_part(&self, number: usize) -> aqlm_vocabulary::Result<StatePart> {
            let parameters = &self.0.parameters;
            Ok(match number.checked_sub(parameters.len()) {
                None => StatePart::Parameter(parameters[number].clone()),
                Some(number) => StatePart::Codes(self.0.codes[number].clone()),
            })
        }

        fn check_part(&self, number: usize, part: &StatePart) -> aqlm_vocabulary::Result<()> {
            self.outline()[number].check(part)
        }

        fn restore_part(&mut self, _: u32, number: usize, part: StatePart) -> aqlm_vocabulary::Result<()> {
            let parameters = self.0.parameters.len();
            match part {
                StatePart::Parameter(part) => self.0.parameters[number] = part,
                StatePart::Codes(part) => self.0.codes[number - parameters] = part,
            }
            Ok(())
        }

        fn restored(&mut self, steps: u32) -> aqlm_vocabulary::Result<()> {
            self.0.steps = steps;
            Ok(())
        }

        fn weights(&self) -> aqlm_vocabulary::Result<ModelWeights> {
            Err(AqlmError::Internal("no weights".into()))
        }

        fn first_not_finite(&mut self, _: &[&[u32]]) -> aqlm_vocabulary::Result<Option<String>> {
            Ok(None)
        }
    }
}
