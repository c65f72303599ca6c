use std::path::{Path, PathBuf};

use super::vector_file::VectorFile;
use super::vector_options::VectorOptions;
use super::whole_model::{self, logits_limit, refused};
use super::{CaseRow, Comparison};
use aqlm_formats::Result;
use aqlm_formats::model::Model;

/// The peer multiplies f16 codebooks and scales in f32 and stores f32 logits.
const LOGITS_NMSE: f64 = 1e-6;

/// Compares AQLM checkpoints in the Hugging Face layout with the logits that transformers + aqlm compute from
/// them.
pub(super) fn check(
    folders: &[PathBuf],
    options: &VectorOptions,
    progress: &mut dyn FnMut(&CaseRow),
) -> Result<Vec<CaseRow>> {
    let mut rows = Vec::new();
    for folder in folders {
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !options.wants("checkpoint", &name) {
            continue;
        }
        let row = match check_one(folder, options) {
            Ok(comparison) => CaseRow::compared(
                "checkpoint",
                &name,
                &options.backend.to_string(),
                vec![comparison],
            ),
            Err(error) => refused("checkpoint", &name, options.backend, error)?,
        };
        progress(&row);
        rows.push(row);
    }
    Ok(rows)
}

fn check_one(folder: &Path, options: &VectorOptions) -> Result<Comparison> {
    let file = VectorFile::open(&folder.join("expected.safetensors"))?;
    let model = Model::open(folder)?;
    let found = whole_model::run(options.backend, &model, &file.sequences("input_ids")?, true)?;
    let limit = logits_limit(options.backend, model.config(), LOGITS_NMSE);
    Ok(whole_model::compare_logits(&found, &file.array("logits")?, limit))
}
