use std::cmp::Ordering;

use aqlm_vocabulary::{
    AqlmError, Initialization, LayerEvent, LayerReport, LayerSettings, Purpose, QuantizedMatrix, Result,
    StreamKey, sweep_order,
};
use ndarray::Array2;

use super::beam_search::search;
use super::codebook_update::{Stop, update_trial};
use super::em_init::em_init;
use super::problem::{Problem, check_hessian, inner};
use super::residual_init::residual_init;
use super::trial::Trial;

/// Quantizes one layer: initialisation, then rounds of (codebook update, one beam-search sweep over randomly
/// ordered input groups) until a round gains less than `relative_tolerance` of the loss or `max_rounds` are
/// done (paper algorithm 1, lines 4 to 12).
///
/// The weight is [out_features, in_features], H [in_features, in_features] and symmetric. Everything is
/// optimised under H with `settings.damping` x mean(diag H) on its diagonal; every loss that is reported or
/// passed to `observe`, and the choice of which round to keep, is under H as it is. A last round that did not
/// improve that loss is taken back.
///
/// Random numbers are those of `key` alone: one stream for the starting points, one for all sweeps.
///
/// # Errors
/// `Shape`, `NotDivisible`, `NotFinite` (naming weight or H), `Degenerate` when a codebook has more codewords
/// than the layer has groups (unless `settings.allow_degenerate`), `NotPositiveDefinite` when H has a
/// negative diagonal entry or turns out indefinite, `Argument` for a beam of 0 or a damping that is no
/// finite number >= 0.
pub fn layer_quantize(
    weight: &Array2<f32>,
    hessian: &Array2<f64>,
    settings: &LayerSettings,
    key: StreamKey,
    observe: &mut dyn FnMut(LayerEvent),
) -> Result<(QuantizedMatrix, LayerReport)> {
    let (_, in_groups) = validate(weight, hessian, settings)?;
    let ridge = settings.damping * hessian.diag().sum() / hessian.nrows().max(1) as f64;
    let mut damped = hessian.as_standard_layout().into_owned();
    damped.diag_mut().mapv_inplace(|x| x + ridge);
    let problem = Problem::new(weight, &damped)?;
    // Under H as it is: what the damping adds is known.
    let norm = problem.norm() - ridge * inner(&problem.weight, &problem.weight);
    let loss_of = |trial: &Trial| {
        let error = (trial.loss - ridge * inner(&trial.error, &trial.error)).max(0.0);
        if error == 0.0 { 0.0 } else { error / norm }
    };

    let first = match settings.init {
        Initialization::Residual => residual_init(weight, settings, key)?,
        Initialization::Em { rounds } => em_init(weight, &damped, settings, rounds, key)?,
    };
    drop(damped);
    let mut trial = Trial::new(&problem, first);
    let initial_error = loss_of(&trial);
    observe(LayerEvent::Initialized { loss: initial_error });

    let mut best = trial.matrix.clone();
    let mut relative_error = initial_error;
    let mut trace = Vec::new();
    let mut sweeps = key.stream(Purpose::Sweep);
    for round in 0..settings.max_rounds {
        trial = update_trial(&problem, trial, &settings.update, Stop::ALTERNATION)?;
        observe(LayerEvent::Updated {
            round,
            loss: loss_of(&trial),
        });
        let order = sweep_order(&mut sweeps, in_groups, settings.scheme.num_codebooks);
        trial = Trial::new(&problem, search(&problem, trial, &order, settings.beam)?);
        let loss = loss_of(&trial);
        observe(LayerEvent::Searched { round, loss });
        let kept = matches!(
            loss.partial_cmp(&relative_error),
            Some(Ordering::Less | Ordering::Equal)
        );
        if !kept {
            break;
        }
        let gain = relative_error - loss;
        let enough = gain >= settings.relative_tolerance * relative_error && gain > 0.0;
        best.clone_from(&trial.matrix);
        relative_error = loss;
        trace.push(loss);
        if !enough {
            break;
        }
    }
    let report = LayerReport {
        initial_error,
        relative_error,
        trace,
        dead_inputs: hessian.diag().iter().filter(|&&x| x == 0.0).count(),
    };
    Ok((best, report))
}

/// Refuses what cannot be quantized; returns (out_groups, in_groups).
fn validate(weight: &Array2<f32>, hessian: &Array2<f64>, settings: &LayerSettings) -> Result<(usize, usize)> {
    let scheme = settings.scheme;
    let inputs = weight.ncols();
    let (out_groups, in_groups) = scheme.groups(weight.nrows(), inputs)?;
    check_hessian(hessian, inputs)?;
    let not_finite = |what: &str, (row, column): (usize, usize), value: f64| AqlmError::NotFinite {
        what: what.into(),
        index: vec![row, column],
        value,
    };
    if let Some((at, value)) = weight.indexed_iter().find(|(_, value)| !value.is_finite()) {
        return Err(not_finite("weight", at, f64::from(*value)));
    }
    if let Some((at, value)) = hessian.indexed_iter().find(|(_, value)| !value.is_finite()) {
        return Err(not_finite("hessian", at, *value));
    }
    if let Some(pivot) = hessian.diag().iter().position(|&x| x < 0.0) {
        return Err(AqlmError::NotPositiveDefinite {
            what: "hessian".into(),
            pivot,
        });
    }
    if settings.beam == 0 {
        return Err(AqlmError::argument("beam", "at least 1 hypothesis", 0));
    }
    if !(settings.damping >= 0.0 && settings.damping.is_finite()) {
        return Err(AqlmError::argument(
            "damping",
            "a finite number of at least 0",
            settings.damping,
        ));
    }
    let groups = out_groups * in_groups;
    if scheme.codebook_size() > groups && !settings.allow_degenerate {
        return Err(AqlmError::Degenerate {
            scheme: scheme.to_string(),
            codebook_size: scheme.codebook_size(),
            groups,
        });
    }
    Ok((out_groups, in_groups))
}
