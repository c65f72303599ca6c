//! Named arrays of numbers in a safetensors file: states of a run and what a teacher said.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use aqlm_formats::durable;
use aqlm_formats::{Error, Result};

/// One array on its way to a file.
pub(crate) struct NewArray {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl NewArray {
    pub(crate) fn f64(name: impl Into<String>, values: &[f64]) -> Self {
        Self {
            name: name.into(),
            dtype: Dtype::F64,
            shape: vec![values.len()],
            bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    pub(crate) fn f32<'a>(
        name: impl Into<String>,
        shape: &[usize],
        values: impl Iterator<Item = &'a f32>,
    ) -> Self {
        Self {
            name: name.into(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: values.flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    pub(crate) fn u32<'a>(
        name: impl Into<String>,
        shape: &[usize],
        values: impl Iterator<Item = &'a u32>,
    ) -> Self {
        Self {
            name: name.into(),
            dtype: Dtype::U32,
            shape: shape.to_vec(),
            bytes: values.flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}

/// Writes arrays durably and returns the SHA-256 of the file.
pub(crate) fn write(path: &Path, arrays: &[NewArray]) -> Result<String> {
    let broken = |error: safetensors::SafeTensorError| Error::Header {
        path: path.into(),
        expected: "arrays whose bytes fit their shapes".into(),
        found: error.to_string(),
    };
    let views = arrays
        .iter()
        .map(|array| {
            Ok((
                &array.name,
                TensorView::new(array.dtype, array.shape.clone(), &array.bytes)?,
            ))
        })
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(broken)?;
    let bytes = safetensors::serialize(views, None).map_err(broken)?;
    durable::write_file(path, |file| std::io::Write::write_all(file, &bytes))?;
    Ok(durable::sha256(&bytes))
}

/// A file of arrays, read whole.
pub(crate) struct Arrays {
    path: std::path::PathBuf,
    bytes: Vec<u8>,
}

impl Arrays {
    /// Reads a file, when its checksum is the expected one.
    ///
    /// # Errors
    /// `Io`; `Digest` when the file is not the one that was written.
    pub(crate) fn read(path: &Path, sha256: &str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let found = durable::sha256(&bytes);
        if found != sha256 {
            return Err(Error::Digest {
                path: path.into(),
                what: "sha256",
                expected: sha256.into(),
                found,
            });
        }
        Ok(Self {
            path: path.into(),
            bytes,
        })
    }

    /// The bytes of an array and its shape.
    fn array(&self, name: &str, dtype: Dtype) -> Result<(Vec<usize>, Vec<u8>)> {
        let wrong = |found: String| Error::Header {
            path: self.path.clone(),
            expected: format!("an array `{name}` of {dtype:?}"),
            found,
        };
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| wrong(error.to_string()))?;
        let view = tensors.tensor(name).map_err(|error| wrong(error.to_string()))?;
        if view.dtype() != dtype {
            return Err(wrong(format!("{:?}", view.dtype())));
        }
        Ok((view.shape().to_vec(), view.data().to_vec()))
    }

    pub(crate) fn f64(&self, name: &str) -> Result<Vec<f64>> {
        let (_, bytes) = self.array(name, Dtype::F64)?;
        let (values, _) = bytes.as_chunks();
        Ok(values.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    }

    pub(crate) fn f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (shape, bytes) = self.array(name, Dtype::F32)?;
        let (values, _) = bytes.as_chunks();
        Ok((
            shape,
            values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        ))
    }

    pub(crate) fn u32(&self, name: &str) -> Result<(Vec<usize>, Vec<u32>)> {
        let (shape, bytes) = self.array(name, Dtype::U32)?;
        let (values, _) = bytes.as_chunks();
        Ok((
            shape,
            values.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
        ))
    }

    /// For arrays that do not have the shape that this run's settings imply.
    pub(crate) fn misshapen(&self, name: &str, expected: &str) -> Error {
        Error::Header {
            path: self.path.clone(),
            expected: format!("array `{name}` of {expected}"),
            found: "another shape".into(),
        }
    }
}
