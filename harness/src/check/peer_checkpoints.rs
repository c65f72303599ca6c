use std::path::PathBuf;

use super::vectors::{VectorFile, VectorOptions};
use super::{CaseRow, Comparison, Outcome, nmse};
use crate::backend::{Backend, with_backend};
use crate::error::Result;
use crate::eval::hidden_after_blocks;
use crate::model::Model;

/// The peer multiplies f16 codebooks and scales in f32 and stores logits of f32.
const LOGITS_NMSE: f64 = 1e-6;

/// AQLM checkpoints in the Hugging Face layout against the logits that transformers + aqlm computes from them.
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
        let sequences: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let tokens = sequences.first().map_or(0, |tokens| tokens.len());
        let row = with_backend!(options.backend, model.config(), tokens, |backend| {
            let hidden = hidden_after_blocks(&backend, &model, &sequences, &mut |_| {})?;
            let head = backend.load_head(&model.final_norm()?, &model.lm_head()?)?;
            let expected = file.array("logits")?;
            let mut found = Vec::with_capacity(expected.len());
            for sequence in 0..sequences.len() {
                found.extend(backend.logits(&head, &hidden, sequence)?);
            }
            // A zip would silently compare the shorter part.
            let value = if found.len() == expected.len() {
                nmse(&found, &expected)
            } else {
                f64::NAN
            };
            let comparison = Comparison::new("logits, NMSE", value, LOGITS_NMSE);
            let row = CaseRow::compared(
                "checkpoint",
                &name,
                &options.backend.to_string(),
                vec![comparison],
            );
            Ok::<_, crate::error::Error>(row)
        })?;
        let row = known_peer_fault(&model, row);
        progress(&row);
        rows.push(row);
    }
    Ok(rows)
}

/// aqlm 1.1.7 multiplies on the CPU by 8-bit codes in several threads that add into one vector without any order, so
/// logits that it computed with more than one thread are wrong and differ from run to run (docs/formats.md, "A trap on
/// the other side"). A disagreement there says nothing about us: it is shown, with its size, and counted as waived.
fn known_peer_fault(model: &Model, row: CaseRow) -> CaseRow {
    let eight_bit = model
        .details()
        .quantization
        .is_some_and(|scheme| scheme.nbits == 8);
    if row.outcome != Outcome::Fail || !eight_bit {
        return row;
    }
    let measured = row.reason.unwrap_or_default();
    CaseRow {
        outcome: Outcome::Waived,
        reason: Some(format!(
            "{measured}; the peer's own CPU kernel for 8-bit codes is racy (docs/formats.md)"
        )),
        ..row
    }
}
