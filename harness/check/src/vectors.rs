use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors};

use super::{CaseRow, CheckReport, peer_checkpoints, peer_models, peer_ops};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::{Error, Result};

/// What `aqlm check --vectors` is asked to do.
#[derive(Debug, Clone)]
pub struct VectorOptions {
    /// backend that runs whole models
    pub backend: BackendKind,
    /// only cases of this operation
    pub op: Option<String>,
    /// only the case of this name
    pub case: Option<String>,
    /// model folders or files for the `models` layout, or folders that hold several
    pub models: Vec<PathBuf>,
}

impl VectorOptions {
    pub(super) fn wants(&self, op: &str, case: &str) -> bool {
        self.op.as_deref().is_none_or(|wanted| wanted == op)
            && self.case.as_deref().is_none_or(|wanted| wanted == case)
    }
}

/// Compares with vectors that peers computed. Three layouts are recognised by what the folder holds:
/// `index.json` (operations), sub-folders with `expected.safetensors` (AQLM checkpoints; or one such folder
/// itself), and `NAME.safetensors` with `input_ids` (whole models). A single file of the last kind will do,
/// too.
///
/// # Errors
/// `Error::Invalid` for a folder of none of these kinds, and unreadable files.
pub fn check_vectors(
    path: &Path,
    options: &VectorOptions,
    progress: &mut dyn FnMut(&CaseRow),
) -> Result<CheckReport> {
    let rows = if path.join("index.json").is_file() {
        peer_ops::check(path, options, progress)?
    } else if path.is_file() {
        peer_models::check(&[path.to_path_buf()], options, progress)?
    } else {
        let entries = std::fs::read_dir(path).map_err(Error::io(path, "read"))?;
        let mut entries: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        entries.sort();
        let is_checkpoint = |folder: &Path| folder.join("expected.safetensors").is_file();
        let checkpoints: Vec<PathBuf> = if is_checkpoint(path) {
            vec![path.to_path_buf()]
        } else {
            entries
                .iter()
                .filter(|entry| is_checkpoint(entry))
                .cloned()
                .collect()
        };
        let files: Vec<PathBuf> = entries
            .into_iter()
            .filter(|entry| entry.extension().is_some_and(|ext| ext == "safetensors"))
            .collect();
        if !checkpoints.is_empty() {
            peer_checkpoints::check(&checkpoints, options, progress)?
        } else if !files.is_empty() {
            peer_models::check(&files, options, progress)?
        } else {
            return Err(Error::invalid(
                &format!("--vectors {}", path.display()),
                "index.json, folders with expected.safetensors, or NAME.safetensors files",
                "none of them",
            ));
        }
    };
    Ok(CheckReport::new(rows))
}

/// A small safetensors file of expected values, in memory.
pub(super) struct VectorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl VectorFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let file = Self {
            path: path.to_path_buf(),
            bytes,
        };
        file.parse()?;
        Ok(file)
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| Error::Field {
            path: self.path.clone(),
            field: "header".into(),
            expected: "a safetensors file".into(),
            found: error.to_string(),
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.parse().is_ok_and(|tensors| tensors.names().contains(&name))
    }

    /// A tensor of any numeric type, as f64: exact for f32 and 32-bit integers.
    pub(super) fn array(&self, name: &str) -> Result<ArrayD<f64>> {
        let tensors = self.parse()?;
        let field = |expected: &str, found: String| Error::Field {
            path: self.path.clone(),
            field: name.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let tensor = tensors
            .tensor(name)
            .map_err(|error| field("a tensor of this name", error.to_string()))?;
        let data = tensor.data();
        let values: Vec<f64> = match tensor.dtype() {
            Dtype::F64 => data
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default()))
                .collect(),
            Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap_or_default())))
                .collect(),
            Dtype::I32 => data
                .chunks_exact(4)
                .map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap_or_default())))
                .collect(),
            Dtype::I64 => data
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()) as f64)
                .collect(),
            Dtype::F16 => data
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes(b.try_into().unwrap_or_default()).to_f64())
                .collect(),
            other => return Err(field("F64, F32, F16, I32 or I64", format!("{other:?}"))),
        };
        ArrayD::from_shape_vec(IxDyn(tensor.shape()), values)
            .map_err(|error| field("data that fill the shape", error.to_string()))
    }

    /// A tensor whose shape has `N` axes.
    pub(super) fn array_n<D: ndarray::Dimension>(&self, name: &str) -> Result<ndarray::Array<f64, D>> {
        let array = self.array(name)?;
        let shape = array.shape().to_vec();
        array.into_dimensionality::<D>().map_err(|_| Error::Field {
            path: self.path.clone(),
            field: name.to_owned(),
            expected: format!("{} axes", D::NDIM.unwrap_or_default()),
            found: format!("shape {shape:?}"),
        })
    }

    /// Token ids of shape [sequences, tokens] (one axis counts as one sequence).
    pub(super) fn sequences(&self, name: &str) -> Result<Vec<Vec<u32>>> {
        let ids = self.array(name)?;
        let width = ids.shape().last().copied().unwrap_or(0).max(1);
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
