use std::path::PathBuf;

use super::vector_file::VectorFile;
use super::vector_options::VectorOptions;
use super::{CaseRow, Comparison, Outcome, nmse, whole_model};
use aqlm_engine::backends::BackendKind;
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
        let file = VectorFile::open(&folder.join("expected.safetensors"))?;
        let model = Model::open(folder)?;
        let ids = file.sequences("input_ids")?;
        let found = whole_model::run(options.backend, &model, &ids, true)?;
        let comparison = whole_model::compare_logits(&found, &file.array("logits")?, LOGITS_NMSE);
        let row = CaseRow::compared(
            "checkpoint",
            &name,
            &options.backend.to_string(),
            vec![comparison],
        );
        let row = if row.outcome == Outcome::Fail && peer_is_racy(&model) {
            // Another backend must still agree with the reference. Otherwise the peer's fault would hide the
            // backend's own.
            let own_fault = options.backend != BackendKind::Reference && {
                let reference = whole_model::run(BackendKind::Reference, &model, &ids, true)?;
                let pairs = (found.logits.iter().flatten(), reference.logits.iter().flatten());
                !Comparison::new("logits, NMSE", nmse(pairs.0, pairs.1), LOGITS_NMSE).holds()
            };
            if own_fault { row } else { waived(row) }
        } else {
            row
        };
        progress(&row);
        rows.push(row);
    }
    Ok(rows)
}

/// On the CPU, aqlm 1.1.7 multiplies 8-bit codes in several threads that add to one vector without
/// synchronization. Its logits from more than one thread are therefore wrong and differ from run to run
/// (docs/formats.md, "A trap on the other side"). A disagreement with them says nothing about this project.
fn peer_is_racy(model: &Model) -> bool {
    model
        .details()
        .quantization
        .is_some_and(|scheme| scheme.nbits == 8)
}

/// Marks the row as waived and keeps the size of its disagreement.
fn waived(row: CaseRow) -> CaseRow {
    let measured = row.reason.unwrap_or_default();
    CaseRow {
        outcome: Outcome::Waived,
        reason: Some(format!(
            "{measured}; the peer's own CPU kernel for 8-bit codes is racy (docs/formats.md)"
        )),
        ..row
    }
}
