use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ::safetensors::Dtype;

use super::write::{Slot, in_order, write_header};
use super::{Element, NewTensor};
use crate::durable::PlacedFile;
use crate::{Error, Result};

/// The name, type and shape of a tensor that will be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Place(Slot);

impl Place {
    /// A tensor of numbers of type `T`.
    pub fn of<T: Element>(name: impl Into<String>, shape: &[usize]) -> Self {
        Self(Slot {
            name: name.into(),
            dtype: T::DTYPE,
            shape: shape.to_vec(),
            bytes: (shape.iter().product::<usize>() * size_of::<T>()) as u64,
        })
    }
}

/// A file of tensors that are written one at a time, in any order. It has the bytes that
/// [`write()`](super::write()) would give it, and appears under its name when it is whole.
#[derive(Debug)]
pub struct PlacedTensors {
    file: PlacedFile,
    /// by name: the offset in the file, type and shape
    slots: BTreeMap<String, (u64, Dtype, Vec<usize>)>,
    missing: BTreeSet<String>,
}

impl PlacedTensors {
    /// Lays out a file with these tensors.
    ///
    /// # Errors
    /// `Io` with the file's name. `Internal` for two tensors of one name.
    pub fn new(path: &Path, places: Vec<Place>) -> Result<Self> {
        let mut slots: Vec<Slot> = places.into_iter().map(|Place(slot)| slot).collect();
        slots.sort_by(|a, b| in_order((a.dtype, &a.name), (b.dtype, &b.name)));
        let mut header = Vec::new();
        write_header(&mut header, &BTreeMap::new(), slots.iter()).map_err(Error::io(path, "write"))?;
        let file = PlacedFile::new(path)?;
        file.write_at(0, &header)?;
        let mut offset = header.len() as u64;
        let count = slots.len();
        let mut placed = BTreeMap::new();
        for slot in slots {
            placed.insert(slot.name, (offset, slot.dtype, slot.shape));
            offset += slot.bytes;
        }
        if placed.len() != count {
            return Err(Error::Internal(format!(
                "{}: two tensors of one name",
                path.display()
            )));
        }
        Ok(Self {
            file,
            missing: placed.keys().cloned().collect(),
            slots: placed,
        })
    }

    /// Writes one of the tensors.
    ///
    /// # Errors
    /// `Io` with the file's name. `Internal` for a tensor that has no place.
    pub fn put(&mut self, tensor: &NewTensor) -> Result<()> {
        match self.slots.get(&tensor.name) {
            Some((offset, dtype, shape)) if (*dtype, shape) == (tensor.dtype, &tensor.shape) => {
                self.file.write_at(*offset, &tensor.bytes)?;
                self.missing.remove(&tensor.name);
                Ok(())
            }
            _ => Err(Error::Internal(format!("tensor `{}` has no place", tensor.name))),
        }
    }

    /// Ends the file and returns its SHA-256 in hexadecimal.
    ///
    /// # Errors
    /// `Io` with the file's name. `Internal` when a tensor was not written.
    pub fn finish(self) -> Result<String> {
        if let Some(name) = self.missing.first() {
            return Err(Error::Internal(format!("tensor `{name}` was not written")));
        }
        self.file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::write;
    use super::*;

    #[test]
    fn in_any_order_the_bytes_are_those_of_a_file_written_at_once() {
        let tensors = [
            NewTensor::new("b", &[2, 2], [1.0f32, 2.0, 3.0, 4.0]),
            NewTensor::new("a", &[3], [1u16, 2, 3]),
            NewTensor::new("c", &[2], [0.1f64, 0.2]),
            NewTensor::new("none", &[0], [0.0f64; 0]),
        ];
        let folder = tempfile::tempdir().unwrap();
        let (whole, placed) = (folder.path().join("whole"), folder.path().join("placed"));
        let expected = write(&whole, tensors.to_vec()).unwrap();
        let places = || {
            vec![
                Place::of::<u16>("a", &[3]),
                Place::of::<f64>("none", &[0]),
                Place::of::<f64>("c", &[2]),
                Place::of::<f32>("b", &[2, 2]),
            ]
        };
        let mut file = PlacedTensors::new(&placed, places()).unwrap();
        for tensor in &tensors {
            assert!(!placed.exists());
            file.put(tensor).unwrap();
        }
        assert_eq!(file.finish().unwrap(), expected);
        assert_eq!(std::fs::read(&placed).unwrap(), std::fs::read(&whole).unwrap());

        let mut file = PlacedTensors::new(&folder.path().join("other"), places()).unwrap();
        file.put(&tensors[0]).unwrap();
        assert!(file.put(&NewTensor::new("a", &[2], [1u16, 2])).is_err());
        assert!(file.put(&NewTensor::new("a", &[3], [1u32, 2, 3])).is_err());
        assert!(file.finish().is_err());
        // nothing of it remains
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
