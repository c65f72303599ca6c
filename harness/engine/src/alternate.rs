//! The alternation on one layer (paper algorithm 1, lines 4 to 12), over the steps of any machine.

use std::cmp::Ordering;

use aqlm_vocabulary::{
    AqlmError, LayerEvent, LayerReport, LayerSettings, Position, Purpose, QuantizedMatrix, StreamKey,
    sweep_order,
};

use crate::ops::LayerOps;
use aqlm_formats::Result;

/// Quantizes one layer: initialisation, then rounds of (codebook update, one beam-search sweep over randomly
/// ordered input groups) until a round gains less than `relative_tolerance` of the loss or `max_rounds` are
/// done.
///
/// All losses, both the ones reported or passed to `observe` and the ones that decide which round to keep,
/// are under H without damping. If the last round did not improve that loss, it is undone.
///
/// All random numbers come from `key`: one stream for the starting points, one for all sweeps.
///
/// # Errors
/// `NotDivisible` when the scheme does not fit the layer. `Degenerate` when a codebook has more codewords
/// than the layer has groups (unless `settings.allow_degenerate`). `Argument` for a beam of 0. Errors of the
/// machine's steps.
pub fn alternate<O: LayerOps>(
    ops: &O,
    problem: &O::Problem,
    settings: &LayerSettings,
    key: StreamKey,
    observe: &mut dyn FnMut(LayerEvent),
) -> Result<(QuantizedMatrix, LayerReport)> {
    let mut update = |trial| ops.update(problem, trial, &settings.update);
    alternate_with(ops, problem, settings, key, &mut update, observe)
}

/// [`alternate`] with a user-defined codebook update instead of `settings.update`. `update` receives a trial
/// and returns another with the same codes, built from a matrix by [`LayerOps::trial`].
///
/// # Errors
/// As [`alternate`], and the errors of `update`.
pub fn alternate_with<O: LayerOps>(
    ops: &O,
    problem: &O::Problem,
    settings: &LayerSettings,
    key: StreamKey,
    update: &mut dyn FnMut(O::Trial) -> Result<O::Trial>,
    observe: &mut dyn FnMut(LayerEvent),
) -> Result<(QuantizedMatrix, LayerReport)> {
    let in_groups = check_settings(ops.shape(problem), settings)?;
    let start = ops.initialize(problem, settings, key)?;
    let mut steps = OneSided { ops, problem, update };
    let dead_inputs = ops.dead_inputs(problem);
    rounds(&mut steps, start, in_groups, dead_inputs, settings, key, observe)
}

/// The steps of an alternation under one objective.
pub(crate) trait Steps {
    /// a quantized matrix and what the next step needs
    type State;

    /// Updates codebooks and scales; the codes stay fixed.
    fn update(&mut self, state: Self::State) -> Result<Self::State>;

    /// Runs one sweep of search over the steps of `order` and returns the new codes.
    fn search(&self, state: Self::State, order: &[Position], beam: usize) -> Result<Self::State>;

    /// The relative loss, which decides.
    fn loss(&self, state: &Self::State) -> f64;

    /// The quantized matrix, on the host.
    fn matrix(&self, state: &Self::State) -> Result<QuantizedMatrix>;
}

/// Under the layer error, with any update.
struct OneSided<'a, O: LayerOps> {
    ops: &'a O,
    problem: &'a O::Problem,
    update: &'a mut dyn FnMut(O::Trial) -> Result<O::Trial>,
}

impl<O: LayerOps> Steps for OneSided<'_, O> {
    type State = O::Trial;

    fn update(&mut self, state: O::Trial) -> Result<O::Trial> {
        (self.update)(state)
    }

    fn search(&self, state: O::Trial, order: &[Position], beam: usize) -> Result<O::Trial> {
        self.ops.search(self.problem, state, order, beam)
    }

    fn loss(&self, state: &O::Trial) -> f64 {
        self.ops.loss(self.problem, state)
    }

    fn matrix(&self, state: &O::Trial) -> Result<QuantizedMatrix> {
        self.ops.matrix(self.problem, state)
    }
}

/// The rounds of an alternation from a first state, and which of them is kept: the rules of [`alternate`].
///
/// # Errors
/// Those of the steps.
pub(crate) fn rounds<S: Steps>(
    steps: &mut S,
    start: S::State,
    in_groups: usize,
    dead_inputs: usize,
    settings: &LayerSettings,
    key: StreamKey,
    observe: &mut dyn FnMut(LayerEvent),
) -> Result<(QuantizedMatrix, LayerReport)> {
    let mut state = start;
    let initial_error = steps.loss(&state);
    observe(LayerEvent::Initialized { loss: initial_error });

    let mut best = steps.matrix(&state)?;
    let mut relative_error = initial_error;
    let mut trace = Vec::new();
    let mut sweeps = key.stream(Purpose::Sweep);
    for round in 0..settings.max_rounds {
        state = steps.update(state)?;
        let loss = steps.loss(&state);
        observe(LayerEvent::Updated { round, loss });
        let order = sweep_order(
            &mut sweeps,
            in_groups,
            settings.scheme.num_codebooks,
            settings.searches_pairs(),
        );
        state = steps.search(state, &order, settings.beam)?;
        let loss = steps.loss(&state);
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
        best = steps.matrix(&state)?;
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
        dead_inputs,
    };
    Ok((best, report))
}

/// Rejects settings that do not fit a layer of [out_features, in_features]; returns the number of input
/// groups.
pub(crate) fn check_settings(
    (out_features, in_features): (usize, usize),
    settings: &LayerSettings,
) -> Result<usize> {
    let scheme = settings.scheme;
    let (out_groups, in_groups) = scheme.groups(out_features, in_features)?;
    if settings.beam == 0 {
        return Err(AqlmError::argument("beam", "at least 1 hypothesis", 0).into());
    }
    let groups = out_groups * in_groups;
    if scheme.codebook_size() > groups && !settings.allow_degenerate {
        return Err(AqlmError::Degenerate {
            scheme: scheme.to_string(),
            codebook_size: scheme.codebook_size(),
            groups,
        }
        .into());
    }
    Ok(in_groups)
}
