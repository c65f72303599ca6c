//! The choice among the ways in which matmul k2 and k3 can divide their work.

use aqlm_vocabulary::{AqlmError, Result, Scheme};

use super::job::Job;
use super::tiles::Form;
use super::{Packed, Target};

/// Those of `configs`, each with its predicted clocks, that the target `has`, the fastest expected first.
pub(super) fn ranked<C>(mut configs: Vec<(f64, C)>, has: impl Fn(&C) -> bool) -> Vec<C> {
    configs.retain(|(_, config)| has(config));
    configs.sort_by(|a, b| a.0.total_cmp(&b.0));
    configs.into_iter().map(|(_, config)| config).collect()
}

/// A kernel on codes in tiles, launched by `plan` in the first of `configs`.
///
/// # Errors
/// `Unsupported` when the target can run no configuration.
pub(super) fn pack_fastest<C: Copy>(
    job: &Job<'_>,
    configs: fn(Scheme, [usize; 2], usize, &Target) -> Vec<C>,
    plan: fn(&mut Packed, Scheme, &Target, C),
) -> Result<Packed> {
    let &Job {
        kernel,
        matrix,
        target,
        batch,
    } = job;
    let scheme = matrix.scheme();
    let shape = [matrix.out_features(), matrix.in_features()];
    let configs = configs(scheme, shape, batch, target);
    let refusal = || AqlmError::Unsupported(format!("no configuration of {kernel} fits {scheme}"));
    let config = *configs.first().ok_or_else(refusal)?;
    let form = Form::of(matrix, target);
    let mut packed = Packed {
        operands: form.operands(matrix),
        sizes: vec![form.units as i32],
        ..job.unplanned()
    };
    plan(&mut packed, scheme, target, config);
    Ok(packed)
}
