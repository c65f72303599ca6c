//! Tensors by their Hugging Face names, independent of their storage.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A tensor's description, known without reading the tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// the type in the format's own spelling, for example "F16" or "Q4_1"
    pub dtype: String,
    /// row-major
    pub shape: Vec<usize>,
    /// bytes in the file
    pub bytes: u64,
    /// the file it is in
    pub path: PathBuf,
}

/// A source of a model's tensors; implemented by every weight format.
pub trait TensorSource: Send + Sync + std::fmt::Debug {
    /// The file or folder, for errors.
    fn path(&self) -> &Path;

    /// All names, sorted.
    fn names(&self) -> Vec<String>;

    /// A tensor's description, if the tensor exists.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// The tensor's name as the file spells it, for errors.
    fn name_in_file(&self, name: &str) -> String {
        name.into()
    }

    /// The error for a tensor that does not exist.
    fn missing(&self, name: &str) -> Error {
        Error::MissingTensor {
            path: self.path().into(),
            tensor: self.name_in_file(name),
        }
    }

    /// A tensor's numbers in f32, row-major. All values of f16, bf16 and f32 are exact; f64 is rounded.
    ///
    /// # Errors
    /// `MissingTensor`; `TensorType` when it is not a tensor of floats; `NotFinite`; `Io`.
    fn read_floats(&self, name: &str) -> Result<Vec<f32>>;

    /// A tensor of whole numbers, row-major.
    ///
    /// # Errors
    /// `MissingTensor`; `TensorType` when it is not a tensor of integers; `Io`.
    fn read_integers(&self, name: &str) -> Result<Vec<i64>>;

    /// Checks a tensor's presence and shape without reading it.
    ///
    /// # Errors
    /// `MissingTensor`; `Shard` when it is in a shard that is not there; `TensorShape`.
    fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let info = self.info(name).ok_or_else(|| self.missing(name))?;
        if info.shape == shape {
            Ok(info)
        } else {
            Err(Error::TensorShape {
                path: info.path,
                tensor: self.name_in_file(name),
                expected: shape.to_vec(),
                found: info.shape,
            })
        }
    }
}

/// Rejects NaN and infinities; the error names the first one.
pub(crate) fn refuse_not_finite(path: &Path, tensor: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(element) => Err(Error::NotFinite {
            path: path.into(),
            tensor: tensor.into(),
            element,
            value: f64::from(values[element]),
        }),
    }
}
