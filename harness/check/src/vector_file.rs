use std::path::{Path, PathBuf};

use ndarray::ArrayD;

use aqlm_formats::safetensors::SafetensorFiles;
use aqlm_formats::tensors::TensorSource;
use aqlm_formats::{Error, Result};

/// A file of expected values.
pub(super) struct VectorFile {
    path: PathBuf,
    tensors: SafetensorFiles,
}

impl VectorFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            tensors: SafetensorFiles::open_file(path)?,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.info(name).is_some()
    }

    /// A tensor of any numeric type as f64, exactly for f32 and 32-bit integers.
    pub(super) fn array(&self, name: &str) -> Result<ArrayD<f64>> {
        self.array_n(name)
    }

    /// A tensor with as many axes as `D`.
    pub(super) fn array_n<D: ndarray::Dimension>(&self, name: &str) -> Result<ndarray::Array<f64, D>> {
        self.tensors.read_as_f64(name)
    }

    /// Token ids of shape [sequences, tokens]; a tensor with one axis is one sequence.
    pub(super) fn sequences(&self, name: &str) -> Result<Vec<Vec<u32>>> {
        let ids = self.array(name)?;
        // a scalar is one sequence of one token
        let width = ids.shape().last().copied().unwrap_or(1).max(1);
        let ids: Vec<u32> = ids
            .iter()
            .map(|&id| {
                if id >= 0.0 && id <= f64::from(u32::MAX) {
                    Ok(id as u32)
                } else {
                    Err(Error::Field {
                        path: self.path.clone(),
                        field: name.to_owned(),
                        expected: "token ids".into(),
                        found: id.to_string(),
                    })
                }
            })
            .collect::<Result<_>>()?;
        Ok(ids.chunks(width).map(<[u32]>::to_vec).collect())
    }
}
