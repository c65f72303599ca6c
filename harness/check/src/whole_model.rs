use ndarray::ArrayD;

use super::{Comparison, nmse};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::evaluate::{Evaluation, Streamed};
use aqlm_formats::Result;
use aqlm_formats::model::Model;

/// Evaluates a model on the token ids of a vector file.
pub(super) fn run(
    backend: BackendKind,
    model: &Model,
    ids: &[Vec<u32>],
    with_logits: bool,
) -> Result<Evaluation> {
    let sequences: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let tokens = sequences.first().map_or(0, |tokens| tokens.len());
    let job = Streamed {
        weights: model,
        windows: &sequences,
        with_logits,
        progress: &mut |_| {},
    };
    backend.run(model.config(), tokens, job)
}

/// Compares the logits of all sequences with the expected ones. A zip would silently compare only the shorter
/// part, so different lengths give NaN, which never holds.
pub(super) fn compare_logits(found: &Evaluation, expected: &ArrayD<f64>, limit: f64) -> Comparison {
    let count: usize = found.logits.iter().map(ndarray::ArrayBase::len).sum();
    if count != expected.len() {
        let what = format!(
            "logits: expected {:?}, found {count} values; NMSE",
            expected.shape()
        );
        return Comparison::new(what, f64::NAN, limit);
    }
    Comparison::new(
        "logits, NMSE",
        nmse(found.logits.iter().flatten(), expected),
        limit,
    )
}
