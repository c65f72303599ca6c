use std::path::{Path, PathBuf};

use ndarray::ArrayD;

use super::{CaseRow, CheckReport, peer_checkpoints, peer_models, peer_ops};
use aqlm_engine::backends::BackendKind;
use aqlm_formats::safetensors::SafetensorFiles;
use aqlm_formats::tensors::TensorSource;
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
/// `Error::Kind` for a folder of none of these kinds, and unreadable files.
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
        let mut entries = entries
            .map(|entry| Ok(entry.map_err(Error::io(path, "read"))?.path()))
            .collect::<Result<Vec<PathBuf>>>()?;
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
            return Err(Error::Kind {
                path: path.into(),
                expected: "index.json, folders with expected.safetensors, or NAME.safetensors files".into(),
                found: "none of them".into(),
            });
        }
    };
    Ok(CheckReport::new(rows))
}

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

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.info(name).is_some()
    }

    /// A tensor of any numeric type, as f64: exact for f32 and 32-bit integers.
    pub(super) fn array(&self, name: &str) -> Result<ArrayD<f64>> {
        self.array_n(name)
    }

    /// A tensor whose shape has `D`'s axes.
    pub(super) fn array_n<D: ndarray::Dimension>(&self, name: &str) -> Result<ndarray::Array<f64, D>> {
        self.tensors.read_as_f64(name)
    }

    /// Token ids of shape [sequences, tokens] (one axis counts as one sequence).
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
