use ndarray::ArrayD;

use super::{CaseRow, Comparison, Outcome, nmse};
use aqlm_engine::backends::BackendKind;
use aqlm_engine::evaluate::{Evaluation, Streamed, resident};
use aqlm_formats::model::Model;
use aqlm_formats::{Error, Result};
use aqlm_vocabulary::{AqlmError, ArchSpec};

/// Evaluates a model on the token ids of a vector file.
pub(super) fn run(
    backend: BackendKind,
    model: &Model,
    ids: &[Vec<u32>],
    with_logits: bool,
) -> Result<Evaluation> {
    let sequences: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let tokens = sequences.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
    if backend == BackendKind::Cuda {
        let machine = backend.models(model.config(), tokens)?;
        return resident(machine.as_ref(), model, &sequences, with_logits, &mut |_| {});
    }
    let job = Streamed {
        weights: model,
        windows: &sequences,
        with_logits,
        progress: &mut |_| {},
    };
    backend.run(model.config(), tokens, job)
}

/// The limit of the logits' NMSE on this backend, where peers and hosts are within `host`.
///
/// On a GPU weights and activations are rounded to f16: both norms, queries, keys and values, scores,
/// attention's output, gate and up, their product, and the block's two results, and at the end the norm, the
/// head and the logits. Each rounding is off by at most 2^-11, independently of the others.
pub(super) fn logits_limit(backend: BackendKind, arch: &ArchSpec, host: f64) -> f64 {
    match backend {
        BackendKind::Reference | BackendKind::Cpu => host,
        BackendKind::Cuda => (12 * arch.blocks.len() + 3) as f64 * f64::powi(2.0, -22),
    }
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

/// The row of a case that ended in an error, so that the other cases are still compared: unsupported for
/// arithmetic that the project does not have, waived without a device, else a failure.
///
/// # Errors
/// An internal error: that is a bug and no result.
pub(super) fn refused(op: &str, case: &str, backend: BackendKind, error: Error) -> Result<CaseRow> {
    let outcome = match &error {
        Error::Internal(_) => return Err(error),
        Error::Unsupported { .. } | Error::Aqlm(AqlmError::Unsupported(_)) => Outcome::Unsupported,
        Error::Device { .. } => Outcome::Waived,
        _ => Outcome::Fail,
    };
    Ok(CaseRow::without(
        op,
        case,
        &backend.to_string(),
        outcome,
        error.to_string(),
    ))
}
