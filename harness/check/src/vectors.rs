use std::path::{Path, PathBuf};

use super::vector_options::VectorOptions;
use super::{CaseRow, CheckReport, peer_checkpoints, peer_models, peer_ops};
use aqlm_formats::{Error, Result};

/// Compares with vectors computed by peers. The folder's contents decide between three layouts: `index.json`
/// (operations); sub-folders with `expected.safetensors` (AQLM checkpoints), or one such folder itself; and
/// `NAME.safetensors` with `input_ids` (whole models). A single file of the last kind also works.
///
/// # Errors
/// `Error::Kind` for a folder of none of these kinds; unreadable files.
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
