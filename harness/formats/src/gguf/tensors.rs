use std::collections::BTreeMap;
use std::path::Path;

use super::architectures::Architecture;
use super::container::{Container, TensorPlace};
use crate::tensors::{TensorInfo, TensorSource, refuse_not_finite};
use crate::{Error, Result};

/// The tensors of a GGUF file.
#[derive(Debug)]
pub(crate) struct GgufTensors {
    pub(super) container: Container,
    pub(super) architecture: &'static Architecture,
    /// Hugging Face name -> location
    pub(super) tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) place: TensorPlace,
    /// number of heads, if the converter interleaved their rows
    pub(super) interleaved_heads: Option<usize>,
    /// whether the converter added 1 to all values
    pub(super) one_plus: bool,
}

impl TensorSource for GgufTensors {
    fn path(&self) -> &Path {
        self.container.path()
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let place = &self.tensors.get(name)?.place;
        Some(TensorInfo {
            dtype: format!("{:?}", place.kind),
            shape: place.shape.clone(),
            bytes: place.bytes,
            path: self.container.path_of(place).into(),
        })
    }

    fn name_in_file(&self, name: &str) -> String {
        let name_in_file = self.architecture.gguf_name(name);
        name_in_file.unwrap_or_else(|| name.into())
    }

    fn read_floats(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let mut values = tensor.place.kind.decode(&self.container.read(&tensor.place)?);
        if let Some(heads) = tensor.interleaved_heads {
            values = half_and_half(&values, heads, tensor.place.shape[0]);
        }
        if tensor.one_plus {
            for value in &mut values {
                *value -= 1.0;
            }
        }
        let path = self.container.path_of(&tensor.place);
        refuse_not_finite(path, &self.name_in_file(name), &values)?;
        Ok(values)
    }

    fn read_integers(&self, name: &str) -> Result<Vec<i64>> {
        let info = self.info(name).ok_or_else(|| self.missing(name))?;
        Err(Error::TensorType {
            path: info.path,
            tensor: self.name_in_file(name),
            expected: "integers".into(),
            found: info.dtype,
        })
    }
}

/// Reorders rows for RoPE's rotate-half convention. Pair j of a head moves from rows 2 j and 2 j + 1 in the
/// file to rows j and j + head_dim / 2.
fn half_and_half(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let head_dim = rows / heads;
    let width = values.len() / rows;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for side in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = head * head_dim + 2 * pair + side;
                out.extend(&values[row * width..(row + 1) * width]);
            }
        }
    }
    out
}
